"""Where models may lie: --allowed_model_roots. What leads out of there, links too, is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from shardserve.batching.errors import PermissionDenied
from shardserve.cluster.model_config import ModelConfig


def check_roots(models: Iterable[ModelConfig], roots: Sequence[Path]) -> None:
    """Raise PermissionDenied for a base path outside of all `roots`; without roots for none.

    To be asked of every configuration, whoever it came from.
    """
    for model in models:
        check_directory(model.name, model.base_path, roots)


def check_directory(model: str, directory: Path, roots: Sequence[Path]) -> None:
    """As `check_roots`, for one directory of a model: of a version, which may be a link, as well.

    Links are followed, in roots too. Names the model and the path as it was given.
    """
    if not roots:
        return
    # Not `strict`: a base path that is not there yet may come.
    real = directory.resolve()
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        allowed = ", ".join(map(str, roots))
        raise PermissionDenied(
            f"model {model}: {directory} is outside of --allowed_model_roots, {allowed}"
        )
