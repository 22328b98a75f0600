"""Every row of the original's errors over REST: the status, and the text."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from tests.contract.clients import RestClient

HALF = "/v1/models/half_plus_two"
BODY = {"instances": [1.0]}


def half(**body: Any) -> tuple[str, str, Any]:
    return "POST", f"{HALF}:predict", body


def types(signature: str, **body: Any) -> tuple[str, str, Any]:
    return "POST", "/v1/models/types:predict", {"signature_name": signature, **body}


def several(**body: Any) -> tuple[str, str, Any]:
    return types("serving_default", **body)


def examples(method: str, **body: Any) -> tuple[str, str, Any]:
    return "POST", f"/v1/models/examples:{method}", body


EXAMPLE = {"x": 1.0}

IN_ROW = "Failed to process element: 0 of 'instances' list. Error: "
BAD_ROW = f"{IN_ROW}INVALID_ARGUMENT: JSON Value: "

ROWS: list[tuple[tuple[str, str, Any], int, str]] = [
    # Paths
    (("GET", "/v1/models", b""), 400, "Missing model name in request."),
    (("GET", "/v1/", b""), 400, "Malformed request: GET /v1/"),
    (("GET", "/v1/models/", b""), 400, "Malformed request: GET /v1/models/"),
    (("GET", f"{HALF}:predict", b""), 400, f"Malformed request: GET {HALF}:predict"),
    (("POST", HALF, b""), 400, f"Malformed request: POST {HALF}"),
    (("POST", f"{HALF}:PREDICT", BODY), 400, f"Malformed request: POST {HALF}:PREDICT"),
    (("POST", f"{HALF}:explain", BODY), 400, f"Malformed request: POST {HALF}:explain"),
    (("POST", f"{HALF}:predict?x=1", BODY), 400, f"Malformed request: POST {HALF}:predict?x=1"),
    (("PUT", HALF, b""), 400, f"Malformed request: PUT {HALF}"),
    (("DELETE", HALF, b""), 400, f"Malformed request: DELETE {HALF}"),
    (("PATCH", "/V1/x", b""), 400, "Malformed request: PATCH /V1/x"),
    (("GET", f"{HALF}/versions/x", b""), 400, f"Malformed request: GET {HALF}/versions/x"),
    (
        ("POST", f"{HALF}/versions/{2**63}:predict", BODY),
        400,
        f"Failed to convert version: {2**63} to numeric.",
    ),
    (("GET", "/", b""), 404, "Not found: GET /"),
    (("GET", "/v2/models/half_plus_two", b""), 404, "Not found: GET /v2/models/half_plus_two"),
    # The model
    (
        ("POST", "/v1/models/no:predict", BODY),
        404,
        "Servable not found for request: Latest(no)",
    ),
    (
        ("POST", f"{HALF}/versions/7:predict", BODY),
        404,
        "Servable not found for request: Specific(half_plus_two, 7)",
    ),
    (
        ("POST", f"{HALF}/versions/124:predict", BODY),
        404,
        "Servable not found for request: Specific(half_plus_two, 124)",
    ),
    (
        ("POST", f"{HALF}/labels/L:predict", BODY),
        400,
        "Unrecognized servable version label: L",
    ),
    (
        ("POST", f"{HALF}/labels/old:predict", BODY),
        404,
        "Servable not found for request: Specific(half_plus_two, 122)",
    ),
    (("POST", "/v1/models/HALF_PLUS_TWO:predict", BODY), 404, "Servable not found for request: "),
    (("GET", "/v1/models/no", b""), 404, "Could not find any versions of model no"),
    (
        ("GET", f"{HALF}/versions/9", b""),
        404,
        "Could not find version 9 of model half_plus_two",
    ),
    (("GET", "/v1/models/no/metadata", b""), 404, "Servable not found for request: Latest(no)"),
    (
        ("GET", f"{HALF}/labels/L/metadata", b""),
        400,
        "Unrecognized servable version label: L",
    ),
    (("GET", "/v1/models/metadata", b""), 404, "Could not find any versions of model metadata"),
    (("GET", f"{HALF}?a=b", b""), 404, "Could not find any versions of model half_plus_two?a=b"),
    # The document
    (("POST", f"{HALF}:predict", b""), 400, "JSON Parse error: The document is empty"),
    (("POST", "/v1/models/no:predict", b"{"), 400, "JSON Parse error: "),
    (("POST", f"{HALF}:predict", b"{'a': 1}"), 400, "JSON Parse error: "),
    (("POST", f"{HALF}:predict", b"[1]"), 400, "JSON Value: [\n    1\n] Is not object"),
    (half(), 400, "Missing 'inputs' or 'instances' key"),
    (half(instances=[1.0], inputs=[1.0]), 400, "JSON Value: {"),
    (half(signature_name=1, instances=[1.0]), 400, "JSON Value: {"),
    (
        half(signature_name="s", instances=[1.0]),
        400,
        'Serving signature name: "s" not found in signature def',
    ),
    # Rows
    (half(instances=[]), 400, "JSON Value: {\n    \"instances\": []\n} No values in 'instances' a"),
    (half(instances=1), 400, "JSON Value: {\n    \"instances\": 1\n} Excepting 'instances' to be"),
    (half(instances=["x"]), 400, f'{BAD_ROW}"x" Type: String is not of expected type: float'),
    (half(instances=[True]), 400, f"{BAD_ROW}true Type: True is not of expected type: float"),
    (half(instances=[None]), 400, f"{BAD_ROW}null Type: Null is not of expected type: float"),
    (
        half(instances=[[1], [1, 2]]),
        400,
        (
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting "
            "tensor size: 1 but got: 2"
        ),
    ),
    (
        half(instances=[[[1, 2]], [[1], [2]]]),
        400,
        (
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting "
            "shape [1,2] but got: [2,1]"
        ),
    ),
    (half(instances=[{"x": 1}, 1]), 400, "Expecting object but got list at item 1 of input list"),
    (
        half(instances=[1, {"x": 1}]),
        400,
        "Expecting value/list but got object at item 1 of input list",
    ),
    (
        half(instances=[{"z": 1}]),
        400,
        (
            "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: z"
        ),
    ),
    (
        several(instances=[1.0]),
        400,
        (
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        ),
    ),
    (
        several(instances=[{"a": [1, 2]}]),
        400,
        "Failed to process element: 0 of 'instances' list. JSON object: {",
    ),
    # Columns
    (
        several(inputs=[1.0]),
        400,
        (
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        ),
    ),
    (several(inputs={"a": [[1, 2]]}), 400, "Missing named input: b in 'inputs' object."),
    (
        half(inputs=[[1], [1, 2]]),
        400,
        "Encountered list at unexpected size: 2 at level: 1 expected size: 1",
    ),
    (half(inputs=[1, [2]]), 400, "Encountered list at unexpected level: 1 expected < 1"),
    # Types
    (types("int32", inputs=1.0), 400, "JSON Value: 1.0 Type: Number is not of expected type: int3"),
    (types("int32", inputs=2**31), 400, "JSON Value: 2147483648 Type: Number is not of expected"),
    (types("uint32", inputs=-1), 400, "JSON Value: -1 Type: Number is not of expected type: uint3"),
    (types("bool", inputs=1), 400, "JSON Value: 1 Type: Number is not of expected type: bool"),
    (types("string", inputs=1), 400, "JSON Value: 1 Type: Number is not of expected type: string"),
    (types("string", inputs={"b64": "*"}), 400, "Unable to base64 decode"),
    (
        types("string", instances=["a", {"b64": "*"}]),
        400,
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Unable to base",
    ),
    (
        types("string", instances=[{"x": {"b64": "*"}}]),
        400,
        "Failed to process element: 0 key: x of 'instances' list. Error: INVALID_ARGUMENT: Unable",
    ),
    (types("half", inputs=1), 501, "Conversion of JSON Value: 1 to type: half"),
    (types("uint16", inputs=1), 501, "Conversion of JSON Value: 1 to type: uint16"),
    (
        types("half", instances=[1]),
        400,
        f"{IN_ROW}UNIMPLEMENTED: Conversion of JSON Value: 1 to type: half",
    ),
    # The graph, and its outputs
    (types("gather", inputs=[0, 3]), 400, "indices[1] = 3 is not in [0, 3)"),
    (
        types("several", instances=[{"a": [1, 2], "b": "s"}]),
        400,
        "Tensor name: total has no shape information",
    ),
    (types("float", inputs="x"), 400, 'JSON Value: "x" Type: String is not of expected type: flo'),
    # Classify and regress
    (
        examples("classify"),
        400,
        "JSON Value: {} When method is classify, key 'examples' is expected and was not found",
    ),
    (
        examples("regress"),
        400,
        "JSON Value: {} When method is classify, key 'examples' is expected and was not found",
    ),
    (examples("regress", examples={}), 400, "JSON Value: {"),
    (examples("regress", examples=[]), 400, "JSON Value: {"),
    (examples("regress", examples=[1]), 400, "Example must be JSON object but got JSON Number"),
    (
        examples("regress", examples=[EXAMPLE], context=[]),
        400,
        "Example must be JSON object but got JSON Array",
    ),
    (
        examples("regress", examples=[{"x": None}]),
        400,
        "Feature: x has element with unexpected JSON type: Null",
    ),
    (
        examples("regress", examples=[{"x": [[1.0]]}]),
        400,
        "Feature: x has element with unexpected JSON type: Array",
    ),
    (
        examples("regress", examples=[{"x": {"y": 1}}]),
        400,
        "Feature: x has element with unexpected JSON type: Object",
    ),
    (
        examples("regress", examples=[{"x": [1, 1.5]}]),
        400,
        "Unexpected element type in feature: x expecting type: int64",
    ),
    (
        examples("regress", examples=[{"x": ["a", 1]}]),
        400,
        "Unexpected element type in feature: x expecting type: bytes",
    ),
    (
        examples("regress", examples=[{"x": 2**64 - 1}]),
        400,
        "Feature: x has uint64 element. Only int64 is supported.",
    ),
    (
        examples("regress", examples=[{"x": 1e300}]),
        400,
        "Cannot convert JSON value: 1e+300 to float without loss of precision.",
    ),
    (
        examples("regress", examples=[EXAMPLE], signature_name="s"),
        400,
        "No signature was found with the name: s",
    ),
    (
        examples("classify", examples=[EXAMPLE]),
        400,
        "Expected classification signature outputs to contain at least one of ",
    ),
    (
        ("POST", "/v1/models/no:classify", {"examples": [EXAMPLE]}),
        404,
        "Servable not found for request: Latest(no)",
    ),
    (("POST", "/v1/models/no:regress", {}), 400, "JSON Value: {} When method is classify, key"),
]


@pytest.mark.parametrize(
    ("asked", "status", "text"), ROWS, ids=[f"{r[0][0]}-{r[0][1]}-{r[2][-40:]}" for r in ROWS]
)
def test_what_is_wrong_is_said(
    rest: RestClient, asked: tuple[str, str, Any], status: int, text: str
) -> None:
    reply = rest.send(*asked)
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/json"
    assert reply.json.keys() == {"error"}
    said = reply.json["error"]
    assert text in said
    assert said.startswith(text) or text.startswith("indices")


def test_a_document_of_both_forms_or_a_numbered_signature_is_shown(rest: RestClient) -> None:
    both = rest.send(*half(instances=[1.0], inputs=[1.0])).json["error"]
    assert both.endswith("expecting only one of 'inputs' or 'instances' keys to exist ")
    numbered = rest.send(*half(signature_name=1, instances=[1.0])).json["error"]
    assert numbered.endswith("'signature_name' key must be a string value.")
    surplus = rest.send(*several(instances=[{"a": [1, 2]}])).json["error"]
    assert surplus.endswith("must only have keys: a,b")
    empty = rest.send(*examples("regress", examples=[])).json["error"]
    assert empty.endswith("'examples' value is an empty array")
    listless = rest.send(*examples("regress", examples={})).json["error"]
    assert listless.endswith("Expecting 'examples' value to be an list/array")


@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(b'{"instances": [1.0]}')[:-9]], ids=["broken", "cut off"]
)
def test_a_body_that_cannot_be_inflated_is_an_empty_one(rest: RestClient, body: bytes) -> None:
    reply = rest.send("POST", f"{HALF}:predict", body, {"content-encoding": "gzip"})
    assert reply.status == 400
    assert reply.json["error"].startswith("JSON Parse error: The document is empty")


def test_a_head_request_is_malformed_and_has_no_body(rest: RestClient) -> None:
    reply = rest.send("HEAD", HALF)
    assert (reply.status, reply.body) == (400, b"")


def test_messages_are_not_cut_over_rest(rest: RestClient) -> None:
    name = "n" * 5000
    reply = rest.predict(name, BODY)
    assert reply.json["error"] == f"Servable not found for request: Latest({name})"
