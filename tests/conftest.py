"""What tests of more than one package need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from examples.dlrm import export, tiny_config
from tests.saved_models import CASES


@pytest.fixture(scope="session")
def tiny_dlrm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base path of the example model, small: 26 tables of up to 1,000 x 16."""
    base_path = tmp_path_factory.mktemp("dlrm")
    export(tiny_config(), base_path)
    return base_path


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a case of `tests.saved_models`, exported the first time it is asked for."""
    root = tmp_path_factory.mktemp("saved_models")

    def exported(name: str) -> Path:
        path = root / name
        if not path.exists():
            next(case for case in CASES if case.name == name).export(path)
        return path

    return exported
