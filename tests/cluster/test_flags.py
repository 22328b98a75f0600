"""Flags in TensorFlow Serving's spelling, and the options that they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given as drawn
from hypothesis import strategies as st
from typer.exceptions import TyperException

from shardserve.batching.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ServingError,
    Unimplemented,
)
from shardserve.cluster.flags.group import flags_of, given, takes
from shardserve.cluster.flags.serve import ServeFlags, options_of
from shardserve.cluster.flags.words import respelled
from shardserve.cluster.front import SHARDSERVE, TENSORFLOW_MODEL_SERVER, Front
from shardserve.cluster.lifecycle import Retries, resource_preserving
from shardserve.cluster.model_options import read_model_options
from shardserve.cluster.options import Engine, ServeOptions
from shardserve.cluster.serve_command import context_settings

FLAGS = {one.name: one for one in flags_of(ServeFlags)}

#: Every flag of the original, with a value that it takes.
ORIGINAL = {
    "port": "8500",
    "grpc_socket_path": "/run/models.sock",
    "rest_api_port": "8501",
    "rest_api_num_threads": "8",
    "rest_api_timeout_in_ms": "1000",
    "rest_api_enable_cors_support": "true",
    "enable_batching": "true",
    "allow_version_labels_for_unavailable_models": "true",
    "batching_parameters_file": "",
    "enable_per_model_batching_parameters": "false",
    "model_config_file": "",
    "model_config_file_poll_wait_seconds": "0",
    "model_name": "m",
    "model_base_path": "/models/m",
    "num_load_threads": "2",
    "num_unload_threads": "0",
    "max_num_load_retries": "3",
    "load_retry_interval_micros": "1000000",
    "file_system_poll_wait_seconds": "2",
    "flush_filesystem_caches": "true",
    "tensorflow_session_parallelism": "2",
    "tensorflow_session_config_file": "",
    "tensorflow_intra_op_parallelism": "0",
    "tensorflow_inter_op_parallelism": "0",
    "use_alts_credentials": "false",
    "ssl_config_file": "",
    "platform_config_file": "",
    "per_process_gpu_memory_fraction": "0",
    "saved_model_tags": "serve,gpu",
    "grpc_channel_arguments": "grpc.max_connection_age_ms=2000,grpc.lb_policy_name=x",
    "grpc_max_threads": "16",
    "enable_model_warmup": "true",
    "num_request_iterations_for_warmup": "2",
    "version": "false",
    "monitoring_config_file": "",
    "remove_unused_fields_from_bundle_metagraph": "true",
    "prefer_tflite_model": "false",
    "num_tflite_pools": "1",
    "num_tflite_interpreters_per_pool": "1",
    "enable_signature_method_name_check": "true",
    "xla_cpu_compilation_enabled": "false",
    "xla_gpu_compilation_enabled": "false",
    "enable_profiler": "true",
    "thread_pool_factory_config_file": "",
    "mixed_precision": "",
    "skip_initialize_tpu": "false",
    "enable_grpc_healthcheck_service": "true",
    "enable_serialization_as_tensor_content": "true",
}


def parsed(*words: str, front: Front = SHARDSERVE) -> tuple[ServeOptions, list[str]]:
    """The options of a command line, and its warnings."""
    found: list[tuple[ServeOptions, list[str]]] = []

    @takes(ServeFlags)
    def command(context: typer.Context, flags: ServeFlags) -> None:
        found.append(options_of(flags, given(context), front))

    app = typer.Typer(add_completion=False)
    app.command(context_settings=context_settings(front))(command)
    app(respelled(words, FLAGS.values()), standalone_mode=False)
    return found[0]


def options(*words: str, **settings: Any) -> ServeOptions:
    return parsed("--model_base_path=/models/m", *words, **settings)[0]


def test_every_flag_of_the_original_is_taken_at_once() -> None:
    said = [f"--{name}={value}" for name, value in ORIGINAL.items()]

    taken, warnings = parsed(*said, front=TENSORFLOW_MODEL_SERVER)

    doors = taken.doors
    assert (doors.grpc_port, doors.rest_port, doors.rest_timeout) == (8500, 8501, 1.0)
    assert doors.grpc_socket == "/run/models.sock"
    assert all((doors.cors, doors.tensor_content, doors.check_method_names, doors.profiler))
    assert (doors.grpc_max_rpcs, doors.rest_max_requests) == (16, 8)
    assert doors.grpc_channel_arguments == (
        ("grpc.max_connection_age_ms", 2000),
        ("grpc.lb_policy_name", "x"),
    )
    assert (doors.sessions.intra_op_threads, doors.sessions.inter_op_threads) == (2, 0)
    assert taken.manager.retries == Retries(3, 1.0)
    assert (taken.manager.loads, taken.manager.poll_seconds) == (2, 2.0)
    assert taken.manager.allow_labels_for_unavailable
    assert taken.defaults.plan.tags == ("serve", "gpu")
    assert taken.defaults.plan.batching.parameters is not None
    assert (taken.warm_up.enabled, taken.warm_up.iterations) == (True, 2)
    assert {line.split(" ")[0] for line in warnings} == {
        "--flush_filesystem_caches",
        "--num_tflite_interpreters_per_pool",
        "--num_tflite_pools",
        "--remove_unused_fields_from_bundle_metagraph",
    }


def test_a_value_may_come_after_a_space_as_well() -> None:
    """But for a boolean, as in the original, and for nothing, which is not set."""
    said = {k: v for k, v in ORIGINAL.items() if v and not FLAGS[k].is_boolean}

    with_spaces = [word for name, value in said.items() for word in (f"--{name}", value)]
    assert options(*with_spaces) == options(*(f"--{k}={v}" for k, v in said.items()))


@drawn(st.sampled_from([f for f in FLAGS.values() if f.is_boolean]), st.booleans())
def test_a_boolean_is_true_bare_or_as_tensorflow_and_people_write_it(flag, value) -> None:
    spellings = ("true", "True", "1") if value else ("false", "FALSE", "0")
    expected = [f"--{flag.name}={str(value).lower()}"]
    for spelling in spellings:
        assert respelled([f"--{flag.name}={spelling}"], [flag]) == expected
    assert respelled([f"--{flag.name}"], [flag]) == [f"--{flag.name}=true"]


@pytest.mark.parametrize("value", ["perhaps", "", "yes", "2"])
def test_what_is_neither_true_nor_false_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match="--enable_batching takes true or false"):
        options(f"--enable_batching={value}")


def test_the_last_of_a_flag_that_is_repeated_counts() -> None:
    assert options("--port=1", "--port=2").doors.grpc_port == 2


def test_defaults_are_the_originals_but_for_those_that_are_documented() -> None:
    taken = options(front=TENSORFLOW_MODEL_SERVER)

    assert taken.models.configs[0].name == "default"
    assert (taken.doors.host, taken.doors.grpc_port, taken.doors.rest_port) == ("", 8500, 0)
    assert taken.manager.retries == Retries(5, 60.0)
    assert (taken.manager.loads, taken.manager.poll_seconds) == (4, 1.0)
    assert taken.warm_up.enabled
    assert taken.doors.monitoring.path == "/monitoring/prometheus/metrics"


@pytest.mark.parametrize(
    ("words", "front", "engine"),
    [
        ((), SHARDSERVE, Engine.RAY),
        ((), TENSORFLOW_MODEL_SERVER, Engine.LOCAL),
        (("--shards=2",), TENSORFLOW_MODEL_SERVER, Engine.RAY),
        (("--address=auto",), TENSORFLOW_MODEL_SERVER, Engine.RAY),
        (("--shards=2", "--engine=local"), TENSORFLOW_MODEL_SERVER, Engine.LOCAL),
        (("--enable_batching",), TENSORFLOW_MODEL_SERVER, Engine.LOCAL),
    ],
)
def test_the_original_is_one_process_until_shards_are_asked_for(words, front, engine) -> None:
    assert options(*words, front=front).engine is engine


def test_a_file_of_models_stands_for_the_flags_of_one(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(
        'model_config_list { config { name: "a" base_path: "/m/a" model_platform: "tensorflow" } }'
    )

    taken, warnings = parsed(
        f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=5", "--model_name=x"
    )

    assert [model.name for model in taken.models.configs] == ["a"]
    assert (taken.models.config_file, taken.models.poll_seconds) == (file, 5.0)
    assert warnings == ["--model_name: ignored, as there is a --model_config_file"]


def test_base_paths_are_waited_for_in_files_and_by_the_originals_name(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text("model_config_list {}")

    assert not options().models.are_waited_for
    assert options(front=TENSORFLOW_MODEL_SERVER).models.are_waited_for
    assert parsed(f"--model_config_file={file}")[0].models.are_waited_for


def test_a_function_of_pythons_is_served_only_if_it_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    platform = "python:my.module:load"
    file.write_text(
        "model_config_list { config {"
        f' name: "a" base_path: "/m" model_platform: "{platform}" }} }}'
    )
    words = (f"--model_config_file={file}", "--allowed_python_servables=x:y,my.module:load")

    assert parsed(*words)[0].models.python_servables == {"x:y", "my.module:load"}
    with pytest.raises(PermissionDenied, match=r"model a: my\.module:load is not among"):
        parsed(words[0])


def test_pickles_are_read_only_if_that_is_allowed() -> None:
    assert not options().defaults.plan.allow_pickle
    assert options("--allow_pickle").defaults.plan.allow_pickle


def test_a_base_path_may_be_a_uri_of_a_file() -> None:
    assert parsed("--model_base_path=file:///m/x")[0].models.configs[0].base_path == Path("/m/x")
    local = parsed("--model_base_path=file://localhost/m/x")[0]
    assert local.models.configs[0].base_path == Path("/m/x")
    with pytest.raises(InvalidArgument, match="host other is not read"):
        parsed("--model_base_path=file://other/m/x")
    with pytest.raises(InvalidArgument, match="gs is not read from"):
        parsed("--model_base_path=gs://bucket/m")


def test_types_are_trusted_only_if_they_are_named(tmp_path: Path) -> None:
    file = tmp_path / "options"
    file.write_text(
        'model_options { name: "a" trusted_types: "m.A" trusted_types: "m.B" }'
        ' model_options { name: "b" }'
    )
    assert options().defaults.plan.trusted_types == ()
    assert options("--trusted_types=m.T,n.U").defaults.plan.trusted_types == ("m.T", "n.U")

    own = read_model_options(file, options("--trusted_types=m.T").defaults)
    assert own["a"].plan.trusted_types == ("m.A", "m.B")
    assert own["b"].plan.trusted_types == ("m.T",)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", [name for name, one in FLAGS.items() if one.kind is float])
def test_a_number_is_finite(name: str, number: str) -> None:
    with pytest.raises(TyperException) as refused:
        parsed("--model_base_path=/m", f"--{name}={number}")
    assert f"--{name}" in refused.value.format_message()


def test_resource_preserving_is_a_flag_of_ours() -> None:
    assert options("--resource_preserving").manager.policy is resource_preserving


def test_threads_of_sessions_may_be_said_together_or_one_by_one_but_not_both() -> None:
    def threads(*words: str) -> tuple[int, int]:
        doors = options(*words).doors
        return doors.sessions.intra_op_threads, doors.sessions.inter_op_threads

    both, intra, inter = (
        f"--tensorflow_{kind}_parallelism=3" for kind in ("session", "intra_op", "inter_op")
    )
    assert threads() == (0, -1)
    assert threads(both) == (3, 3)
    assert threads(both, "--tensorflow_inter_op_parallelism=0") == (3, 0)
    assert threads(intra, inter) == (3, 3)
    with pytest.raises(InvalidArgument, match="not all three"):
        threads(both, intra, inter)


def test_a_session_config_is_read_and_flags_count_before_it(tmp_path: Path) -> None:
    from tensorflow.core.protobuf import config_pb2

    file = tmp_path / "session.config"
    file.write_text("intra_op_parallelism_threads: 7 isolate_session_state: true")
    flag = f"--tensorflow_session_config_file={file}"

    doors = options(flag, "--per_process_gpu_memory_fraction=0.5").doors
    config = config_pb2.ConfigProto.FromString(doors.sessions.config)

    assert (doors.sessions.intra_op_threads, doors.sessions.inter_op_threads) == (7, -1)
    assert config.isolate_session_state
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.5
    assert options(flag, "--tensorflow_intra_op_parallelism=2").doors.sessions.intra_op_threads == 2


def test_bfloat16_is_asked_of_tensorflow() -> None:
    from tensorflow.core.protobuf import config_pb2

    config = config_pb2.ConfigProto.FromString(
        options("--mixed_precision=bfloat16").doors.sessions.config
    )
    assert config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 == 1


PLATFORM = """
platform_configs { key: "tensorflow" value { source_adapter_config {
  [type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] {
    legacy_config {
      saved_model_tags: "gpu"
      batching_parameters { max_batch_size { value: 64 } }
      session_config { inter_op_parallelism_threads: 5 }
      session_run_load_threadpool_index { value: 1 }
    }
  }
} } }
"""


def test_a_platform_file_stands_for_the_flags_of_tensorflow_and_batching(tmp_path: Path) -> None:
    file = tmp_path / "platform.config"
    file.write_text(PLATFORM)

    taken, warnings = parsed(
        "--model_base_path=/m", f"--platform_config_file={file}", "--saved_model_tags=serve"
    )

    batching = taken.defaults.plan.batching.parameters
    assert batching is not None
    assert batching.max_batch_size == 64
    assert taken.defaults.plan.tags == ("gpu",)
    assert taken.doors.sessions.inter_op_threads == 5
    assert not taken.warm_up.enabled
    assert warnings == [
        f"--saved_model_tags: ignored, as {file} says it",
        f"{file}: session_run_load_threadpool_index has no effect",
    ]


def test_the_path_of_the_metrics_page_is_the_monitoring_files(tmp_path: Path) -> None:
    file = tmp_path / "monitoring.config"
    file.write_text('prometheus_config { enable: true path: "/metrics" }')

    assert options(f"--monitoring_config_file={file}").doors.monitoring.path == "/metrics"


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ((), InvalidArgument, "--model_base_path or --model_config_file"),
        (("--model_base_path=/m", "--model_name="), InvalidArgument, "must not be empty"),
        (("--model_base_path=/m", "--model_name=a/b"), InvalidArgument, "'a/b'"),
        (("--model_config_file={absent}",), NotFound, "{absent}"),
        (("--model_config_file={broken}",), InvalidArgument, "{broken}: .* 2:3"),
        (("--model_base_path=/m", "--model_options_file={broken}"), InvalidArgument, "2:3"),
        (("--model_base_path=/m", "--ssl_config_file={broken}"), InvalidArgument, "SSLConfig"),
        (("--model_base_path=/m", "--monitoring_config_file={broken}"), InvalidArgument, "2:3"),
        (("--model_base_path=/m", "--platform_config_file={broken}"), InvalidArgument, "2:3"),
        (
            ("--model_base_path=/m", "--tensorflow_session_config_file={broken}"),
            InvalidArgument,
            "2:3",
        ),
        (
            ("--model_base_path=/m", "--enable_batching", "--batching_parameters_file={broken}"),
            InvalidArgument,
            "2:3",
        ),
        (
            ("--model_base_path=/m", "--allowed_model_roots=/a,/b"),
            PermissionDenied,
            "model default: /m is outside of --allowed_model_roots, /a, /b",
        ),
        (("--model_base_path=/m", "--grpc_channel_arguments=x"), InvalidArgument, "KEY=VALUE"),
        (("--model_base_path=/m", "--mixed_precision=int8"), InvalidArgument, "bfloat16"),
        (("--model_base_path=/m", "--use_alts_credentials"), Unimplemented, "ALTS"),
        (("--model_base_path=/m", "--port=0"), InvalidArgument, "--grpc_socket_path"),
        (("--model_base_path=/m", "--rest_api_port=8500"), InvalidArgument, "are both 8500"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag_or_its_place_in_a_file(
    words: tuple[str, ...], error: type[ServingError], said: str, tmp_path: Path
) -> None:
    broken, absent = tmp_path / "broken", tmp_path / "absent"
    broken.write_text("# What follows is no field.\n  nonsense: 1\n")

    with pytest.raises(error, match=said.format(broken=broken, absent=absent)):
        parsed(*(word.format(broken=broken, absent=absent) for word in words))


def test_unknown_flags_are_mistakes_but_to_the_originals_name() -> None:
    with pytest.raises(TyperException, match="--shard"):
        options("--shard=4")
    options("--tensorflow_is_great=4", front=TENSORFLOW_MODEL_SERVER)


def test_with_certificates_ray_serves_ingress_stays_shut_unless_its_port_is_given(
    ssl_config: Path,
) -> None:
    words = ("--model_base_path=/m", f"--ssl_config_file={ssl_config}")

    taken, warnings = parsed(*words)
    assert (taken.ray.has_ingress, warnings) == (False, [])

    taken, warnings = parsed(*words, "--serve_http_port=8080")
    assert taken.ray.serve_http_port == 8080
    assert warnings == [
        "--serve_http_port: Ray Serve's ingress, HTTP and gRPC, is not encrypted",
    ]
    assert options("--serve_http_port=0").ray.has_ingress is False
