"""docs/flags.md, from the flags themselves: `python -m shardserve.cluster.flags.reference`."""

from __future__ import annotations

import enum
import itertools
import sys

from shardserve.cluster.flags.group import Flag, flags_of
from shardserve.cluster.flags.serve import ServeFlags

#: Those of `tensorflow_model_server` 2.21.
TENSORFLOW_SERVING = frozenset(
    [
        "port",
        "grpc_socket_path",
        "rest_api_port",
        "rest_api_num_threads",
        "rest_api_timeout_in_ms",
        "rest_api_enable_cors_support",
        "enable_batching",
        "allow_version_labels_for_unavailable_models",
        "batching_parameters_file",
        "enable_per_model_batching_parameters",
        "model_config_file",
        "model_config_file_poll_wait_seconds",
        "model_name",
        "model_base_path",
        "num_load_threads",
        "num_unload_threads",
        "max_num_load_retries",
        "load_retry_interval_micros",
        "file_system_poll_wait_seconds",
        "flush_filesystem_caches",
        "tensorflow_session_parallelism",
        "tensorflow_session_config_file",
        "tensorflow_intra_op_parallelism",
        "tensorflow_inter_op_parallelism",
        "use_alts_credentials",
        "ssl_config_file",
        "platform_config_file",
        "per_process_gpu_memory_fraction",
        "saved_model_tags",
        "grpc_channel_arguments",
        "grpc_max_threads",
        "enable_model_warmup",
        "num_request_iterations_for_warmup",
        "version",
        "monitoring_config_file",
        "remove_unused_fields_from_bundle_metagraph",
        "prefer_tflite_model",
        "num_tflite_pools",
        "num_tflite_interpreters_per_pool",
        "enable_signature_method_name_check",
        "xla_cpu_compilation_enabled",
        "xla_gpu_compilation_enabled",
        "enable_profiler",
        "thread_pool_factory_config_file",
        "mixed_precision",
        "skip_initialize_tpu",
        "enable_grpc_healthcheck_service",
        "enable_serialization_as_tensor_content",
    ]
)

_HEAD = """\
# Flags

Of `shardserve serve` and of `tensorflow_model_server`, which differ only as
[compatibility](compatibility.md#flags) says. `--flag=value` and `--flag value` are the same; a
boolean alone is true, and takes its value after `=` only. Those marked TF are TensorFlow
Serving's. Written by `python -m shardserve.cluster.flags.reference`.
"""


def reference() -> str:
    """The page."""
    parts = [_HEAD]
    for panel, flags in itertools.groupby(flags_of(ServeFlags), lambda one: one.panel):
        parts.append(f"\n## {panel}\n\n| flag | | default | |\n|---|---|---|---|\n")
        parts += [_line(one) for one in flags]
    return "".join(parts)


def _line(one: Flag) -> str:
    mark = "TF" if one.name in TENSORFLOW_SERVING else ""
    return f"| `--{one.name}` | {mark} | {_default(one)} | {one.option.help} |\n"


def _default(one: Flag) -> str:
    """As the help shows it."""
    shown = one.option.show_default
    if isinstance(shown, str):
        return shown
    if one.default in (None, ""):
        return ""
    if isinstance(one.default, bool):
        return str(one.default).lower()
    value = one.default.value if isinstance(one.default, enum.Enum) else one.default
    return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
