"""What tests of more than one package need."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.dlrm import export, tiny_config


@pytest.fixture(scope="session")
def tiny_dlrm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base path of the example model, small: 26 tables of up to 1,000 x 16."""
    base_path = tmp_path_factory.mktemp("dlrm")
    export(tiny_config(), base_path)
    return base_path
