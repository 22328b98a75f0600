"""Whatever bytes come: an answer, or a refusal that is the client's fault."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
from tensorflow_serving.apis import predict_pb2

from shardserve.batching.errors import Code, ServingError
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Metrics
from shardserve.router.prediction import RPCS, PredictionHandlers
from shardserve.router.proto_codec import TensorError, decode_tensor, encode_tensor
from shardserve.router.rest import Rest
from shardserve.router.servable import RequestContext
from shardserve.router.session import StageThreads
from tests.contract.models import TYPES
from tests.contract.requests import classify, half, multi, regress, session_run, spec, task
from tests.contract.servers import catalog

#: What a client can be at fault for, or a full queue.
CLIENT_S = {
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.FAILED_PRECONDITION,
    Code.UNIMPLEMENTED,
    Code.OUT_OF_RANGE,
    Code.UNAVAILABLE,
}

Run = Callable[[Coroutine[Any, Any, Any]], Any]

slow = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def handlers(model_root: Path) -> Iterator[Handlers]:
    threads = StageThreads(1)
    yield Handlers(catalog(model_root, threads), threads)
    threads.close()


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        yield runner.run


# JSON

scalars = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4)
    | st.just({"b64": "YQ=="}) | st.just({"b64": "*"})
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "a", "b", "b64", "name"]), inner, max_size=2)
    ),
    max_leaves=10,
)
documents = st.dictionaries(
    st.sampled_from(["instances", "inputs", "signature_name", "examples", "context", "z"]),
    values | st.lists(values, min_size=1, max_size=4) | st.sampled_from(TYPES),
    max_size=3,
)
bodies = documents.map(lambda d: json.dumps(d).encode()) | st.binary(max_size=60)
paths = st.sampled_from(
    ["half_plus_two:predict", "types:predict", "examples:classify", "examples:regress"]
)


def damaged(raw: bytes, place: int, other: bytes) -> bytes:
    place = place % (len(raw) + 1)
    return raw[:place] + other + raw[place + len(other) :]


@given(paths, bodies, st.integers(0, 10**6), st.binary(max_size=2))
@slow
def test_any_document_is_answered(
    handlers: Handlers, run: Run, path: str, body: bytes, place: int, other: bytes
) -> None:
    rest = Rest(handlers, Metrics(CollectorRegistry()))
    for sent in (body, damaged(body, place, other)):
        reply = run(rest.handle("POST", f"/v1/models/{path}", {}, sent))
        assert reply.status in (200, 400, 404, 501), reply.body
        assert reply.status == 200 or json.loads(reply.body).keys() == {"error"}


# Protos

WHOLE = [
    ("Predict", half().SerializeToString()),
    ("Classify", classify().SerializeToString()),
    ("Regress", regress().SerializeToString()),
    ("MultiInference", multi(task("regress", "regress")).SerializeToString()),
    ("SessionRun", session_run(spec("types"), {"a": [[1.0, 2.0]]}, ("Sum",)).SerializeToString()),
    ("GetModelMetadata", half().SerializeToString()),
    ("GetModelStatus", half().SerializeToString()),
    ("HandleReloadConfigRequest", half().SerializeToString()),
]


def answered(handlers: Handlers, run: Run, method: str, raw: bytes) -> None:
    doors = PredictionHandlers(handlers, Metrics(CollectorRegistry()))
    code = Code.OK
    try:
        run(doors.answer(RPCS[method], raw, RequestContext("fuzz", math.inf)))
    except ServingError as error:
        code = error.code
    assert code in {Code.OK, *CLIENT_S}


@given(st.sampled_from(WHOLE), st.integers(0, 10**6), st.binary(max_size=4))
@slow
def test_any_damage_to_a_request_is_answered(
    handlers: Handlers, run: Run, whole: tuple[str, bytes], place: int, other: bytes
) -> None:
    method, raw = whole
    answered(handlers, run, method, damaged(raw, place, other))


@given(st.sampled_from(list(RPCS)), st.binary(max_size=80))
@slow
def test_any_bytes_are_answered(handlers: Handlers, run: Run, method: str, raw: bytes) -> None:
    answered(handlers, run, method, raw)


sizes = st.integers(-2, 4) | st.sampled_from([2**31, 2**62, 2**63 - 1, -(2**63)])
shapes = st.builds(
    lambda sizes, unknown: tensor_shape_pb2.TensorShapeProto(
        dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes],
        unknown_rank=unknown,
    ),
    st.lists(sizes, max_size=4),
    st.booleans(),
)
protos = st.builds(
    tensor_pb2.TensorProto,
    dtype=st.integers(-1, 40),
    tensor_shape=shapes,
    tensor_content=st.binary(max_size=20),
    float_val=st.lists(st.floats(width=32), max_size=3),
    int_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    half_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    string_val=st.lists(st.binary(max_size=3), max_size=3),
    bool_val=st.lists(st.booleans(), max_size=3),
    scomplex_val=st.lists(st.floats(width=32), max_size=3),
    float8_val=st.binary(max_size=4),
)


@given(protos)
@settings(max_examples=400, deadline=None)
def test_any_tensor_is_decoded_or_refused(proto: tensor_pb2.TensorProto) -> None:
    try:
        array = decode_tensor(proto)
    except TensorError:
        return
    for as_content in (False, True):
        again = tensor_pb2.TensorProto.FromString(encode_tensor(array, as_content))
        assert again.dtype == proto.dtype
        same = decode_tensor(again).tobytes() == array.tobytes()
        # A signalling NaN may come back as a quiet one.
        assert same or array.dtype == object or np.isnan(array.astype(np.complex128)).any()


@given(protos, st.sampled_from(TYPES))
@slow
def test_any_tensor_is_answered(
    handlers: Handlers, run: Run, proto: tensor_pb2.TensorProto, kind: str
) -> None:
    request = predict_pb2.PredictRequest(model_spec=spec("types", signature=kind))
    request.inputs["x"].CopyFrom(proto)
    answered(handlers, run, "Predict", request.SerializeToString())
