"""Log lines go to standard error, wherever that is by then."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator

import pytest
import structlog

from shardserve.router import logs


@pytest.fixture
def unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("unconfigured")
def test_a_line_is_written_though_standard_error_was_replaced_and_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    logs.configure()
    log = logs.logger(part="a")
    log.info("one")
    assert json.loads(first.getvalue())["event"] == "one"
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    log.info("two")
    assert json.loads(second.getvalue())["part"] == "a"
