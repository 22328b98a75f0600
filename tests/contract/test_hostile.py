"""Clients that mean harm, or do not know better: refused, soon, and never with a 5xx."""

from __future__ import annotations

import gzip
import time
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2

from tests.contract.clients import GrpcClient, RestClient
from tests.contract.requests import example, examples, half, predict, regress, spec

HALF = "/v1/models/half_plus_two"

#: Enough for a request that is refused, on a machine that is busy with other tests.
SOON = 20.0

NAMES = [
    "..",
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "%00",
    "a%0d%0aset-cookie:%20x",
    "half_plus_two%00",
    "half_plus_two/../types",
    "%ff%fe",
    "%",
    "%zz",
    "{half_plus_two}",
    "$(id)",
    "n" * 10_000,
    "half_plus_two/versions/123/../124",
    "half_plus_two/labels/..%2fold",
    "half_plus_two/versions/-1",
    "half_plus_two/versions/" + "9" * 5000,
    "half_plus_two/versions/1e2",
    "half_plus_two/versions/%D9%A3",
]


@pytest.mark.parametrize("name", NAMES, ids=[name[:20].encode().hex() for name in NAMES])
def test_tricks_in_names_find_nothing(rest: RestClient, name: str) -> None:
    asked = [
        ("POST", f"/v1/models/{name}:predict", {"instances": [1.0]}),
        ("GET", f"/v1/models/{name}", b""),
        ("GET", f"/v1/models/{name}/metadata", b""),
        ("GET", f"/v1/models/half_plus_two/labels/{name}/metadata", b""),
    ]
    for method, path, body in asked:
        reply = rest.send(method, path, body)
        # Labels are not looked at for a status.
        assert reply.status in ((200,) if "labels" in name and path.endswith("old") else (400, 404))
        assert reply.json.keys() & {"error", "model_version_status"}
        assert "set-cookie" not in reply.headers


@pytest.mark.parametrize("name", ["..", "/etc/passwd", "half_plus_two\0", "n" * 1_000_000, "\n"])
def test_tricks_in_names_find_nothing_over_grpc(rpc: GrpcClient, name: str) -> None:
    code, text = rpc.refusal("Predict", predict(spec(name)))
    assert code is grpc.StatusCode.NOT_FOUND
    assert text.startswith("Servable not found for request: Latest(")
    code, _ = rpc.refusal("Predict", half(label=name))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_names_that_clients_make_up_are_cut_in_metrics(rest: RestClient) -> None:
    rest.send("GET", f"/v1/models/{'q' * 10_000}")
    page = rest.send("GET", "/monitoring/prometheus/metrics").body.decode()
    assert "q" * 200 in page
    assert "q" * 300 not in page


BODIES: dict[str, bytes] = {
    "deep lists": b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep lists, open": b'{"inputs": ' + b"[" * 1_000_000,
    "deep objects": b'{"instances": [' + b'{"x": ' * 50_000 + b"1" + b"}" * 50_000 + b"]}",
    "deep, beside the point": b'{"inputs": 1, "z": ' + b"[" * 900 + b"]" * 900 + b', "a": "b": }',
    "many dimensions": b'{"inputs": ' + b"[" * 200 + b"1" + b"]" * 200 + b"}",
    "a long number": b'{"inputs": ' + b"1" * 1_000_000 + b"}",
    "a long exponent": b'{"inputs": [1e' + b"9" * 1000 + b', "1"]}x{',
    "wrong in the end": b'{"inputs": [' + b"1," * 1_000_000 + b'"a"]}',
    "ragged": b'{"inputs": [' + b"[1]," * 300_000 + b"[]]}",
    "many keys": b'{"instances": [{' + b",".join(b'"k%d": 1' % n for n in range(100_000)) + b"}]}",
    "lone surrogate": b'{"inputs": "\\ud800", "signature_name": "\\udfff"}',
    "a NUL": b'{"inputs": "\0"}',
    "UTF-16": '{"inputs": 1}'.encode("utf-16"),
    "nothing but quotes": b'"' * 100_000,
    "backslashes": b'{"inputs": "' + b"\\" * 100_001 + b'", NaN',
    "Infs": b'{"inputs": [' + b"Inf," * 100_000 + b"x]}",
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("action", ["half_plus_two:predict", "examples:classify"])
def test_documents_that_are_made_to_hurt_are_refused_soon(
    rest: RestClient, action: str, name: str
) -> None:
    started = time.monotonic()
    reply = rest.send("POST", f"/v1/models/{action}", BODIES[name])
    assert reply.status == 400
    assert len(reply.body) < 10_000
    assert time.monotonic() - started < SOON


def test_a_bomb_is_not_inflated_beyond_its_bound(rest: RestClient) -> None:
    started = time.monotonic()
    for bomb in (
        gzip.compress(b" " * (200 << 20), 9),
        gzip.compress(gzip.compress(b" " * (200 << 20), 9)),
    ):
        reply = rest.send("POST", f"{HALF}:predict", bomb, {"content-encoding": "gzip"})
        assert reply.status == 400
    assert time.monotonic() - started < SOON


def test_a_body_over_the_bound_is_not_read(rest: RestClient) -> None:
    reply = rest.send("POST", f"{HALF}:predict", b"", {"content-length": str(1 << 40)})
    assert reply.status == 413


def proto(*sizes: int, **fields: Any) -> tensor_pb2.TensorProto:
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes]
    return tensor_pb2.TensorProto(
        dtype=fields.pop("dtype", 1),
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=dims),
        **fields,
    )


PROTOS = {
    "huge": proto(1 << 40, float_val=[1.0]),
    "overflowing": proto(1 << 40, 1 << 40, 1 << 40),
    "negative": proto(-1),
    "most negative": proto(-(2**63), 2),
    "zero times huge": proto(0, 2**62, 2**62),
    "many dimensions": proto(*[1] * 300, float_val=[1.0]),
    "content too short": proto(4, tensor_content=b"abc"),
    "content too long": proto(1, tensor_content=b"abcde"),
    "no bools": proto(1, dtype=10, tensor_content=b"\x02"),
    "strings cut off": proto(3, dtype=7, tensor_content=b"\xff\xff\xff"),
    "strings that lie": proto(1, dtype=7, tensor_content=b"\xff\xff\xff\xff\x0f"),
    "many empty strings": proto(1 << 30, dtype=7, string_val=[b"x"]),
    "a resource": proto(1, dtype=20),
    "a variant": proto(1, dtype=21),
    "a reference": proto(1, dtype=101),
    "no such type": proto(1, dtype=0),
}


@pytest.mark.parametrize("name", PROTOS)
def test_tensors_that_are_none_are_refused_before_anything_is_made_of_them(
    rpc: GrpcClient, name: str
) -> None:
    started = time.monotonic()
    asked = predict(spec("half_plus_two"), x=PROTOS[name])
    code, _ = rpc.refusal("Predict", asked)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert time.monotonic() - started < SOON


def test_a_context_does_not_multiply_without_bound(rpc: GrpcClient) -> None:
    given = examples(*[example()] * 10_000, context=example(name=b"x" * 1_000_000, x=1.0))
    code, text = rpc.refusal("Regress", regress(given=given))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "for each of 10000 examples is more than" in text


def test_examples_are_counted(rpc: GrpcClient) -> None:
    call = rpc.channel.unary_unary("/tensorflow.serving.PredictionService/Regress")
    empty = regress(given=examples()).model_spec.SerializeToString()
    many = b"\x0a\x00" * ((1 << 20) + 1)
    listed = b"\x0a" + _length(many) + many
    raw = b"\x0a" + _length(empty) + empty + b"\x12" + _length(listed) + listed
    with pytest.raises(grpc.RpcError) as caught:
        call(raw)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "1048577 examples are more than 1048576"


def _length(raw: bytes) -> bytes:
    size, encoded = len(raw), bytearray()
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    return bytes([*encoded, size])


def test_examples_that_are_none_are_the_graph_s_to_refuse(rpc: GrpcClient) -> None:
    asked = predict(spec("examples", signature="regress"), inputs=np.array([b"\x0a\x05x"], object))
    code, text = rpc.refusal("Predict", asked)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "Could not parse example" in text
