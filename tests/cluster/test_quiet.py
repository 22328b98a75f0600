from __future__ import annotations

import os

import pytest

from shardserve.cluster.quiet import quiet_tensorflow

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@pytest.mark.parametrize("environ", [{}, {LEVEL: "3"}])
def test_what_is_written_past_python_is_discarded_and_what_follows_is_not(
    environ: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    with quiet_tensorflow(environ):
        os.write(2, b"failed call to cuInit\n")
    os.write(2, b"after\n")

    assert capfd.readouterr().err == "after\n"


@pytest.mark.parametrize("level", ["0", "1", "2"])
def test_who_asks_for_more_sees_it(level: str, capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_tensorflow({LEVEL: level}):
        os.write(2, b"failed call to cuInit\n")

    assert capfd.readouterr().err == "failed call to cuInit\n"


def test_what_is_raised_comes_out_and_standard_error_is_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ZeroDivisionError), quiet_tensorflow({}):
        raise ZeroDivisionError
    os.write(2, b"after\n")

    assert capfd.readouterr().err == "after\n"
