"""REST paths mean what they mean to TensorFlow Serving; every request ends in one response."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from shardserve.batching.errors import Code, InvalidArgument, NotFound, ServingError, Unavailable
from shardserve.router.catalog import Catalog, Model, ModelSpec, State, Version
from shardserve.router.content_codings import MAX_INFLATED, takes_gzip
from shardserve.router.handlers import Handlers
from shardserve.router.metric_snapshot import summed
from shardserve.router.metrics import Metrics
from shardserve.router.readiness import READY_PATH
from shardserve.router.rest import MONITORING_PATH, Response, Rest
from shardserve.router.routes import Route, route
from shardserve.router.servable import Array, RequestContext, Signature, TensorInfo
from shardserve.router.session import StageThreads
from shardserve.router.status_codes import (
    GRPC_STATUS,
    HTTP_STATUS,
    MAX_GRPC_MESSAGE,
    grpc_message,
)

PREDICT = "/v1/models/half_plus_two:predict"
STUCK = "/v1/models/stuck:predict"
BODY = b'{"instances": [1, 2, 5]}'

# Paths


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/v1/models/m:predict", Route("predict", ModelSpec("m"))),
        ("POST", "/v1/models/m/versions/7:predict", Route("predict", ModelSpec("m", 7))),
        ("POST", "/v1/models/m/versions/007:predict", Route("predict", ModelSpec("m", 7))),
        ("POST", "/v1/models/m/labels/l-1:predict", Route("predict", ModelSpec("m", label="l-1"))),
        ("POST", "/v1/models/m:classify", Route("classify", ModelSpec("m"))),
        ("POST", "/V1/Models/M/Versions/1:predict", Route("predict", ModelSpec("M", 1))),
        ("POST", "/v1/models/a%2Fb%3A:predict", Route("predict", ModelSpec("a/b:"))),
        ("GET", "/v1/models/m", Route("status", ModelSpec("m"))),
        ("GET", "/v1/models/m/versions/0", Route("status", ModelSpec("m", 0))),
        ("GET", "/v1/models/m/labels/a%20b", Route("status", ModelSpec("m", label="a b"))),
        ("GET", "/v1/models/m/metadata", Route("metadata", ModelSpec("m"))),
        ("GET", "/v1/models/m/versions/3/metadata", Route("metadata", ModelSpec("m", 3))),
        ("GET", "/v1/models/m/METADATA", Route("status", ModelSpec("m"))),
        ("GET", "/v1/models/metadata", Route("status", ModelSpec("metadata"))),
        ("GET", "/v1/models/m?a=b", Route("status", ModelSpec("m?a=b"))),
        (
            "GET",
            f"/v1/models/m/versions/{2**63 - 1}",
            Route("status", ModelSpec("m", 2**63 - 1)),
        ),
    ],
)
def test_paths_that_mean_something(method: str, path: str, meant: Route) -> None:
    assert route(method, path) == meant


@pytest.mark.parametrize(
    ("method", "path", "error", "message"),
    [
        ("POST", "/v1/models/m:PREDICT", InvalidArgument, "Malformed request: POST /v1/models/"),
        ("POST", "/v1/models/m:explain", InvalidArgument, "Malformed request: POST /v1/models/m:e"),
        ("POST", "/v1/models/m:predict?x=1", InvalidArgument, "Malformed request: POST"),
        ("POST", "/v1/models/m", InvalidArgument, "Malformed request: POST /v1/models/m"),
        ("GET", "/v1/models/m:predict", InvalidArgument, "Malformed request: GET"),
        ("GET", "/v1/models/m/versions/x", InvalidArgument, "Malformed request: GET"),
        ("GET", "/v1/models/m/versions/٣", InvalidArgument, "Malformed request: GET"),
        ("DELETE", "/v1/models/m", InvalidArgument, "Malformed request: DELETE /v1/models/m"),
        ("HEAD", "/V1/x", InvalidArgument, "Malformed request: HEAD /V1/x"),
        ("GET", "/v1/models", InvalidArgument, "Missing model name in request."),
        (
            "GET",
            f"/v1/models/m/versions/{2**63}",
            InvalidArgument,
            f"Failed to convert version: {2**63} to numeric.",
        ),
        ("GET", "/v1/models/m/versions/" + "9" * 5000, InvalidArgument, "Failed to convert"),
        ("GET", "/", NotFound, "Not found: GET /"),
        ("GET", "/v2/models/m", NotFound, "Not found: GET /v2"),
    ],
)
def test_paths_that_do_not(method: str, path: str, error: type[ServingError], message: str) -> None:
    with pytest.raises(error) as caught:
        route(method, path)
    assert caught.value.message.startswith(message)


@given(st.text(max_size=5), st.text(max_size=40))
def test_any_path_is_a_route_or_a_clear_error(method: str, path: str) -> None:
    try:
        meant: Any = route(method, path)
    except (InvalidArgument, NotFound) as error:
        meant = error.message
    assert meant


# Requests


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def rest(handlers: Handlers, metrics: Metrics) -> Rest:
    return Rest(handlers, metrics)


async def ask(
    rest: Rest,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> tuple[Response, Any]:
    response = await rest.handle(method, path, headers or {}, body)
    return response, json.loads(response.body)


async def test_a_prediction_is_answered_in_json(rest: Rest) -> None:
    response, reply = await ask(rest, "POST", PREDICT, BODY)
    assert response.status == 200
    assert ("content-type", "application/json") in response.headers
    assert reply == {"predictions": [2.5, 3.0, 4.5]}


async def test_status_and_metadata_are_served(rest: Rest) -> None:
    _, status = await ask(rest, "GET", "/v1/models/half_plus_two/versions/123")
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    _, metadata = await ask(rest, "GET", "/v1/models/half_plus_two/metadata")
    assert metadata["model_spec"]["version"] == "123"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "/v1/models/no:predict", BODY, 404, "Servable not found for request: Latest(no)"),
        ("POST", PREDICT, b"", 400, "JSON Parse error: The document is empty"),
        ("POST", PREDICT, b'{"instances": ["a"]}', 400, "Failed to process element: 0"),
        ("POST", "/v1/models/half_plus_two:classify", b"{}", 400, "JSON Value: {} When method is"),
        ("GET", "/v1/models/no", b"", 404, "Could not find any versions of model no"),
        ("GET", "/elsewhere", b"", 404, "Not found: GET /elsewhere"),
        ("PATCH", "/v1/models/m", b"", 400, "Malformed request: PATCH /v1/models/m"),
    ],
)
async def test_errors_have_their_status_and_say_why(
    rest: Rest, method: str, path: str, body: bytes, status: int, error: str
) -> None:
    response, reply = await ask(rest, method, path, body)
    assert response.status == status
    assert reply["error"].startswith(error)


async def test_an_error_about_bytes_that_are_no_text_is_still_json(rest: Rest) -> None:
    response, reply = await ask(rest, "GET", "/v1/models/%FF")
    assert response.status == 404
    assert reply["error"].startswith("Could not find any versions of model")


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
async def test_a_gzipped_body_is_inflated(rest: Rest, encoding: str) -> None:
    headers = {"content-encoding": encoding}
    _, reply = await ask(rest, "POST", PREDICT, gzip.compress(BODY), headers)
    assert reply == {"predictions": [2.5, 3.0, 4.5]}


@pytest.mark.parametrize(
    "body",
    [b"not gzip", gzip.compress(BODY)[:-9], gzip.compress(b" " * (MAX_INFLATED + 1))],
    ids=["broken", "cut off", "too long"],
)
async def test_a_body_that_cannot_be_inflated_counts_as_empty(rest: Rest, body: bytes) -> None:
    response, reply = await ask(rest, "POST", PREDICT, body, {"content-encoding": "gzip"})
    assert response.status == 400
    assert reply == {"error": "JSON Parse error: The document is empty"}


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        (None, False),
        ("gzip", True),
        ("x-gzip", True),
        ("deflate, GZIP ; q=0.5", True),
        ("*", True),
        ("identity, br", False),
        ("gzip;q=0", False),
        ("gzip;q=0.0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0, gzip", True),
        ("gzip;q=1, *;q=0", True),
        ("*;q=0", False),
        ("gzip;q=high", False),
    ],
)
def test_who_takes_gzip_is_told_by_the_most_specific_quality(
    accepted: str | None, taken: bool
) -> None:
    assert takes_gzip(accepted) is taken


async def test_a_sane_request_id_is_kept_and_another_replaced(rest: Rest) -> None:
    ours, _ = await ask(rest, "POST", PREDICT, BODY, {"x-request-id": "my-1"})
    assert dict(ours.headers)["x-request-id"] == "my-1"
    other, _ = await ask(rest, "POST", PREDICT, BODY, {"x-request-id": "a\r\nb"})
    assert dict(other.headers)["x-request-id"] not in ("", "a\r\nb")


async def test_the_monitoring_page_is_served_at_its_path_and_no_other(rest: Rest) -> None:
    await ask(rest, "POST", PREDICT, BODY)
    page = await rest.handle("GET", "/monitoring/prometheus/metrics", {}, b"")
    assert page.status == 200
    assert b':tensorflow:serving:request_count{model_name="half_plus_two",status="OK"} 1' in (
        page.body
    )
    other = await rest.handle("GET", "/monitoring/prometheus/metrics?x", {}, b"")
    assert other.status == 400
    assert other.body == (
        b"Unexpected path: /monitoring/prometheus/metrics?x. "
        b"Should be /monitoring/prometheus/metrics"
    )


async def test_the_page_is_of_all_routers_where_they_are_collected(
    handlers: Handlers, metrics: Metrics
) -> None:
    other = Metrics(CollectorRegistry(), router="other")
    other.request("m", "predict", "REST", Code.OK, 1.0)

    async def collected() -> bytes:
        return summed([metrics.taken(), other.taken()]).packed()

    rest = Rest(handlers, metrics, collected=collected)
    assert (await rest.handle("POST", "/v1/models/absent:predict", {}, BODY)).status == 404
    page = (await rest.handle("GET", MONITORING_PATH, {}, b"")).body.decode()
    assert 'request_count{model_name="absent",status="NOT_FOUND"} 1' in page
    assert 'request_count{model_name="m",status="OK"} 1' in page


async def test_there_is_no_page_rather_than_one_of_some_routers(
    handlers: Handlers, metrics: Metrics
) -> None:
    async def collected() -> bytes:
        raise Unavailable("the controller does not answer")

    response = await Rest(handlers, metrics, collected=collected).handle(
        "GET", MONITORING_PATH, {}, b""
    )
    assert (response.status, response.body) == (503, b"the controller does not answer")


async def test_malformed_requests_count_under_no_model(rest: Rest, metrics: Metrics) -> None:
    await ask(rest, "GET", "/v1/nothing")
    await ask(rest, "POST", "/v1/models/no:predict", BODY)
    page = metrics.page().decode()
    assert 'request_count{model_name="",status="INVALID_ARGUMENT"} 1' in page
    assert 'request_count{model_name="no",status="NOT_FOUND"} 1' in page
    assert "request_latency_count" not in page


class _Stuck:
    """A servable whose requests wait until they are cancelled, or fail as a defect would."""

    name = "stuck"
    version = 1
    signatures = {"serving_default": Signature("", {"x": TensorInfo("x:0", 1, None)}, {})}  # noqa: RUF012
    signature_def_map = b""

    def __init__(self, defect: Exception | None = None) -> None:
        self.waiting = asyncio.Event()
        self._defect = defect

    async def run(
        self, signature: str, inputs: Any, outputs: Any, context: RequestContext
    ) -> dict[str, Array]:
        self.waiting.set()
        if self._defect is not None:
            raise self._defect
        await asyncio.Event().wait()
        return {}


def _serving(servable: _Stuck, threads: StageThreads, metrics: Metrics, **options: Any) -> Rest:
    catalog = Catalog({"stuck": Model({1: Version(State.AVAILABLE, servable)})})
    return Rest(Handlers(catalog, threads), metrics, **options)


async def test_a_cancelled_request_is_counted_as_such(
    threads: StageThreads, metrics: Metrics
) -> None:
    stuck = _Stuck()
    rest = _serving(stuck, threads, metrics)
    request = asyncio.ensure_future(ask(rest, "POST", STUCK, b'{"inputs": 1}'))
    await stuck.waiting.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert 'request_count{model_name="stuck",status="CANCELLED"} 1' in metrics.page().decode()


async def test_a_defect_of_ours_is_an_internal_error_that_gives_nothing_away(
    threads: StageThreads, metrics: Metrics
) -> None:
    rest = _serving(_Stuck(ZeroDivisionError("a secret")), threads, metrics)
    response, reply = await ask(rest, "POST", STUCK, b'{"inputs": 1}')
    assert response.status == 500
    assert "secret" not in reply["error"]
    assert 'status="INTERNAL"} 1' in metrics.page().decode()


class _Gate(_Stuck):
    """A servable whose requests are let go one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = 0
        self.most = 0
        self.entered = asyncio.Semaphore(0)
        self.turns: asyncio.Queue[None] = asyncio.Queue()

    async def run(
        self, signature: str, inputs: Any, outputs: Any, context: RequestContext
    ) -> dict[str, Array]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.entered.release()
        try:
            await self.turns.get()
        finally:
            self.under_way -= 1
        return {"y": inputs["x"]}


async def test_predictions_beyond_the_bound_wait_and_one_that_is_cancelled_goes(
    threads: StageThreads, metrics: Metrics
) -> None:
    gate = _Gate()
    rest = _serving(gate, threads, metrics, most=2)
    asked = [
        asyncio.create_task(ask(rest, "POST", STUCK, json.dumps({"inputs": i}).encode()))
        for i in range(5)
    ]
    asked[0].cancel()
    asked[3].cancel()
    await gate.entered.acquire()
    await gate.entered.acquire()
    for _ in range(3):
        gate.turns.put_nowait(None)

    answers = await asyncio.gather(*asked, return_exceptions=True)

    replies = [None if isinstance(one, BaseException) else one[1]["outputs"] for one in answers]
    assert replies == [None, 1.0, 2.0, None, 4.0]
    assert gate.most == 2


async def test_what_is_no_prediction_waits_for_none(
    threads: StageThreads, metrics: Metrics
) -> None:
    gate = _Gate()
    rest = _serving(gate, threads, metrics, most=1)
    under_way = asyncio.create_task(ask(rest, "POST", STUCK, b'{"inputs": 1}'))
    await gate.entered.acquire()

    for path in (READY_PATH, MONITORING_PATH, "/v1/models/stuck", "/v1/models/stuck/metadata"):
        assert (await rest.handle("GET", path, {}, b"")).status == 200

    gate.turns.put_nowait(None)
    assert (await under_way)[0].status == 200


async def test_waiting_for_a_turn_is_part_of_a_requests_time(
    threads: StageThreads, metrics: Metrics
) -> None:
    gate = _Gate()
    rest = _serving(gate, threads, metrics, most=1, timeout=0.01)
    under_way = asyncio.create_task(ask(rest, "POST", STUCK, b'{"inputs": 1}'))
    await gate.entered.acquire()

    late, _ = await ask(rest, "POST", STUCK, b'{"inputs": 2}')

    assert late.status == 504
    assert 'request_count{model_name="stuck",status="DEADLINE_EXCEEDED"} 1' in (
        metrics.page().decode()
    )
    gate.turns.put_nowait(None)
    assert (await under_way)[0].status == 200


# Codes


def test_every_code_has_its_status_on_both_wires() -> None:
    assert set(HTTP_STATUS) == set(GRPC_STATUS) == set(Code)
    for code, status in GRPC_STATUS.items():
        assert status.value[0] == code
        assert status.name == code.name


@given(st.text(max_size=1200))
def test_grpc_messages_are_cut_at_a_character(message: str) -> None:
    cut = grpc_message(message)
    raw = message.encode("utf-8", "replace")
    if len(raw) <= MAX_GRPC_MESSAGE:
        assert cut.encode() == raw
    else:
        assert cut.endswith("...TRUNCATED")
        assert raw.startswith(cut.removesuffix("...TRUNCATED").encode())
        assert len(cut.encode()) <= MAX_GRPC_MESSAGE + len("...TRUNCATED")
