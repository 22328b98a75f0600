"""TensorFlow Serving's platform file, and TensorFlow's session file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorflow.core.protobuf import config_pb2

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.batching.parameters import BatchingParameters
from shardserve.router.platform_config import PlatformConfig, read_platform_config
from shardserve.router.session import Parallelism
from shardserve.router.session_config import read_session_config
from shardserve.router.warm_up_options import WarmUpOptions

ADAPTER = "SavedModelBundleSourceAdapterConfig"


def read(tmp_path: Path, fields: str, adapter: str = ADAPTER, platform: str = "tensorflow"):
    inner = "config" if adapter == "SessionBundleSourceAdapterConfig" else "legacy_config"
    path = tmp_path / "platform.config"
    path.write_text(
        f'platform_configs {{ key: "{platform}" value {{ source_adapter_config {{\n'
        f"[type.googleapis.com/tensorflow.serving.{adapter}] {{ {inner} {{ {fields} }} }}\n"
        "} } }\n"
    )
    return read_platform_config(path)


def test_an_empty_one_batches_and_warms_up_nothing(tmp_path: Path) -> None:
    found: PlatformConfig = read(tmp_path, "")

    assert (found.batching, found.tags, found.unheeded) == (None, ("serve",), ())
    assert found.warm_up == WarmUpOptions(enabled=False)
    assert found.session.serialized == b""


@pytest.mark.parametrize("adapter", [ADAPTER, "SessionBundleSourceAdapterConfig"])
def test_what_means_something_here_is_heeded_in_either_adapter(
    adapter: str, tmp_path: Path
) -> None:
    fields = """
        session_config { intra_op_parallelism_threads: 3 gpu_options { allow_growth: true } }
        batching_parameters { max_batch_size { value: 8 } allowed_batch_sizes: [2, 8] }
        saved_model_tags: ["serve", "gpu"]
        enable_model_warmup: true
        model_warmup_options {
          num_request_iterations { value: 4 } num_model_warmup_threads { value: 2 }
        }
    """
    found = read(tmp_path, fields, adapter)

    assert found.session.intra_op_threads == 3
    assert config_pb2.ConfigProto.FromString(found.session.serialized).gpu_options.allow_growth
    assert found.batching == BatchingParameters(max_batch_size=8, allowed_batch_sizes=(2, 8))
    assert found.tags == ("serve", "gpu")
    assert found.warm_up == WarmUpOptions(enabled=True, iterations=4, threads=2)
    assert found.unheeded == ()


def test_what_means_nothing_here_is_named(tmp_path: Path) -> None:
    fields = """
        session_run_load_threadpool_index { value: 1 }
        experimental_fixed_input_tensors { name: "x" tensor { dtype: DT_INT32 int_val: 3 } }
        experimental_transient_ram_bytes_during_load: 7
        model_warmup_options { enable_all_batch_sizes_warmup: true }
        num_tflite_pools: 2
    """
    assert read(tmp_path, fields).unheeded == (
        "experimental_fixed_input_tensors",
        "experimental_transient_ram_bytes_during_load",
        "num_tflite_pools",
        "session_run_load_threadpool_index",
        "model_warmup_options.enable_all_batch_sizes_warmup",
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fields": "nonsense: 1"}, r"2:\d+.*nonsense"),
        ({"fields": "batching_parameters { max_batch_size { value: -1 } }"}, "max_batch_size"),
        ({"fields": "", "platform": "other"}, "no platform_configs of 'tensorflow'"),
        ({"fields": "", "adapter": "HashmapSourceAdapterConfig"}, "HashmapSourceAdapterConfig"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(settings, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=rf"platform\.config: .*{said}"):
        read(tmp_path, **settings)
    with pytest.raises(NotFound, match="absent"):
        read_platform_config(tmp_path / "absent")


def test_sessions_are_made_as_the_file_says_but_for_their_threads(tmp_path: Path) -> None:
    path = tmp_path / "session.config"
    path.write_text("intra_op_parallelism_threads: 7 gpu_options { allow_growth: true }")
    found = read_session_config(path, gpu_memory=0.25, bfloat16=True)

    made = Parallelism(2, -1, found.serialized).config()

    assert (made.intra_op_parallelism_threads, made.inter_op_parallelism_threads) == (2, -1)
    assert made.gpu_options.allow_growth
    assert made.gpu_options.per_process_gpu_memory_fraction == 0.25
    assert made.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 == 1
    assert made.allow_soft_placement


def test_what_does_not_parse_is_said_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "session.config"
    path.write_text("intra_op_parallelism_threads: 7\n  nonsense: 1")
    with pytest.raises(InvalidArgument, match=r"session\.config: .*ConfigProto: 2:3"):
        read_session_config(path)
