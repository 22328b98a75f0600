"""Flags of TensorFlow Serving that mean nothing here: taken, so that command lines work on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

from shardserve.batching.errors import Unimplemented
from shardserve.cluster.flags.group import flag

_XLA = "XLA is not used; --tensorflow_session_config_file may ask for it"

#: Why each of them does nothing, for whoever switches it on.
WHY = {
    "num_unload_threads": "versions are unloaded beside each other, without threads",
    "flush_filesystem_caches": "files are read past caches of TensorFlow's",
    "remove_unused_fields_from_bundle_metagraph": "the graph is not kept with the model",
    "prefer_tflite_model": "the SavedModel is served, never a TensorFlow Lite model",
    "num_tflite_pools": "TensorFlow Lite models are not served",
    "num_tflite_interpreters_per_pool": "TensorFlow Lite models are not served",
    "xla_cpu_compilation_enabled": _XLA,
    "xla_gpu_compilation_enabled": _XLA,
    "skip_initialize_tpu": "there are no TPUs",
    "thread_pool_factory_config_file": "thread pools are not made by factories",
}


@dataclass(frozen=True)
class UnusedFlags:
    PANEL: ClassVar[str] = "Without effect, with a warning"

    num_unload_threads: Annotated[int, flag("Unloading takes no threads.")] = 0
    flush_filesystem_caches: Annotated[bool, flag("There are none to flush.")] = False
    remove_unused_fields_from_bundle_metagraph: Annotated[bool, flag("It is not kept.")] = False
    prefer_tflite_model: Annotated[bool, flag("TensorFlow Lite is not served.")] = False
    num_tflite_pools: Annotated[int, flag("TensorFlow Lite is not served.")] = 0
    num_tflite_interpreters_per_pool: Annotated[int, flag("TensorFlow Lite is not served.")] = 0
    xla_cpu_compilation_enabled: Annotated[bool, flag("XLA is not used.")] = False
    xla_gpu_compilation_enabled: Annotated[bool, flag("XLA is not used.")] = False
    skip_initialize_tpu: Annotated[bool, flag("There are no TPUs.")] = False
    thread_pool_factory_config_file: Annotated[str, flag("There are no factories.")] = ""
    use_alts_credentials: Annotated[
        bool, flag("Refused: ALTS is not served; --ssl_config_file is for encryption.")
    ] = False


def refuse_unused(flags: UnusedFlags) -> None:
    """Raise Unimplemented for what must not be left out silently: nobody serves in the clear who
    asked for encryption."""
    if flags.use_alts_credentials:
        raise Unimplemented("--use_alts_credentials: ALTS is not served; see --ssl_config_file")


def warnings_of_unused(flags: UnusedFlags, given: Collection[str]) -> list[str]:
    """A line for each flag that asks for something."""
    asked = [one.name for one in fields(flags) if one.name in given and getattr(flags, one.name)]
    return [f"--{name} has no effect: {WHY[name]}" for name in asked if name in WHY]
