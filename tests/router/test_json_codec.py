"""REST predict bodies become the arrays they stand for, or errors in the original's words."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shardserve.batching.errors import InvalidArgument, Unimplemented
from shardserve.router.json_codec import Form, decode_predict, parse_predict
from shardserve.router.json_dense import dense
from shardserve.router.json_strict import decode_columns
from shardserve.router.servable import Signature, TensorInfo
from shardserve.router.tensor_types import BY_NUMBER, BY_NUMPY, STRING

TYPES = {kind.name: kind for kind in BY_NUMBER.values()}


def signature(**types: str) -> Signature:
    inputs = {
        name: TensorInfo(f"{name}:0", TYPES[kind].number, None) for name, kind in types.items()
    }
    return Signature("tensorflow/serving/predict", inputs, {})


def decode(body: Any, **types: str) -> dict[str, np.ndarray]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode_predict(parse_predict(raw), signature(**types))


def refusal(body: Any, **types: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        decode(body, **types)
    return caught.value.message


JSON_DTYPES = ["float32", "float64", "int32", "int64", "int16", "int8", "uint8", "uint32", "uint64",
               "bool"]  # fmt: skip

shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
arrays = st.sampled_from(JSON_DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype, shapes, elements={"allow_nan": False} if dtype.startswith("float") else None
    )
)
strings = hnp.arrays(object, shapes, elements=st.text(max_size=5), fill=st.nothing())


def _text(value: Any) -> str:
    """JSON with the tokens for what is not finite, as clients in Python write it."""
    return json.dumps(value)


# Requests


@given(arrays)
@settings(max_examples=150)
def test_rows_and_columns_decode_to_the_array_written(array: np.ndarray) -> None:
    kind = BY_NUMPY[array.dtype].name
    for form in Form:
        decoded = decode(f'{{"{form.value}": {_text(array.tolist())}}}'.encode(), x=kind)["x"]
        assert decoded.dtype == array.dtype
        np.testing.assert_array_equal(decoded, array)


@given(strings)
@settings(max_examples=50)
def test_strings_decode_to_their_utf_8(array: np.ndarray) -> None:
    decoded = decode({"inputs": array.tolist()}, x="string")["x"]
    assert decoded.dtype == object
    assert decoded.shape == array.shape
    assert decoded.ravel().tolist() == [text.encode() for text in array.ravel()]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3)
    | st.builds(lambda raw: {"b64": base64.b64encode(raw).decode()}, st.binary(max_size=4)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(json_values, st.sampled_from([*TYPES.values()]))
@settings(max_examples=300)
def test_the_quick_way_agrees_with_the_strict_one(value: Any, kind: Any) -> None:
    with np.errstate(over="ignore"):
        quick = dense(value, kind)
        if quick is None:
            return
        strict = decode_columns({"x": value}, {"x": kind})["x"]
    assert quick.dtype == strict.dtype
    assert quick.shape == strict.shape
    if kind is STRING:
        assert quick.tolist() == strict.tolist()
    else:
        np.testing.assert_array_equal(quick, strict)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
@settings(max_examples=200)
def test_any_bytes_give_an_answer_or_a_clear_error(body: bytes) -> None:
    try:
        decode(body, x="float")
    except InvalidArgument as error:
        message = error.message
    else:
        message = "none"
    assert message


@given(st.data(), json_values)
@settings(max_examples=100)
def test_a_body_cut_off_anywhere_is_a_parse_error(data: st.DataObject, value: Any) -> None:
    body = json.dumps({"instances": [value]}).encode()
    cut = data.draw(st.integers(1, len(body) - 1))
    assert refusal(body[:cut], x="float").startswith("JSON Parse error: ")


def test_named_rows_are_gathered_by_name() -> None:
    rows = [{"a": 1, "b": ["x", "y"]}, {"b": ["z", "w"], "a": 2.5}]
    decoded = decode({"instances": rows}, a="float", b="string")
    assert decoded["a"].tolist() == [1.0, 2.5]
    assert decoded["b"].tolist() == [[b"x", b"y"], [b"z", b"w"]]


def test_named_columns_ignore_names_that_are_not_asked_for() -> None:
    decoded = decode({"inputs": {"a": 1, "b": [[2]], "c": "?"}}, a="float", b="int64")
    assert decoded["a"].shape == ()
    assert decoded["b"].tolist() == [[2]]


def test_one_input_may_be_named_or_not() -> None:
    for body in ({"inputs": {"x": [1]}}, {"inputs": [1]}, {"instances": [{"x": 1}]}):
        assert decode(body, x="int64")["x"].tolist() == [1]


def test_the_tokens_for_what_is_not_finite_are_numbers() -> None:
    body = b'{"inputs": [NaN, Infinity, -Infinity, Inf, -Inf, 1e999, -1e999, 1e39]}'
    decoded = decode(body, x="float")["x"].tolist()
    assert math.isnan(decoded[0])
    assert decoded[1:] == [math.inf, -math.inf, math.inf, -math.inf, math.inf, -math.inf, math.inf]


def test_the_tokens_are_text_inside_strings() -> None:
    body = rb'{"inputs": ["Inf", "a\"Inf", "NaN", Inf]}'
    assert 'Value: "Inf" Type: String' in refusal(body, x="float")


def test_small_integers_wrap_as_32_bits_do() -> None:
    assert decode({"inputs": [300, -1]}, x="uint8")["x"].tolist() == [44, 255]
    assert decode({"inputs": [40000]}, x="int16")["x"].tolist() == [-25536]


def test_base64_is_a_value_wherever_a_string_is() -> None:
    raw = {"b64": base64.b64encode(b"\xff\0").decode()}
    assert decode({"instances": [raw, "a"]}, x="string")["x"].tolist() == [b"\xff\0", b"a"]
    assert decode({"inputs": raw}, x="string")["x"].item() == b"\xff\0"
    assert decode({"inputs": {"b64": "YQ"}}, x="string")["x"].item() == b"a"


def test_bytes_that_are_no_utf_8_go_through_strings_unchanged() -> None:
    assert decode(b'{"inputs": ["\xff\xfe"]}', x="string")["x"].tolist() == [b"\xff\xfe"]


def test_of_two_equal_keys_the_first_counts() -> None:
    assert decode(b'{"inputs": [1], "inputs": [2]}', x="int64")["x"].tolist() == [1]
    assert decode(b'{"inputs": {"x": [1], "x": [2]}}', x="int64")["x"].tolist() == [1]


def test_what_follows_the_object_is_ignored_and_so_is_a_byte_order_mark() -> None:
    assert decode(b'\xef\xbb\xbf {"inputs": 1} }garbage', x="int64")["x"].item() == 1


def test_empty_lists_keep_their_shape() -> None:
    assert decode({"inputs": [[], []]}, x="int64")["x"].shape == (2, 0)
    assert decode({"instances": [[], []]}, x="string")["x"].shape == (2, 0)


def test_the_signature_s_name_is_told() -> None:
    assert parse_predict(b'{"signature_name": "s", "inputs": 1}').signature_name == "s"
    assert parse_predict(b'{"inputs": 1}').signature_name == ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b" \n", "JSON Parse error: The document is empty. at offset: 2"),
        (b"hello", "JSON Parse error: "),
        (b"\xff\xfe\x00", "JSON Parse error: "),
        (b'{"inputs": [1, }', "JSON Parse error: "),
        (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b'{"inputs": ' + b"[" * 100 + b"]" * 100 + b"}", "more than 64 dimensions"),
        (b'{"inputs": ' + b"1" * 5000 + b"}", "Number too big to be stored in double"),
        (b"[1]", "Is not object"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"inputs": 1, "instances": [1]}', "Not formatted correctly expecting only one of"),
        (b'{"instances": []}', "No values in 'instances' array"),
        (b'{"instances": 1}', "Excepting 'instances' to be an list/array"),
        (b'{"signature_name": 1, "inputs": 1}', "'signature_name' key must be a string value."),
        (b'{"inputs": {"y": 1}}', "Missing named input: x in 'inputs' object."),
        (b'{"inputs": [[1], [1, 2]]}', "Encountered list at unexpected size: 2 at level: 1"),
        (b'{"inputs": [1, [2]]}', "Encountered list at unexpected level: 1 expected < 1"),
        (b'{"inputs": [[1], 2]}', "found at incorrect level: 2 in the JSON DOM"),
        (b'{"inputs": "a"}', 'JSON Value: "a" Type: String is not of expected type: float'),
        (b'{"inputs": true}', "JSON Value: true Type: True is not of expected type: float"),
        (b'{"inputs": null}', "JSON Value: null Type: Null is not of expected type: float"),
        (
            b'{"instances": [1, "a"]}',
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value",
        ),
        (b'{"instances": [[1], [1, 2]]}', "Expecting tensor size: 1 but got: 2"),
        (b'{"instances": [[[1, 2]], [[1], [2]]]}', "Expecting shape [1,2] but got: [2,1]"),
        (b'{"instances": [{"x": 1}, 2]}', "Expecting object but got list at item 1"),
        (b'{"instances": [2, {"x": 1}]}', "Expecting value/list but got object at item 1"),
        (
            b'{"instances": [{"x": 1}, {"z": 1}]}',
            "Failed to process element: 1 key: z of 'instances' list. Error: INVALID_ARGUMENT: J",
        ),
        (b'{"instances": [{"z": 1}]}', "JSON object: does not have named input: z"),
        (b'{"instances": [{}]}', "must only have keys: x"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(body: bytes, message: str) -> None:
    assert message in refusal(body, x="float")


def test_base64_that_is_none_is_refused_with_its_place() -> None:
    for instances, place in (
        (["a", {"b64": "*"}], "element: 1 of"),
        ([{"x": {"b64": "*"}}], "element: 0 key: x of"),
        ([["a"] * 50, ["a"] * 49 + [{"b64": "*"}]], "element: 1 of"),
    ):
        said = refusal({"instances": instances}, x="string")
        assert said.startswith(f"Failed to process {place} 'instances' list. Error: INVALID_")
        assert said.endswith("Unable to base64 decode")


def test_half_a_surrogate_pair_is_no_string() -> None:
    assert "The surrogate pair in string is invalid" in refusal(
        b'{"inputs": "\\ud800"}', x="string"
    )


def test_several_inputs_must_be_named() -> None:
    types = {"a": "float", "b": "float"}
    assert "instances is a plain list, but expecting list of objects" in refusal(
        {"instances": [1]}, **types
    )
    assert "inputs is a plain value/list, but expecting an object" in refusal(
        {"inputs": [1]}, **types
    )
    assert "must only have keys: a,b" in refusal({"instances": [{"a": 1}]}, **types)
    assert "Failed to process element: 0 key: b" in refusal(
        {"instances": [{"a": 1, "b": "?"}]}, **types
    )


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int64", 1.0),
        ("int64", 2**63),
        ("int32", 2**31),
        ("int8", 2**31),
        ("uint32", -1),
        ("uint32", 2**32),
        ("uint64", -1),
        ("uint64", 2**64),
        ("bool", 1),
        ("string", 1),
        ("int64", True),
    ],
)
def test_values_of_another_type_or_out_of_range_are_refused(kind: str, value: Any) -> None:
    assert refusal({"inputs": value}, x=kind).endswith(f"is not of expected type: {kind}")


def test_types_that_json_cannot_carry_are_unimplemented_and_in_rows_invalid() -> None:
    with pytest.raises(Unimplemented, match="Conversion of JSON Value: 1 to type: half"):
        decode({"inputs": 1}, x="half")
    assert "UNIMPLEMENTED: Conversion" in refusal({"instances": [1]}, x="half")


def test_a_signature_without_inputs_cannot_be_asked_over_rest() -> None:
    assert refusal({"inputs": 1}) == "Failed to get input map for signature: DEFAULT"


def test_bad_base64_is_refused() -> None:
    assert "Unable to base64 decode" in refusal({"inputs": {"b64": "*"}}, x="string")
    assert "base64 data" in refusal({"inputs": {"x": {"b64": 1}}}, x="string")


def test_a_message_about_a_huge_value_is_short() -> None:
    nested: Any = {"k": "v" * 10_000}
    for _ in range(40):
        nested = [nested] * 40 if isinstance(nested, dict) else [nested]
    message = refusal(orjson.dumps({"instances": nested, "inputs": "x" * 1_000_000}), x="float")
    assert len(message) < 2000
