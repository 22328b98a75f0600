"""Flags that say how requests are batched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import BatchingParameters, read_batching_parameters
from shardserve.cluster.flags.group import flag
from shardserve.shards.stages import BatchingOptions

_THREAD_POOL = "model_server_batch_threads"


@dataclass(frozen=True)
class BatchingFlags:
    PANEL: ClassVar[str] = "Batching"

    enable_batching: Annotated[bool, flag("Run requests that come together as one.")] = False
    batching_parameters_file: Annotated[
        Path | None, flag("BatchingParameters in text format.", metavar="FILE")
    ] = None
    enable_per_model_batching_parameters: Annotated[
        bool, flag("Read them from batching_params.pbtxt in each version directory.")
    ] = False
    stages_file: Annotated[
        Path | None,
        flag(
            "How each stage is batched, and regions of the graph that are stages of their own.",
            metavar="FILE",
            resolve_path=True,
        ),
    ] = None


def batching_of(flags: BatchingFlags) -> BatchingOptions:
    """Raises InvalidArgument for files that go with batching, without it, and as their reader."""
    return BatchingOptions(
        parameters_of(
            flags.batching_parameters_file,
            per_model=flags.enable_per_model_batching_parameters,
            enabled=flags.enable_batching,
        ),
        flags.enable_per_model_batching_parameters,
        flags.stages_file,
    )


def parameters_of(
    path: Path | None, *, per_model: bool = False, enabled: bool
) -> BatchingParameters | None:
    """The server's parameters, None for one that does not batch."""
    if path is not None and not enabled:
        raise InvalidArgument("--batching_parameters_file needs --enable_batching")
    if per_model and not enabled:
        raise InvalidArgument("--enable_per_model_batching_parameters needs --enable_batching")
    if not enabled:
        return None
    if path is None:
        return BatchingParameters(thread_pool_name=_THREAD_POOL)
    return read_batching_parameters(path)
