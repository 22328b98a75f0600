"""The page about flags says what the command line takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardserve.cluster.cli import main, tensorflow_model_server
from shardserve.cluster.flags.group import flags_of
from shardserve.cluster.flags.reference import TENSORFLOW_SERVING, reference
from shardserve.cluster.flags.serve import ServeFlags
from shardserve.cluster.flags.unused import WHY

ROOT = Path(__file__).parents[2]
NAMES = [one.name for one in flags_of(ServeFlags)]


def test_the_page_is_what_the_flags_say() -> None:
    assert (ROOT / "docs" / "flags.md").read_text() == reference()


def test_no_flag_is_there_twice_and_none_of_the_originals_is_missing() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert set(NAMES) >= TENSORFLOW_SERVING
    assert set(NAMES) >= set(WHY)


@pytest.mark.parametrize("words", [("serve", "--help"), ("--help",)])
def test_the_help_has_every_flag_in_full(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = main if words[0] == "serve" else tensorflow_model_server
    with pytest.raises(SystemExit) as ended:
        command(words)

    assert not ended.value.code
    shown = capsys.readouterr().out.split()
    assert [name for name in NAMES if f"--{name}" not in shown] == []
