"""Flags about TensorFlow itself, and the platform file that stands for them and for batching."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from shardserve.batching.errors import InvalidArgument
from shardserve.cluster.flags.batching import BatchingFlags, batching_of
from shardserve.cluster.flags.group import flag
from shardserve.cluster.quiet import quiet_tensorflow
from shardserve.cluster.sessions import Sessions
from shardserve.router.warm_up_options import WarmUpOptions
from shardserve.shards.stages import BatchingOptions

if TYPE_CHECKING:
    from shardserve.router.session_config import SessionConfig

BFLOAT16 = "bfloat16"

#: What a platform file says instead.
SAID_BY_PLATFORM = (
    "saved_model_tags",
    "tensorflow_session_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
    "tensorflow_session_config_file",
    "per_process_gpu_memory_fraction",
    "mixed_precision",
    "enable_model_warmup",
    "num_request_iterations_for_warmup",
    "enable_batching",
    "batching_parameters_file",
    "enable_per_model_batching_parameters",
)


@dataclass(frozen=True)
class RuntimeFlags:
    PANEL: ClassVar[str] = "TensorFlow"

    saved_model_tags: Annotated[str, flag("Tags of the MetaGraph, by comma.")] = "serve"
    enable_model_warmup: Annotated[
        bool, flag("Replay a version's warm-up requests before it is served.")
    ] = True
    num_request_iterations_for_warmup: Annotated[
        int, flag("How often each of them is replayed; 0 counts as 1.", min=0)
    ] = 0
    tensorflow_session_parallelism: Annotated[
        int, flag("Both of the next two, where they are not set.", min=0)
    ] = 0
    tensorflow_intra_op_parallelism: Annotated[
        int, flag("Threads within operations; 0: TensorFlow chooses.", min=0)
    ] = 0
    tensorflow_inter_op_parallelism: Annotated[
        int,
        flag(
            "-1: operations one after the other, requests side by side; 0: TensorFlow chooses.",
            min=-1,
        ),
    ] = -1
    tensorflow_session_config_file: Annotated[
        Path | None, flag("A ConfigProto in text format.", metavar="FILE")
    ] = None
    per_process_gpu_memory_fraction: Annotated[
        float, flag("Of each GPU's memory, for TensorFlow; 0: it chooses.", min=0, max=1)
    ] = 0
    mixed_precision: Annotated[
        str, flag(f"{BFLOAT16}: let TensorFlow compute in it.", show_default=False)
    ] = ""
    platform_config_file: Annotated[
        Path | None,
        flag(
            "A PlatformConfigMap in text format, instead of all flags of TensorFlow and batching.",
            metavar="FILE",
        ),
    ] = None


@dataclass(frozen=True)
class Runtime:
    """What the flags of TensorFlow and batching say, or the platform file instead of them."""

    sessions: Sessions
    batching: BatchingOptions
    tags: tuple[str, ...]
    warm_up: WarmUpOptions
    warnings: tuple[str, ...] = ()


def runtime_of(flags: RuntimeFlags, batching: BatchingFlags, given: Collection[str]) -> Runtime:
    """Raises NotFound or InvalidArgument, naming the file or the flag."""
    if flags.platform_config_file is not None:
        return _of_platform(flags.platform_config_file, batching, given)
    return Runtime(
        _sessions(flags, given),
        batching_of(batching),
        tuple(flags.saved_model_tags.split(",")),
        WarmUpOptions(flags.enable_model_warmup, max(1, flags.num_request_iterations_for_warmup)),
    )


def _of_platform(path: Path, batching: BatchingFlags, given: Collection[str]) -> Runtime:
    with quiet_tensorflow():
        from shardserve.router.platform_config import read_platform_config  # noqa: PLC0415

    platform = read_platform_config(path)
    ignored = [
        f"--{name}: ignored, as {path} says it" for name in SAID_BY_PLATFORM if name in given
    ]
    unheeded = [f"{path}: {name} has no effect" for name in platform.unheeded]
    return Runtime(
        _with_defaults(platform.session),
        replace(BatchingOptions(platform.batching), stages_file=batching.stages_file),
        platform.tags,
        platform.warm_up,
        (*ignored, *unheeded),
    )


def _sessions(flags: RuntimeFlags, given: Collection[str]) -> Sessions:
    threads = flags.tensorflow_session_parallelism
    intra, inter = flags.tensorflow_intra_op_parallelism, flags.tensorflow_inter_op_parallelism
    if threads > 0 and intra > 0 and inter > 0:
        raise InvalidArgument(
            "--tensorflow_session_parallelism stands for both --tensorflow_intra_op_parallelism"
            " and --tensorflow_inter_op_parallelism: not all three of them"
        )
    found = _with_defaults(_session_config(flags))
    return Sessions(
        intra or threads or found.intra_op_threads,
        inter if "tensorflow_inter_op_parallelism" in given else threads or found.inter_op_threads,
        found.config,
    )


def _session_config(flags: RuntimeFlags) -> SessionConfig | None:
    """None without loading TensorFlow, where there is nothing to be set."""
    if flags.mixed_precision not in ("", BFLOAT16):
        raise InvalidArgument(f"--mixed_precision is {BFLOAT16}, not {flags.mixed_precision!r}")
    fraction, bfloat16 = flags.per_process_gpu_memory_fraction, flags.mixed_precision == BFLOAT16
    if flags.tensorflow_session_config_file is None and not fraction and not bfloat16:
        return None
    with quiet_tensorflow():
        from shardserve.router.session_config import read_session_config  # noqa: PLC0415

    return read_session_config(
        flags.tensorflow_session_config_file, gpu_memory=fraction, bfloat16=bfloat16
    )


def _with_defaults(found: SessionConfig | None) -> Sessions:
    if found is None:
        return Sessions()
    return Sessions(found.intra_op_threads, found.inter_op_threads or -1, found.serialized)
