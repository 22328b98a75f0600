"""Log lines go to standard error, wherever that is by then, and are not too many."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import Code
from shardserve.router import logs


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


@pytest.mark.usefixtures("unconfigured")
def test_lines_of_every_part_are_json_and_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    logs.configure()
    logs.configure()
    part = logging.getLogger("shardserve.cluster.manager")
    part.debug("left out")
    part.warning("no versions of model %s", "m")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        part.exception("a defect")

    warned, failed = map(json.loads, written.getvalue().splitlines())
    assert (warned["level"], warned["event"]) == ("warning", "no versions of model m")
    assert "ZeroDivisionError" in failed["exception"]
    assert warned["timestamp"]


@pytest.mark.usefixtures("unconfigured")
def test_who_configures_the_root_logger_writes_no_line_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    logs.configure()
    logging.basicConfig()
    logging.getLogger("shardserve.cluster.manager").warning("once")

    assert written.getvalue().count("once") == 1


@given(times=st.lists(st.floats(0.0, 10.0), max_size=60), most=st.integers(1, 5))
def test_so_many_lines_a_second_are_written_and_the_others_are_counted(
    times: list[float], most: int
) -> None:
    limit = logs.LineLimit(most)
    written: list[float] = []
    left_out = 0
    for now in sorted(times):
        if limit.may_write(now):
            written.append(now)
            left_out += limit.take_left_out().get("left_out", 0)
    left_out += limit.take_left_out().get("left_out", 0)
    assert len(written) + left_out == len(times)
    for second in range(11):
        came = sum(int(now) == second for now in times)
        assert sum(int(now) == second for now in written) == min(came, most)


@pytest.mark.usefixtures("unconfigured")
def test_an_overloaded_server_writes_few_lines_about_what_it_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", seen)
    monkeypatch.setattr(logs, "_LINES", logs.LineLimit(2))
    monkeypatch.setattr(logs.time, "monotonic", lambda: 7.5)
    logs.configure()
    for code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.INTERNAL):
        logs.request_failed(logs.logger(), "id", "m", "predict", code, "no", 0.5)
    lines = [json.loads(line)["code"] for line in seen.getvalue().splitlines()]
    assert lines == ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"]
