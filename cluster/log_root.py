"""Where requests may be logged: --request_log_root. A configuration may come from anybody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shardserve.batching.errors import FailedPrecondition, PermissionDenied
from shardserve.cluster.model_config import ModelConfig


def with_log_prefix(model: ModelConfig, root: Path | None) -> ModelConfig:
    """The model with the prefix of its log below `root`, to which a relative one is relative.

    Raises FailedPrecondition where there is no root, PermissionDenied for a prefix that leads out
    of it, by whatever link.
    """
    if model.logging is None:
        return model
    if root is None:
        raise FailedPrecondition(
            f"model {model.name}: logging_config needs --request_log_root, below which the files go"
        )
    prefix = root / model.logging.prefix
    if not prefix.parent.resolve().is_relative_to(root.resolve()):
        raise PermissionDenied(
            f"model {model.name}: filename_prefix {model.logging.prefix} is outside of "
            f"--request_log_root, {root}"
        )
    return replace(model, logging=replace(model.logging, prefix=prefix))
