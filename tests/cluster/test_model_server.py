"""The command `tensorflow_model_server`: the original's command lines, and its ways to fail."""

from __future__ import annotations

import asyncio
import http.client
import importlib.metadata
import json
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
import trustme
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from shardserve.cluster.cli import tensorflow_model_server
from shardserve.cluster.ports import free_ports
from tests.cluster.conftest import ssl_config_text
from tests.cluster.servers import Server, model_server
from tests.contract.models import export_half_plus_two

MODEL = "half_plus_two"
AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        tensorflow_model_server(arguments)
    return int(ended.value.code or 0)


def test_the_version_is_two_lines_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0

    server, library = capsys.readouterr().out.splitlines()
    assert server.startswith("TensorFlow ModelServer: 2.21.0+shardserve.")
    assert library == f"TensorFlow Library: {importlib.metadata.version('tensorflow')}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "INVALID_ARGUMENT: --model_base_path or --model_config_file has to be given"),
        (
            ("--model_base_path=/m", "--port=0"),
            "INVALID_ARGUMENT: --port and --rest_api_port are both 0",
        ),
        (
            ("--model_base_path=/m", "--batching_parameters_file=/f"),
            "INVALID_ARGUMENT: --batching_parameters_file needs --enable_batching",
        ),
        (("--model_config_file=/absent",), "NOT_FOUND: /absent: No such file or directory"),
    ],
)
def test_what_keeps_it_from_serving_is_one_line_on_standard_output(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 255

    out, err = capsys.readouterr()
    assert out.startswith(f"Failed to start server. Error: {said}")
    assert out.count("\n") == 1
    assert err == ""


def test_a_socket_on_which_somebody_listens_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        port = f"--port={free_ports(1)[0]}"
        assert run("--model_base_path=/m", port, f"--grpc_socket_path={path}") == 255

    said = f"UNAVAILABLE: cannot listen on {path}: somebody else does"
    assert capsys.readouterr().out == f"Failed to start server. Error: {said}\n"


def test_a_value_that_is_none_ends_it_and_an_unknown_flag_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--port=x") == 255
    assert "--port" in capsys.readouterr().err

    assert run("--tensorflow_is_great", "extra", "--enable_profiler", "--port=0") == 255
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "unknown argument: --tensorflow_is_great",
        "unknown argument: extra",
    ]
    assert out.startswith("Failed to start server.")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA
) -> Iterator[tuple[Server, Path]]:
    """Mutual TLS on both wires and a socket, over a command line of the original's flags."""
    root = tmp_path_factory.mktemp("model_server")
    export_half_plus_two(root / MODEL / "1")
    (root / MODEL / "1" / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(
        str(root / MODEL / "1" / "assets.extra" / "tf_serving_warmup_requests")
    ) as warm_up:
        warm_up.write(prediction_log_pb2.PredictionLog().SerializeToString())
    own = authority.issue_cert("localhost", "127.0.0.1")
    more = f"custom_ca: {json.dumps(authority.cert_pem.bytes().decode())} client_verify: true"
    files = {
        "ssl": ssl_config_text(
            own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes(), f"\n{more}"
        ),
        "monitoring": 'prometheus_config { enable: true path: "/metrics" }',
    }
    for name, text in files.items():
        (root / f"{name}.config").write_text(text)
    flags = (
        f"--model_name={MODEL}",
        f"--model_base_path={root / MODEL}",
        f"--ssl_config_file={root / 'ssl.config'}",
        f"--monitoring_config_file={root / 'monitoring.config'}",
        f"--grpc_socket_path={root / 's'}",
        f"--allowed_model_roots={root}",
        "--rest_api_enable_cors_support",
        "--enable_serialization_as_tensor_content=true",
        "--tensorflow_session_parallelism=1",
        "--prefer_tflite_model=true",
    )
    with model_server(*flags) as started:
        assert started.is_ready(), started.said
        yield started, root
        assert started.end(signal.SIGTERM) == 0
        assert not (root / "s").exists()


@pytest.fixture
def client(authority: trustme.CA, tmp_path: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    issued = authority.issue_cert("client")
    (tmp_path / "client.pem").write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    context.load_cert_chain(tmp_path / "client.pem")
    return context


def test_a_base_path_that_is_missing_is_waited_for(tmp_path: Path) -> None:
    flags = (f"--model_name={MODEL}", f"--model_base_path={tmp_path / MODEL}")
    with model_server(*flags, "--file_system_poll_wait_seconds=0.05") as started:
        assert started.process.stderr is not None
        for line in started.process.stderr:
            if str(tmp_path / MODEL) in line:
                break
        export_half_plus_two(tmp_path / "new" / "1")
        (tmp_path / "new").rename(tmp_path / MODEL)

        assert started.is_ready(), started.said
        assert started.end(signal.SIGTERM) == 0


def test_its_warnings_come_before_it_serves(served: tuple[Server, Path]) -> None:
    assert "warning: --prefer_tflite_model has no effect" in served[0].said


def test_nothing_is_said_at_the_start_but_what_concerns_who_starts_it(
    served: tuple[Server, Path],
) -> None:
    start, _, _ = served[0].said.partition("Running gRPC")
    lines = [line for line in start.splitlines() if line]
    events = [json.loads(line)["event"] for line in lines if line.startswith("{")]

    assert events == ["version loaded"]
    assert {line.partition(":")[0] for line in lines if not line.startswith("{")} <= {
        "warning",
        "planning",
        "loading the model",
        "the model is loaded",
    }


def test_what_waits_for_the_originals_lines_finds_them(served: tuple[Server, Path]) -> None:
    server, _ = served
    assert f"Running gRPC ModelServer at 0.0.0.0:{server.grpc} ...\n" in server.said
    assert f"Exporting HTTP/REST API at:localhost:{server.rest} ...\n" in server.said


def test_rest_is_served_over_tls_with_the_headers_and_the_page_that_were_asked_for(
    served: tuple[Server, Path], client: ssl.SSLContext
) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", served[0].rest, context=client)
    connection.request("POST", f"/v1/models/{MODEL}:predict", b'{"instances": [1, 2]}')
    reply = connection.getresponse()
    assert json.loads(reply.read()) == {"predictions": [2.5, 3.0]}
    assert reply.getheader("access-control-allow-origin") == "*"

    connection.request("GET", "/metrics")
    assert b":tensorflow:serving:request_count" in connection.getresponse().read()
    connection.close()


def secure_channel(
    served: tuple[Server, Path], authority: trustme.CA, address: str
) -> grpc.aio.Channel:
    """To an address with "{port}" or "{root}" in it, with a certificate that is good."""
    started, root = served
    issued = authority.issue_cert("client")
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        issued.private_key_pem.bytes(),
        issued.cert_chain_pems[0].bytes(),
    )
    options = [("grpc.ssl_target_name_override", "localhost")]
    return grpc.aio.secure_channel(
        address.format(port=started.grpc, root=root), credentials, options
    )


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "unix:{root}/s"])
async def test_grpc_is_served_over_tls_on_port_and_socket(
    served: tuple[Server, Path], authority: trustme.CA, address: str
) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = MODEL
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1, 2])))
    async with asyncio.timeout(30), secure_channel(served, authority, address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        y = (await stub.Predict(request)).outputs["y"]

    assert y.tensor_content == np.float32([2.5, 3.0]).tobytes()
    assert not y.float_val


@pytest.mark.parametrize(
    ("path", "platform", "said"),
    [
        ("/etc", "tensorflow", "model evil: /etc is outside of --allowed_model_roots"),
        ("{root}/out", "tensorflow", "/out is outside of --allowed_model_roots"),
        ("{root}/../../x", "tensorflow", "is outside of --allowed_model_roots"),
        ("{root}", "python:os:system", "os:system is not among --allowed_python_servables"),
    ],
)
async def test_a_reload_request_leads_neither_out_of_the_roots_nor_to_code(
    served: tuple[Server, Path], authority: trustme.CA, path: str, platform: str, said: str
) -> None:
    root = served[1]
    if not (root / "out").is_symlink():
        (root / "out").symlink_to("/etc")
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(
        name="evil", base_path=path.format(root=root), model_platform=platform
    )
    async with asyncio.timeout(30), secure_channel(served, authority, "unix:{root}/s") as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await models.HandleReloadConfigRequest(request)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert said in (refused.value.details() or "")

        asked = get_model_status_pb2.GetModelStatusRequest()
        asked.model_spec.name = MODEL
        status = await models.GetModelStatus(asked)
        assert [one.state for one in status.model_version_status] == [AVAILABLE]


def config_text(*names: str, root: Path) -> str:
    models = (
        f'config {{ name: "{name}" base_path: "{root / name}" model_platform: "tensorflow" }}'
        for name in names
    )
    return f"model_config_list {{ {' '.join(models)} }}"


def test_a_file_of_models_is_followed_and_one_that_does_not_parse_changes_nothing(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        export_half_plus_two(tmp_path / name / "1")
    file = tmp_path / "models.config"
    file.write_text(config_text("a", root=tmp_path))
    flags = (f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=0.05")
    with model_server(*flags) as started:
        assert started.is_ready(), started.said
        assert started.process.stderr is not None

        file.write_text("model_config_list {\n  nonsense: 1\n}")
        for line in started.process.stderr:
            if "models.config" in line and "2:3" in line:
                break
        assert status_of(started, "a") == 200
        assert status_of(started, "b") == 404

        file.write_text(config_text("a", "b", root=tmp_path))
        while status_of(started, "b") != 200:
            pass
        assert status_of(started, "a") == 200
        assert started.end(signal.SIGTERM) == 0


def status_of(started: Server, model: str) -> int:
    """Of a request to a model, over REST."""
    connection = http.client.HTTPConnection("127.0.0.1", started.rest, timeout=30)
    try:
        connection.request("POST", f"/v1/models/{model}:predict", b'{"instances": [1]}')
        return connection.getresponse().status
    finally:
        connection.close()
