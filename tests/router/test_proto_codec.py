"""TensorProtos decode as TensorFlow's own parser decodes them, and encode to what it reads back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.router.proto_codec import (
    FIELDS,
    TensorError,
    decode_tensor,
    encode_predict_response,
    encode_tensor,
)
from shardserve.router.tensor_types import BY_NUMBER, STRING, name_of
from shardserve.router.varints import encode_varints

NUMERIC = [kind for kind in BY_NUMBER.values() if kind is not STRING and kind.numpy.names is None]


def _proto(dtype: int, shape: list[int] | None = None, **fields: Any) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=dtype, **fields)
    for size in shape or []:
        proto.tensor_shape.dim.add(size=size)
    return proto


def _by_tensorflow(proto: tensor_pb2.TensorProto) -> np.ndarray:
    tensor = tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype))
    value = tensor.numpy()
    return np.asarray(value, object if proto.dtype == STRING.number else None)


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype == object:
        return left.shape == right.shape and left.tolist() == right.tolist()
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.kind in "fc":
        # A float that passes through a Python float may lose the payload of its NaN.
        return np.array_equal(left, right, equal_nan=True)
    return np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()


shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
strings = hnp.arrays(object, shapes, elements=st.binary(max_size=6), fill=st.nothing())


@st.composite
def numbers(draw: st.DrawFn) -> np.ndarray:
    """Arrays of any type but strings, of any bits."""
    kind = draw(st.sampled_from(NUMERIC))
    shape = draw(shapes)
    size = int(np.prod(shape)) * kind.numpy.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    if kind.numpy == np.bool_:
        raw = raw & 1
    if kind.name in ("int4", "uint4"):
        raw = (raw & 7).astype(np.uint8)
    return raw.view(kind.numpy).reshape(shape)


@given(numbers() | strings)
@settings(max_examples=200)
def test_encoded_tensors_read_back_here_and_in_tensorflow(array: np.ndarray) -> None:
    proto = tensor_pb2.TensorProto.FromString(encode_tensor(array))
    assert not proto.tensor_content
    assert _same(decode_tensor(proto), array)
    assert _same(_by_tensorflow(proto), array)


@given(numbers())
@settings(max_examples=100)
def test_tensor_content_decodes_to_the_same_bits(array: np.ndarray) -> None:
    kind = next(k for k in NUMERIC if k.numpy == array.dtype)
    proto = _proto(kind.number, list(array.shape), tensor_content=array.tobytes())
    assert _same(decode_tensor(proto), array)


@given(strings)
@settings(max_examples=100)
def test_strings_in_tensor_content_are_taken_apart(array: np.ndarray) -> None:
    proto = tensor_pb2.TensorProto.FromString(
        tf.io.serialize_tensor(tf.constant(array, tf.string)).numpy()
    )
    assert _same(decode_tensor(proto), array)


@given(
    count=st.integers(0, 6),
    given_values=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=60),
    kind=st.sampled_from(["int32", "int8", "uint8", "int16", "uint16", "half", "bfloat16"]),
)
def test_too_few_values_repeat_the_last_and_surplus_ones_are_dropped(
    count: int, given_values: list[int], kind: str
) -> None:
    tensor_type = next(k for k in NUMERIC if k.name == kind)
    proto = _proto(tensor_type.number, [count], **{tensor_type.field: given_values})
    assert _same(decode_tensor(proto), _by_tensorflow(proto))


@pytest.mark.parametrize(
    "proto",
    [
        _proto(types_pb2.DT_STRING, [3], string_val=[b"a", b"b"]),
        _proto(types_pb2.DT_STRING, [2]),
        _proto(types_pb2.DT_STRING, [1], string_val=[b"a", b"b"]),
        _proto(types_pb2.DT_COMPLEX64, [2], scomplex_val=[1, 2, 3]),
        _proto(types_pb2.DT_BOOL, [3], bool_val=[True, False]),
        _proto(types_pb2.DT_FLOAT, [0], tensor_content=b"abcd"),
        _proto(types_pb2.DT_FLOAT, [1], tensor_content=b"abcd", float_val=[1]),
        _proto(types_pb2.DT_FLOAT8_E5M2, [3], float8_val=b"\x01\x02"),
    ],
)
def test_odd_protos_are_read_as_tensorflow_reads_them(proto: tensor_pb2.TensorProto) -> None:
    assert _same(decode_tensor(proto), _by_tensorflow(proto))


def test_an_unknown_rank_is_a_scalar() -> None:
    proto = _proto(types_pb2.DT_FLOAT, float_val=[7, 8])
    proto.tensor_shape.unknown_rank = True
    assert _same(decode_tensor(proto), np.array(7, np.float32))


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (_proto(types_pb2.DT_INVALID, [1]), "type invalid"),
        (_proto(types_pb2.DT_RESOURCE), "type resource"),
        (_proto(999), "unknown dtype enum"),
        (_proto(types_pb2.DT_FLOAT, [-1], float_val=[1]), r"invalid shape \[-1\]"),
        (_proto(types_pb2.DT_FLOAT, [1] * 65, float_val=[1]), "invalid shape"),
        (_proto(types_pb2.DT_FLOAT, [1] * 5000), "a shape of 20000 bytes"),
        (_proto(types_pb2.DT_FLOAT, [2**40, 2**40]), "invalid shape"),
        (_proto(types_pb2.DT_FLOAT, [0, 2**62]), "invalid shape"),
        (_proto(types_pb2.DT_FLOAT, [2**40], float_val=[1]), "1 values for a shape of"),
        (_proto(types_pb2.DT_STRING, [2**40]), "values for a shape of"),
        (_proto(types_pb2.DT_FLOAT, [2], tensor_content=b"abcd"), "4 bytes, the shape takes 8"),
        (_proto(types_pb2.DT_FLOAT, [2**40], tensor_content=b"abcd"), "4 bytes, the shape"),
        (_proto(types_pb2.DT_BOOL, [1], tensor_content=b"\x02"), "no bool"),
        (_proto(types_pb2.DT_STRING, [2], tensor_content=b"\x01\x02ab"), "not those of its"),
        (_proto(types_pb2.DT_STRING, [2], tensor_content=b"\x01\x02abcd"), "not those of its"),
        (_proto(types_pb2.DT_STRING, [1], tensor_content=b"\xff" * 3), "cut off"),
        (_proto(types_pb2.DT_STRING, [2**40], tensor_content=b"\x01a"), "strings"),
    ],
)
def test_what_is_no_tensor_is_refused_before_it_is_allocated(
    proto: tensor_pb2.TensorProto, reason: str
) -> None:
    with pytest.raises(TensorError, match=reason):
        decode_tensor(proto)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=30, max_size=60))
@settings(max_examples=20)
def test_few_and_many_values_take_different_ways_to_the_same_array(values: list[int]) -> None:
    proto = _proto(types_pb2.DT_INT64, [len(values)], int64_val=values)
    assert decode_tensor(proto).tolist() == values


@given(hnp.arrays(st.sampled_from(["i1", "i4", "i8", "u2", "u4", "u8"]), st.integers(0, 30)))
@settings(max_examples=50)
def test_varints_are_those_of_protobuf(values: np.ndarray) -> None:
    wide = values.astype(np.int64).tolist() if values.dtype.kind == "i" else values.tolist()
    field = "int64_val" if values.dtype.kind == "i" else "uint64_val"
    packed = tensor_pb2.TensorProto(**{field: wide}).SerializeToString()
    assert packed.endswith(encode_varints(values))


def test_the_fields_are_those_of_the_proto() -> None:
    for name, field in FIELDS.items():
        assert tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name[name].number == field.number


@given(st.dictionaries(st.text(max_size=200), numbers() | strings, max_size=4))
@settings(max_examples=50)
def test_a_predict_response_holds_its_outputs_and_its_spec(outputs: dict[str, Any]) -> None:
    spec = model_pb2.ModelSpec(name="m", signature_name="s")
    raw = encode_predict_response(outputs, spec.SerializeToString())
    response = predict_pb2.PredictResponse.FromString(raw)
    assert response.model_spec == spec
    assert response.outputs.keys() == outputs.keys()
    for alias, array in outputs.items():
        assert _same(decode_tensor(response.outputs[alias]), array)


def test_an_array_that_tensorflow_has_no_type_for_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="datetime64"):
        encode_tensor(np.array(["2020"], "M8[Y]"))


def test_arrays_that_do_not_lie_in_order_are_encoded_in_order() -> None:
    array = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3).T
    proto = tensor_pb2.TensorProto.FromString(encode_tensor(array))
    assert _same(decode_tensor(proto), np.ascontiguousarray(array))


def test_types_are_called_what_tensorflow_calls_them_in_messages() -> None:
    assert name_of(types_pb2.DT_FLOAT) == "float"
    assert name_of(types_pb2.DT_HALF) == "half"
    assert name_of(types_pb2.DT_VARIANT) == "variant"
