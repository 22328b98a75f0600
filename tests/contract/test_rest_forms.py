"""What REST answers when all is well, in every form a request may have."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import pytest

from shardserve.batching.errors import Code
from tests.contract.clients import RestClient
from tests.contract.endpoint import Endpoint

HALF = "/v1/models/half_plus_two"
BODY = {"instances": [1.0, 2.0, 5.0]}
ANSWER = b'{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'


@pytest.mark.parametrize(
    "path",
    [
        HALF,
        f"{HALF}/versions/123",
        f"{HALF}/versions/00123",
        f"{HALF}/labels/stable",
        f"{HALF}/labels/st%61ble",
        "/v1/models/half%5fplus_two",
        "/V1/MODELS/half_plus_two/Versions/123",
    ],
)
def test_a_model_is_named_in_many_ways(rest: RestClient, path: str) -> None:
    reply = rest.send("POST", f"{path}:predict", BODY)
    assert (reply.status, reply.body) == (200, ANSWER)
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"instances": [1.0]}, {"predictions": [2.5]}),
        ({"instances": [1]}, {"predictions": [2.5]}),
        ({"instances": [{"x": 1.0}, {"x": 2.0}]}, {"predictions": [2.5, 3.0]}),
        ({"instances": [[1.0, 2.0], [3.0, 4.0]]}, {"predictions": [[2.5, 3.0], [3.5, 4.0]]}),
        ({"instances": [[1.0]], "signature_name": "odd"}, {"predictions": [[2.5]]}),
        ({"inputs": [1.0, 2.0]}, {"outputs": [2.5, 3.0]}),
        ({"inputs": 1.0}, {"outputs": 2.5}),
        ({"inputs": {"x": [1.0]}}, {"outputs": [2.5]}),
        ({"inputs": {"x": [1.0], "surplus": 1}}, {"outputs": [2.5]}),
        ({"inputs": [], "ignored": 1}, {"outputs": []}),
        ({"inputs": [[]]}, {"outputs": [[]]}),
        ({"signature_name": "", "inputs": 1.0}, {"outputs": 2.5}),
    ],
)
def test_values_come_by_row_or_by_column(rest: RestClient, body: Any, answer: Any) -> None:
    reply = rest.predict("half_plus_two", body)
    assert (reply.status, reply.json) == (200, answer)


def test_several_inputs_and_outputs_are_named(rest: RestClient) -> None:
    rows = [{"a": [1, 2], "b": "s"}, {"a": [3, 4], "b": {"b64": "/w=="}}]
    expected = [
        {"raw_bytes": {"b64": "cw=="}, "sum": 3.0},
        {"raw_bytes": {"b64": "/w=="}, "sum": 7.0},
    ]
    assert rest.predict("types", {"instances": rows}).json == {"predictions": expected}
    columns = {"a": [[1, 2], [3, 4]], "b": ["s", {"b64": "/w=="}]}
    asked = {"signature_name": "several", "inputs": columns}
    assert rest.predict("types", asked).json == {
        "outputs": {
            "raw_bytes": [{"b64": "cw=="}, {"b64": "/w=="}],
            "sum": [3.0, 7.0],
            "total": 10.0,
        }
    }


TEXTS = [
    ("float", "NaN", "NaN"),
    ("float", "Infinity", "Infinity"),
    ("float", "Inf", "Infinity"),
    ("float", "-Inf", "-Infinity"),
    ("float", "1e999", "Infinity"),
    ("float", "0.2", "0.2"),
    ("float", "1e-7", "1e-07"),
    ("float", "9000000", "9e+06"),
    ("float", "1234567", "1234567.0"),
    ("float", "0.333333333", "0.333333343"),
    ("float", "100000", "100000.0"),
    ("float", "-0.0", "-0.0"),
    ("double", "0.1", "0.1"),
    ("double", "0.30000000000000004", "0.30000000000000004"),
    ("double", "1e22", "1e+22"),
    ("double", "NaN", "NaN"),
    ("int8", "300", "44"),
    ("uint8", "-1", "255"),
    ("int16", "40000", "-25536"),
    ("int32", "-2147483648", "-2147483648"),
    ("int64", "9223372036854775807", "9223372036854775807"),
    ("uint32", "4294967295", "4294967295"),
    ("uint64", "18446744073709551615", "18446744073709551615"),
    ("bool", "true", "true"),
    ("string", '"text"', '"text"'),
    ("string", '{"b64": "dGV4dA"}', '"text"'),
    ("string", '"\\u00e9"', '"é"'),
    ("string", '"\\"\\\\\\n"', '"\\"\\\\\\n"'),
]


@pytest.mark.parametrize(("kind", "sent", "answer"), TEXTS)
def test_values_are_read_and_written_as_the_original_does(
    rest: RestClient, kind: str, sent: str, answer: str
) -> None:
    body = f'{{"signature_name": "{kind}", "inputs": {sent}}}'.encode()
    reply = rest.predict("types", body)
    assert (reply.status, reply.body.decode()) == (200, f'{{\n    "outputs": {answer}\n}}')


def test_bytes_that_are_no_text_go_through_strings(rest: RestClient) -> None:
    reply = rest.predict("types", b'{"signature_name": "string", "inputs": ["\xff\xfe"]}')
    assert b'"\xff\xfe"' in reply.body


def test_odd_documents_are_read(rest: RestClient) -> None:
    for body in (
        b'\xef\xbb\xbf{"inputs": 1.0}',
        b'{"inputs": 1.0}garbage',
        b'{"inputs": 1.0, "inputs": 2.0}',
        b' \n{"inputs":\t1.0} ',
    ):
        assert rest.predict("half_plus_two", body).json == {"outputs": 2.5}


# Classify and regress


def test_classes_are_lists_of_label_and_score(rest: RestClient) -> None:
    body = {
        "signature_name": "classify",
        "context": {"name": "c"},
        "examples": [{"x": 1.5}, {"x": [2.0], "name": {"b64": "Yg=="}}],
    }
    reply = rest.send("POST", "/v1/models/examples:classify", body)
    assert (reply.status, reply.body) == (
        200,
        b'{\n    "results": [[["c0", 1.5], ["c1", 2.5]], [["b0", 2.0], ["b1", 3.0]]\n    ]\n}',
    )


def test_regressions_are_numbers(rest: RestClient) -> None:
    body = {"examples": [{"x": 1.5}, {"x": 0.1}]}
    reply = rest.send("POST", "/v1/models/examples/versions/1:regress", body)
    assert (reply.status, reply.body) == (200, b'{\n    "results": [3.0, 0.2]\n}')


def test_tokens_are_floats_in_examples(rest: RestClient) -> None:
    body = b'{"examples": [{"x": NaN}, {"x": [-Infinity]}]}'
    first, second = rest.send("POST", "/v1/models/examples:regress", body).json["results"]
    assert math.isnan(first)
    assert second == -math.inf


def test_an_int_where_the_graph_wants_a_float_is_the_graph_s_to_refuse(rest: RestClient) -> None:
    reply = rest.send("POST", "/v1/models/examples:regress", {"examples": [{"x": 1}]})
    assert reply.status == 400
    assert "Data types don't match" in reply.json["error"]


# Status and metadata


def test_status_is_laid_out_as_protobuf_does(rest: RestClient) -> None:
    reply = rest.send("GET", f"{HALF}/versions/123")
    assert (reply.status, reply.body.decode()) == (
        200,
        (
            '{\n "model_version_status": [\n  {\n   "version": "123",\n   "state": "AVAILABLE",\n'
            '   "status": {\n    "error_code": "OK",\n    "error_message": ""\n   }\n  }\n ]\n}\n'
        ),
    )


def test_status_has_every_version_and_does_not_look_at_labels(
    rest: RestClient, endpoint: Endpoint
) -> None:
    for path in (HALF, f"{HALF}/labels/no", f"{HALF}/METADATA"):
        rows = rest.send("GET", path).json["model_version_status"]
        states = [(row["version"], row["state"]) for row in rows]
        assert states == [("125", "END"), ("124", "LOADING"), ("123", "AVAILABLE"), ("122", "END")]
    failed = rows[0]["status"]
    assert Code[failed["error_code"]] == endpoint.failure.code
    assert endpoint.failure.text in failed["error_message"]


@pytest.mark.parametrize("which", ["", "/versions/123", "/labels/stable"])
def test_metadata_have_all_fields(rest: RestClient, which: str) -> None:
    reply = rest.send("GET", f"{HALF}{which}/metadata")
    assert reply.body.startswith(b'{\n"model_spec":{\n "name": "half_plus_two",\n')
    assert reply.json["model_spec"] == {
        "name": "half_plus_two",
        "signature_name": "",
        "version": "123",
    }
    signature = reply.json["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "x:0",
    }


# Headers


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP"])
def test_bodies_may_be_compressed(rest: RestClient, coding: str) -> None:
    raw = gzip.compress(json.dumps(BODY).encode())
    reply = rest.send("POST", f"{HALF}:predict", raw, {"content-encoding": coding})
    assert reply.body == ANSWER
    body = gzip.compress(json.dumps({"examples": [{"x": 1.0}]}).encode())
    reply = rest.send("POST", "/v1/models/examples:regress", body, {"content-encoding": coding})
    assert reply.json == {"results": [2.0]}


def test_long_replies_are_compressed_for_clients_that_ask(rest: RestClient) -> None:
    body = {"inputs": [0.5] * 20_000}
    plain = rest.send("POST", f"{HALF}:predict", body)
    assert "content-encoding" not in plain.headers
    for accepted, answered in (("deflate, gzip;q=0.5", "gzip"), ("gzip;q=0", None)):
        reply = rest.send("POST", f"{HALF}:predict", body, {"accept-encoding": accepted})
        assert reply.headers.get("content-encoding") == answered
        raw = gzip.decompress(reply.body) if answered else reply.body
        assert raw == plain.body
    short = rest.send("POST", f"{HALF}:predict", BODY, {"accept-encoding": "gzip"})
    assert "content-encoding" not in short.headers


def test_pages_of_other_origins_may_ask_where_that_is_allowed(rest: RestClient) -> None:
    expected = {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "POST, GET",
        "access-control-allow-headers": "Content-Type",
    }
    preflight = rest.send("OPTIONS", f"{HALF}:predict", b"", {"origin": "https://example.org"})
    assert (preflight.status, preflight.body) == (200, b"")
    answer = rest.send("POST", f"{HALF}:predict", BODY)
    error = rest.send("GET", "/v1/models/no")
    for reply in (preflight, answer, error):
        assert expected.items() <= reply.headers.items()
    for headers in ({}, {"origin": "null"}):
        refused = rest.send("OPTIONS", HALF, b"", headers)
        assert (refused.status, refused.body) == (400, b"")


def test_a_large_body_is_answered_as_a_small_one(rest: RestClient) -> None:
    values = list(range(100_000))
    predictions = rest.predict("half_plus_two", {"instances": values}).json["predictions"]
    assert predictions == [value / 2 + 2 for value in values]
    raw = base64.b64encode(b"\0" * 200_000).decode()
    reply = rest.predict("types", {"signature_name": "string", "inputs": [{"b64": raw}]})
    assert len(reply.json["outputs"][0]) == 200_000
