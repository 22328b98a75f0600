"""The kinds of servables, by `model_platform`. `docs/servables.md` shows how to add one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardserve.batching.errors import InvalidArgument
from shardserve.router.computed import Computation

TENSORFLOW = "tensorflow"
PYTHON = "python"


@dataclass(frozen=True)
class Version:
    """What is to be loaded: a version's own directory, and what the operator allows.

    `allow_pickle` lets a kind read files that can run any code when they are read.
    """

    model: str
    version: int
    directory: Path
    allow_pickle: bool = False


#: Loads a version. Blocks; raises a `ServingError` that names the file at fault.
Load = Callable[[Version], Computation]

#: Where each kind's `load` is. Imported when a model asks for it: each needs a library of its own.
_MODULES: Mapping[str, str] = {
    "onnx": "shardserve.router.onnx_kind",
    "sklearn": "shardserve.router.sklearn_kind",
}
_registered: dict[str, Load] = {}


def register(platform: str, load: Load) -> None:
    """Add a kind. Raises InvalidArgument for a platform that there is."""
    if platform in _registered or platform in _MODULES or platform == TENSORFLOW:
        raise InvalidArgument(f"model platform {platform!r} is registered already")
    _registered[platform] = load


def kind_of(platform: str) -> Load:
    """The kind that a `model_platform` names: a registered one, or "python:MODULE:FUNCTION".

    Raises InvalidArgument, naming the platform, for one that is unknown or whose library is
    missing.
    """
    if platform in _registered:
        return _registered[platform]
    if platform in _MODULES:
        return _imported(platform, _MODULES[platform], "load")
    kind, _, where = platform.partition(":")
    module, _, function = where.partition(":")
    if kind == PYTHON and module and function:
        return _imported(platform, module, function)
    raise InvalidArgument(
        f"the model requests unsupported platform {platform!r}; there are "
        + ", ".join(sorted({TENSORFLOW, *_MODULES, *_registered, "python:MODULE:FUNCTION"}))
    )


def _imported(platform: str, module: str, function: str) -> Load:
    try:
        load: Load = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument(f"model platform {platform!r}: {error}") from error
    return load
