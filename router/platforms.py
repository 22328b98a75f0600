"""The names of the kinds of servables, for whoever checks a configuration and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping

from shardserve.batching.errors import InvalidArgument

TENSORFLOW = "tensorflow"
#: Of "python:MODULE:FUNCTION".
PYTHON = "python"

#: Where each kind's `load` is. Imported when a model asks for it: each needs a library of its own.
MODULES: Mapping[str, str] = {
    "onnx": "shardserve.router.onnx_kind",
    "sklearn": "shardserve.router.sklearn_kind",
}
#: Those that were added while this process ran, see `kinds.register`.
added: set[str] = set()


def known() -> frozenset[str]:
    """Every name there is, but for those of Python functions."""
    return frozenset({TENSORFLOW, *MODULES, *added})


def python_function(platform: str) -> tuple[str, str] | None:
    """The module and the function that a platform names, if it is "python:MODULE:FUNCTION"."""
    kind, _, where = platform.partition(":")
    module, _, function = where.partition(":")
    return (module, function) if kind == PYTHON and module and function else None


def check_platform(platform: str, who: str = "the model") -> None:
    """Raise InvalidArgument, naming who wants it and the platform, for one that there is not."""
    if platform not in known() and python_function(platform) is None:
        there = ", ".join(sorted({*known(), "python:MODULE:FUNCTION"}))
        raise InvalidArgument(
            f"{who} requests unsupported platform {platform!r}; there are {there}"
        )
