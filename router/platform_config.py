"""TensorFlow Serving's --platform_config_file: what it says of the platform `tensorflow`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import config_pb2, named_tensor_pb2
from tensorflow_serving.config import platform_config_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import FIELDS, BatchingParameters, parameters_of
from shardserve.batching.text_messages import message_classes, parse_message, read_text
from shardserve.router.session_config import SessionConfig, session_config_of
from shardserve.router.warm_up_options import WarmUpOptions

_PLATFORM = "tensorflow"
_HEEDED = frozenset(
    {
        "session_config",
        "batching_parameters",
        "saved_model_tags",
        "enable_model_warmup",
        "model_warmup_options",
    }
)
_HEEDED_OF_WARM_UP = frozenset({"num_request_iterations", "num_model_warmup_threads"})

_MESSAGES = message_classes(
    "tensorflow.serving",
    {
        "BatchingParameters": FIELDS,
        "ModelWarmupOptions": {
            "num_request_iterations": "Int32Value",
            "num_model_warmup_threads": "Int32Value",
            "enable_all_batch_sizes_warmup": "bool",
        },
        "SessionBundleConfig": {
            "session_target": "string",
            "session_config": "tensorflow.ConfigProto",
            "batching_parameters": "BatchingParameters",
            "session_run_load_threadpool_index": "Int32Value",
            "experimental_transient_ram_bytes_during_load": "uint64",
            "saved_model_tags": "repeated string",
            "experimental_fixed_input_tensors": "repeated tensorflow.NamedTensorProto",
            "enable_model_warmup": "bool",
            "model_warmup_options": "ModelWarmupOptions",
            "enable_session_metadata": "bool",
            "remove_unused_fields_from_bundle_metagraph": "bool",
            "prefer_tflite_model": "bool",
            "num_tflite_interpreters_per_pool": "int32",
            "num_tflite_pools": "int32",
            "wrap_session_with_no_threading_params": "bool",
            "resource_estimation_uses_validation_result": "bool",
            "in_graph_batching_parameters": "BatchingParameters",
        },
        "SavedModelBundleSourceAdapterConfig": {"legacy_config": "SessionBundleConfig"},
        "SessionBundleSourceAdapterConfig": {"config": "SessionBundleConfig"},
    },
    imports=(config_pb2.DESCRIPTOR, named_tensor_pb2.DESCRIPTOR),
)


@dataclass(frozen=True)
class PlatformConfig:
    """What is heeded of the file, and the names of fields that are set and have no effect here."""

    session: SessionConfig
    batching: BatchingParameters | None = None
    tags: tuple[str, ...] = ("serve",)
    warm_up: WarmUpOptions = field(default_factory=lambda: WarmUpOptions(enabled=False))
    unheeded: tuple[str, ...] = ()


def read_platform_config(path: Path) -> PlatformConfig:
    """Raises NotFound, or InvalidArgument: with line and column for what does not parse.

    As in TensorFlow Serving nothing is warmed up unless the file says so.
    """
    source = str(path)
    kind = _MESSAGES["SavedModelBundleSourceAdapterConfig"]
    configs = parse_message(
        read_text(path),
        platform_config_pb2.PlatformConfigMap,
        source,
        pool=kind.DESCRIPTOR.file.pool,
    ).platform_configs
    if _PLATFORM not in configs:
        raise InvalidArgument(f"{source}: there is no platform_configs of {_PLATFORM!r}")
    others = [f"platform_configs of {name!r}" for name in configs if name != _PLATFORM]
    return _of_bundle(_unpacked(configs[_PLATFORM].source_adapter_config, source), others, source)


def _unpacked(packed: Any, source: str) -> Any:
    """The SessionBundleConfig in either of its adapters."""
    for name, field_name in (
        ("SavedModelBundleSourceAdapterConfig", "legacy_config"),
        ("SessionBundleSourceAdapterConfig", "config"),
    ):
        if packed.type_url.endswith(f"/tensorflow.serving.{name}"):
            return getattr(_MESSAGES[name].FromString(packed.value), field_name)
    raise InvalidArgument(f"{source}: a source_adapter_config of {packed.type_url!r} is not known")


def _of_bundle(bundle: Any, others: list[str], source: str) -> PlatformConfig:
    fields = {descriptor.name for descriptor, _ in bundle.ListFields()}
    warm_up = bundle.model_warmup_options
    of_warm_up = {descriptor.name for descriptor, _ in warm_up.ListFields()}
    # The message is of another pool than TensorFlow's own class.
    session = config_pb2.ConfigProto.FromString(bundle.session_config.SerializeToString())
    batches = "batching_parameters" in fields
    return PlatformConfig(
        session_config_of(session),
        parameters_of(bundle.batching_parameters, source) if batches else None,
        tuple(bundle.saved_model_tags) or ("serve",),
        WarmUpOptions(
            bundle.enable_model_warmup,
            max(1, warm_up.num_request_iterations.value),
            max(1, warm_up.num_model_warmup_threads.value),
        ),
        (
            *others,
            *sorted(fields - _HEEDED),
            *(f"model_warmup_options.{name}" for name in sorted(of_warm_up - _HEEDED_OF_WARM_UP)),
        ),
    )
