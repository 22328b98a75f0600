"""Which Python functions a configuration may name: --allowed_python_servables."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from shardserve.batching.errors import PermissionDenied
from shardserve.cluster.model_config import ModelConfig

_PYTHON = "python:"


def check_python(models: Iterable[ModelConfig], allowed: Collection[str]) -> None:
    """Raise PermissionDenied for a platform "python:MODULE:FUNCTION" that is not `allowed`.

    To be asked of every configuration: a reload request may come from anybody, and would name what
    is to be called here.
    """
    for model in models:
        kind, found, where = model.platform.partition(_PYTHON)
        if found and not kind and where not in allowed:
            raise PermissionDenied(
                f"model {model.name}: {where} is not among --allowed_python_servables"
            )
