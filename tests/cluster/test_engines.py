"""Both engines as a user starts them: the answers at every door, and what is left at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from examples.client import predict_over_grpc, predict_over_rest
from shardserve.router.prediction import RPCS
from tests.cluster.servers import Server, server

SECONDS = 30.0


@pytest.fixture(scope="module")
def on_ray(tiny_dlrm: Path) -> Iterator[Server]:
    flags = ("--shards=2", "--replicas=2", "--routers=2", "--drain_seconds=60")
    with server(tiny_dlrm, *flags) as started:
        assert started.is_ready(), started.said
        yield started


@pytest.fixture(scope="module")
def local(tiny_dlrm: Path) -> Iterator[Server]:
    with server(tiny_dlrm, "--engine=local", "--shards=3") as started:
        assert started.is_ready(), started.said
        yield started


@pytest.fixture(scope="module")
def example(tiny_dlrm: Path) -> tuple[list[dict[str, Any]], Any]:
    """Instances, and the predictions that TensorFlow itself makes of them."""
    extra = tiny_dlrm / "1" / "assets.extra"
    instances = json.loads((extra / "predict_request.json").read_text())["instances"]
    return instances, json.loads((extra / "predict_reply.json").read_text())["predictions"]


def test_every_door_of_the_ray_engine_answers_as_tensorflow_does(
    on_ray: Server, example: tuple[list[dict[str, Any]], Any]
) -> None:
    instances, expected = example

    for port in (on_ray.rest, on_ray.ingress_http):
        answer = predict_over_rest(f"127.0.0.1:{port}", "m", instances)
        np.testing.assert_allclose(answer, expected, rtol=1e-5)
    for port in (on_ray.grpc, on_ray.ingress_grpc):
        answer = predict_over_grpc(f"127.0.0.1:{port}", "m", instances)
        np.testing.assert_allclose(answer, expected, rtol=1e-5)


def test_the_local_engine_answers_as_tensorflow_does(
    local: Server, example: tuple[list[dict[str, Any]], Any]
) -> None:
    instances, expected = example

    over_rest = predict_over_rest(f"127.0.0.1:{local.rest}", "m", instances)
    over_grpc = predict_over_grpc(f"127.0.0.1:{local.grpc}", "m", instances)

    np.testing.assert_allclose(over_rest, expected, rtol=1e-5)
    np.testing.assert_allclose(over_grpc, expected, rtol=1e-5)


@pytest.mark.parametrize(("engine", "seats"), [("on_ray", 4), ("local", 3)])
def test_the_metrics_page_of_either_engine_has_what_its_shards_tell(
    engine: str, seats: int, request: pytest.FixtureRequest, example: tuple[list[Any], Any]
) -> None:
    started: Server = request.getfixturevalue(engine)
    predict_over_rest(f"127.0.0.1:{started.rest}", "m", example[0])

    _, _, page = http(f"http://127.0.0.1:{started.rest}/monitoring/prometheus/metrics", "GET", None)

    found = {
        family.name: family.samples for family in text_string_to_metric_families(page.decode())
    }
    resident = found[":shardserve:resident_bytes"]
    assert len({(one.labels["shard"], one.labels["replica"]) for one in resident}) == seats
    assert {(one.labels["model_name"], one.labels["tier"]) for one in resident} == {("m", "memory")}
    assert all(one.value > 0 and one.labels["table"] for one in resident)
    assert sum(one.value for one in found[":shardserve:looked_up_row_count"]) > 0


def test_every_router_tells_what_all_of_them_have_counted(
    on_ray: Server, example: tuple[list[Any], Any]
) -> None:
    url = f"http://127.0.0.1:{on_ray.rest}/monitoring/prometheus/metrics"
    before = _counted(http(url, "GET", None)[2])
    for _ in range(12):
        predict_over_rest(f"127.0.0.1:{on_ray.rest}", "m", example[0])

    # Connections of their own, which the system spreads over the routers.
    pages = [http(url, "GET", None)[2] for _ in range(8)]

    assert {_counted(page) for page in pages} == {before + 12}
    assert all(len(_routers(page)) == 2 for page in pages)


def _samples(page: bytes) -> list[Any]:
    families = text_string_to_metric_families(page.decode())
    return [sample for family in families for sample in family.samples]


def _counted(page: bytes) -> float:
    counted = (":tensorflow:serving:request_count_total", {"model_name": "m", "status": "OK"})
    return next((one.value for one in _samples(page) if (one.name, one.labels) == counted), 0.0)


def _routers(page: bytes) -> set[str]:
    samples = _samples(page)
    return {s.labels["router"] for s in samples if s.name == "process_resident_memory_bytes"}


def test_the_local_engine_loads_no_ray(local: Server) -> None:
    maps = Path(f"/proc/{local.process.pid}/maps").read_text()

    assert "_pywrap_tensorflow" in maps
    assert "_raylet" not in maps


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models/m", None),
        ("GET", "/v1/models/m/metadata", None),
        ("GET", "/v1/models/absent", None),
        ("GET", "/v1/models/m/versions/9", None),
        ("POST", "/v1/models/m:predict", b"not json"),
        ("POST", "/v1/models/m:predict", b'{"instances": [{"dense": [1.0]}]}'),
        ("POST", "/v1/models/m:predict", b'{"signature_name": "x", "instances": [1]}'),
        ("POST", "/v1/models/m%2Fn:predict", b'{"instances": [1]}'),
        ("GET", "/v1/models/m?pretty=1", None),
        ("DELETE", "/v1/models/m", None),
    ],
)
def test_both_http_doors_give_the_same_status_and_body(
    on_ray: Server, method: str, path: str, body: bytes | None
) -> None:
    direct, ingress = (
        http(f"http://127.0.0.1:{port}{path}", method, body)
        for port in (on_ray.rest, on_ray.ingress_http)
    )

    assert direct == ingress


def http(url: str, method: str, body: bytes | None) -> tuple[int, str | None, bytes]:
    """Status, content type and body."""
    request = urllib.request.Request(url, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as reply:
            return reply.status, reply.headers["content-type"], reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read()


def test_both_grpc_doors_give_the_same_metadata_and_status(on_ray: Server) -> None:
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "m"
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "m"

    for request in (metadata, status):
        direct, ingress = (rpc(port, request) for port in (on_ray.grpc, on_ray.ingress_grpc))
        assert direct == ingress
        assert isinstance(direct, bytes)


@pytest.mark.parametrize(
    ("name", "signature", "code", "text"),
    [
        ("absent", "", grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(absent)"),
        ("m", "x", grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "x" not found.'),
        ("", "", grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    ],
)
def test_both_grpc_doors_give_the_same_code_and_text(
    on_ray: Server, name: str, signature: str, code: grpc.StatusCode, text: str
) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature

    assert rpc(on_ray.grpc, request) == (code, text)
    assert rpc(on_ray.ingress_grpc, request) == (code, text)


def test_every_rpc_is_served_at_both_grpc_doors(on_ray: Server) -> None:
    for method in RPCS.values():
        direct, ingress = (
            refusal_of_nothing(port, f"/{method.service}/{method.method}")
            for port in (on_ray.grpc, on_ray.ingress_grpc)
        )
        assert direct == ingress
        assert direct[0] is grpc.StatusCode.INVALID_ARGUMENT


def refusal_of_nothing(port: int, path: str) -> tuple[grpc.StatusCode, str]:
    """Code and text for a request without a single field."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(b"", timeout=SECONDS)
        return caught.value.code(), caught.value.details()


def rpc(port: int, request: Any) -> bytes | tuple[grpc.StatusCode, str]:
    """The serialised reply, or the code and text of the failure."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        model = model_service_pb2_grpc.ModelServiceStub(channel)
        method = {
            predict_pb2.PredictRequest: prediction.Predict,
            get_model_metadata_pb2.GetModelMetadataRequest: prediction.GetModelMetadata,
            get_model_status_pb2.GetModelStatusRequest: model.GetModelStatus,
        }[type(request)]
        try:
            reply: bytes = method(request, timeout=SECONDS).SerializeToString(deterministic=True)
            return reply
        except grpc.RpcError as error:
            return error.code(), error.details()


def test_a_client_that_hangs_up_costs_the_others_nothing(
    on_ray: Server, example: tuple[list[dict[str, Any]], Any]
) -> None:
    instances, expected = example
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    with grpc.insecure_channel(f"127.0.0.1:{on_ray.ingress_grpc}") as channel:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict.future(request).cancel()

    answer = predict_over_grpc(f"127.0.0.1:{on_ray.ingress_grpc}", "m", instances)

    np.testing.assert_allclose(answer, expected, rtol=1e-5)


def until_it_drains(started: Server, port: int) -> None:
    """Return when a probe finds that the server is about to go."""
    url = f"http://127.0.0.1:{port}/health/ready"
    while (found := http(url, "GET", None))[0] == 200:
        assert started.process.poll() is None
    assert found[0] == 503
    assert json.loads(found[2]) == {"ready": False, "draining": True, "missing": []}


def health(port: int) -> int:
    """As gRPC's health service says it."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status)


NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_routers_that_are_to_go_say_so_and_answer_until_a_second_signal_ends_all_processes(
    on_ray: Server, example: tuple[list[dict[str, Any]], Any]
) -> None:
    """The last test of this server: the terminal signals Ray's processes, too."""
    assert len(on_ray.descendants()) > 10
    assert health(on_ray.grpc) != NOT_SERVING

    on_ray.signal(signal.SIGTERM)
    for port in (on_ray.rest, on_ray.ingress_http):
        until_it_drains(on_ray, port)
        answer = predict_over_rest(f"127.0.0.1:{port}", "m", example[0])
        np.testing.assert_allclose(answer, example[1], rtol=1e-5)

    assert on_ray.end(signal.SIGINT) == 0

    assert on_ray.descendants() == []
    assert "Traceback" not in on_ray.said


def test_a_start_that_fails_says_why_in_one_line_and_leaves_no_process(
    tiny_dlrm: Path, tmp_path: Path
) -> None:
    layout = tmp_path / "layout.yaml"
    layout.write_text("shards: 1\ntables:\n  absent: {sharding: table, shards: [0]}\n")

    with server(tiny_dlrm, f"--layout={layout}") as started:
        assert not started.is_ready()
        assert started.end(signal.SIGTERM) == 1

        assert started.descendants() == []
        assert f"shardserve: {layout}: table 'absent' is not a variable" in started.said
        assert "Traceback" not in started.said


def test_ctrl_c_while_ray_starts_leaves_no_process(tiny_dlrm: Path) -> None:
    with server(tiny_dlrm) as started:
        assert started.process.stderr is not None
        assert "starting Ray" in started.process.stderr.readline()

        assert started.end(signal.SIGINT) == 130
        assert started.descendants() == []


@pytest.fixture
def hangs_up() -> Iterator[None]:
    """What is started is ended by its terminal's going away, even if these tests are not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangs_up")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_persons_signal_ends_the_local_engine_at_once(
    tiny_dlrm: Path, number: signal.Signals
) -> None:
    with server(tiny_dlrm, "--engine=local", "--drain_seconds=1000") as started:
        assert started.is_ready(), started.said
        if number == signal.SIGHUP:
            assert started.process.stderr is not None
            started.process.stderr.close()

        assert started.end(number) == 0
        assert started.descendants() == []


def test_the_local_engine_drains_after_sigterm_and_a_second_signal_ends_that(
    tiny_dlrm: Path, example: tuple[list[dict[str, Any]], Any]
) -> None:
    with server(tiny_dlrm, "--engine=local", "--drain_seconds=1000") as started:
        assert started.is_ready(), started.said
        assert health(started.grpc) != NOT_SERVING

        started.signal(signal.SIGTERM)
        until_it_drains(started, started.rest)
        assert health(started.grpc) == NOT_SERVING
        answer = predict_over_rest(f"127.0.0.1:{started.rest}", "m", example[0])
        np.testing.assert_allclose(answer, example[1], rtol=1e-5)
        with closing(HTTPConnection("127.0.0.1", started.rest)) as client:
            client.request("GET", "/v1/models/m")
            assert client.getresponse().getheader("connection") == "close"

        assert started.end(signal.SIGTERM) == 0
        assert started.descendants() == []


def test_a_signal_ends_the_local_engine_though_a_load_cannot_be_interrupted(
    tiny_dlrm: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_dlrm, tmp_path / "m")
    index = tmp_path / "m" / "1" / "variables" / "variables.index"
    index.unlink()
    os.mkfifo(index)

    with server(tmp_path / "m", "--engine=local") as started:
        # It is open once the server reads there, and no byte comes, as from a disk that hangs.
        with index.open("wb"):
            assert started.end(signal.SIGTERM) == 143

        assert started.descendants() == []
        assert "stopping" in started.said


def test_a_port_that_is_taken_is_said_at_once(tiny_dlrm: Path, local: Server) -> None:
    with server(tiny_dlrm, f"--rest_api_port={local.rest}") as started:
        assert not started.is_ready()
        assert started.end(signal.SIGTERM) == 1

        assert f"--rest_api_port={local.rest}: cannot listen" in started.said
