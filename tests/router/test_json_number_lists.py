"""Long lists of numbers are read as all others are, only by another way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import ServingError
from shardserve.router.json_codec import PredictBody, decode_predict, parse_predict
from shardserve.router.json_number_lists import NumberLists
from shardserve.router.json_text import parse_object
from shardserve.router.servable import Signature, TensorInfo
from shardserve.router.tensor_types import BY_NUMBER

#: Enough white space for any lists to count as long.
_LONG = b" " * 4096

_TYPES = {kind.name: number for number, kind in BY_NUMBER.items()}

_numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-300, 300),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0.5, -0.0, 1e300, 2**31, 2**53 + 1, 2**63, 2**64 - 1]),
)
_odd = st.sampled_from([True, None, "1", {}, [], [1], {"b64": "AA"}])


@st.composite
def _lists(draw: st.DrawFn) -> Any:
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    elements = draw(
        st.one_of(
            st.lists(_numbers, min_size=64, max_size=64),
            st.lists(st.integers(-300, 300), min_size=64, max_size=64),
            st.lists(st.one_of(_numbers, _odd), min_size=64, max_size=64),
        )
    )
    flat = iter(elements)

    def filled(sizes: list[int]) -> Any:
        size = sizes[0] + draw(st.sampled_from([0] * 15 + [1]))
        return [filled(sizes[1:]) if sizes[1:] else next(flat, 1) for _ in range(size)]

    return filled(shape)


def _signature(*kinds: str) -> Signature:
    inputs = {f"x{place}": TensorInfo("x:0", _TYPES[k], None) for place, k in enumerate(kinds)}
    return Signature("", inputs, {})


def _outcome(body: PredictBody, signature: Signature) -> Any:
    try:
        arrays = decode_predict(body, signature)
    except ServingError as error:
        return error.code, error.message
    return {alias: (a.dtype, a.shape, a.tobytes()) for alias, a in arrays.items()}


def _by_values(body: bytes, key: str) -> PredictBody:
    parsed = parse_predict(body)
    return PredictBody(parsed.signature_name, parsed.form, parse_object(body)[key])


@settings(max_examples=200)
@given(
    _lists(),
    st.sampled_from(["instances", "inputs"]),
    st.lists(
        st.sampled_from(["float", "double", "half", "int32", "int64", "uint8", "uint64", "bool"]),
        min_size=1,
        max_size=2,
    ),
)
def test_lists_of_numbers_are_what_they_are_value_by_value(
    lists: Any, key: str, kinds: list[str]
) -> None:
    body = json.dumps({key: lists}).encode() + _LONG
    signature = _signature(*kinds)
    assert _outcome(parse_predict(body), signature) == _outcome(_by_values(body, key), signature)


def test_a_long_list_is_read_without_a_python_object_for_each_number() -> None:
    body = json.dumps({"signature_name": "s", "instances": [[0.5] * 500] * 2}).encode()
    parsed = parse_predict(body)
    assert isinstance(parsed.content, NumberLists)
    assert parsed.signature_name == "s"
    [(_, x)] = decode_predict(parsed, _signature("float")).items()
    np.testing.assert_array_equal(x, np.full((2, 500), 0.5, np.float32))


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [1, 2], "inputs": [1]}',
        b'{"instances": [1, 2], "instances": [1]}',
        b'{"instances": [1, 2], "other": 1}',
        b'{"instances": 1}',
        b'{"instances": [1, 2], "signature_name": 1}',
        b'{"instances": [1, 2]} and more',
        b'{"instances": [1, NaN]}',
        b"[1, 2]",
    ],
)
def test_what_is_not_one_list_of_numbers_goes_the_other_way(body: bytes) -> None:
    try:
        parsed = parse_predict(body.replace(b"{", b"{" + _LONG, 1))
    except ServingError:
        return
    assert not isinstance(parsed.content, NumberLists)
