from __future__ import annotations

import logging

import pytest

from shardserve.batching.errors import DataLoss
from shardserve.cluster.start_log import start_log

logger = logging.getLogger("shardserve.cluster.somewhere")


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to the log of the process."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    monkeypatch.setattr(logging.getLogger("shardserve"), "handlers", [Kept()])
    return lines


def test_a_warning_is_said_instead_of_being_logged(logged: list[str]) -> None:
    said: list[str] = []
    with start_log(said.append):
        logger.warning("no versions of %s", "m")

    logger.warning("after")
    assert said == ["no versions of m"]
    assert logged == ["after"]


def test_an_error_that_ends_the_start_is_left_to_who_tells_of_the_end(logged: list[str]) -> None:
    said: list[str] = []

    def start() -> None:
        logger.error("%s cannot be loaded: %s", "m version 1", "a.pb: cut off")
        logger.error("%s cannot be loaded: %s", "m version 2", "b.pb: absent")
        raise DataLoss("1 model(s) did not become available: a.pb: cut off")

    with pytest.raises(DataLoss), start_log(said.append):
        start()

    assert said == []
    assert logged == ["m version 2 cannot be loaded: b.pb: absent"]


def test_an_error_that_does_not_end_it_is_logged_when_the_start_is_over(logged: list[str]) -> None:
    with start_log(lambda _: None):
        logger.error("m version 1 cannot be loaded: cut off")
        assert logged == []

    assert logged == ["m version 1 cannot be loaded: cut off"]


def test_a_defect_is_logged_at_once_with_its_trace(logged: list[str]) -> None:
    with start_log(lambda _: None):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            logger.exception("base paths were not looked at")
        assert logged == ["base paths were not looked at"]
    assert len(logged) == 1
