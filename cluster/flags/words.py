"""TensorFlow's spelling of flags, and the one that our parser of them takes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from shardserve.batching.errors import InvalidArgument
from shardserve.cluster.flags.group import Flag

_TRUTHS = {"true": "true", "1": "true", "false": "false", "0": "false"}


def respelled(words: Sequence[str], flags: Iterable[Flag]) -> list[str]:
    """Booleans all with a value (`--flag` is `--flag=true`); paths that are empty left out.

    Raises InvalidArgument for a boolean that is neither true nor false.
    """
    known = {f"--{one.name}": one for one in flags}
    return [
        respelling
        for word in words
        if (respelling := _respelled(word, known.get(word.partition("=")[0]))) is not None
    ]


def stray_truth(words: Sequence[str], flags: Iterable[Flag]) -> str | None:
    """What to say of the first `--flag true`, where flag is a boolean; None if there is none.

    A boolean alone is true, so that what follows is a word of its own, and `--flag false` switches
    on what was to be off. Beside arguments such a word may be one of them, as a directory's name.
    """
    flags = tuple(flags)
    if any(one.is_argument for one in flags):
        return None
    booleans = {f"--{one.name}" for one in flags if one.is_boolean}
    for flag, word in pairwise(words):
        if flag in booleans and word.lower() in _TRUTHS:
            return f"unknown argument {word!r}: a boolean takes its value after '=': {flag}={word}"
    return None


def _respelled(word: str, flag: Flag | None) -> str | None:
    name, equals, value = word.partition("=")
    if flag is None:
        return word
    if flag.is_path and equals and not value:
        # What is empty is not set, as in the original.
        return None
    if not flag.is_boolean:
        return word
    truth = _TRUTHS.get(value.lower()) if equals else "true"
    if truth is None:
        raise InvalidArgument(f"{name} takes true or false, not {value!r}")
    return f"{name}={truth}"
