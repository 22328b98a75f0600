"""The tf.Examples of a classify or regress request, serialised, as a model's graph takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.router.json_dense import is_base64, unpack_base64
from shardserve.router.json_text import (
    may_repeat_a_key,
    parse_exactly,
    parse_object,
    shown,
    signature_name_of,
    to_bytes,
    type_name,
)
from shardserve.router.servable import Array

#: An empty Example is two bytes of a request, and a place in every array of the model's.
MAX_EXAMPLES = 1 << 20

#: The context is copied to every Example: bytes that these copies may take.
MAX_CONTEXT_BYTES = 256 << 20

_LARGEST_FLOAT = float(np.finfo(np.float32).max)

_INT64_RANGE = (-(2**63), 2**63 - 1)


def example_strings(given: Any) -> Array:
    """The Examples of a `serialized_examples.Input`, serialised: an array of bytes, [examples].

    The context, where there is one, is merged into each Example. Raises InvalidArgument for none,
    or too many.
    """
    if given.WhichOneof("kind") == "example_list_with_context":
        both = given.example_list_with_context
        return _strings(list(both.examples), both.context)
    return _strings(list(given.example_list.examples))


def parse_examples(body: bytes) -> tuple[str, Array]:
    """The signature's name ("" if none) and the Examples of a REST request, as `example_strings`.

    Raises InvalidArgument, in TensorFlow Serving's words.
    """
    document = parse_object(body)
    if may_repeat_a_key(body, _count_keys(document)):
        document = parse_exactly(body)
    name = signature_name_of(document)
    context = _example(document["context"]) if "context" in document else b""
    if "examples" not in document:
        raise InvalidArgument(
            f"JSON Value: {shown(document)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise InvalidArgument(
            f"JSON Value: {shown(document)} Expecting 'examples' value to be an list/array"
        )
    if not examples:
        raise InvalidArgument(f"JSON Value: {shown(document)} 'examples' value is an empty array")
    return name, _strings([_example(example) for example in examples], context)


def _strings(examples: list[bytes], context: bytes = b"") -> Array:
    if not examples:
        raise InvalidArgument("Input is empty.")
    if len(examples) > MAX_EXAMPLES:
        raise InvalidArgument(f"{len(examples)} examples are more than {MAX_EXAMPLES}")
    if context:
        if len(context) * len(examples) > MAX_CONTEXT_BYTES:
            raise InvalidArgument(
                f"a context of {len(context)} bytes for each of {len(examples)} examples is more "
                f"than {MAX_CONTEXT_BYTES} bytes"
            )
        # One message after the other is both of them merged.
        examples = [context + example for example in examples]
    strings = np.empty(len(examples), object)
    strings[:] = examples
    return strings


def _count_keys(document: dict[str, Any]) -> int:
    """Keys of the request, the Examples' and the context's; those of base64 are not counted."""
    examples = document.get("examples")
    parts = [document, document.get("context"), *(examples if isinstance(examples, list) else [])]
    return sum([len(part) for part in parts if isinstance(part, dict)])


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise InvalidArgument(f"Example must be JSON object but got JSON {type_name(value)}")
    example = example_pb2.Example()
    features = example.features.feature
    for name, content in value.items():
        feature = _feature(name, content if isinstance(content, list) else [content])
        features[to_bytes(name).decode("utf-8", "replace")].CopyFrom(feature)
    serialized: bytes = example.SerializeToString()
    return serialized


def _feature(name: str, values: Sequence[Any]) -> feature_pb2.Feature:
    """All values of one kind: integers and bools, decimals, or strings."""
    kinds = set(map(type, values))
    feature = feature_pb2.Feature()
    if not kinds:
        return feature
    if kinds <= {int, bool}:
        _check_range(name, values)
        feature.int64_list.value.extend(map(int, values))
    elif kinds == {float}:
        _check_floats(values)
        feature.float_list.value.extend(values)
    elif kinds <= {str, dict} and all(type(v) is str or is_base64(v) for v in values):
        feature.bytes_list.value.extend(
            [to_bytes(v) if type(v) is str else unpack_base64(v) for v in values]
        )
    else:
        raise InvalidArgument(_what_is_wrong(name, values))
    return feature


def _check_range(name: str, values: Sequence[int]) -> None:
    low, high = _INT64_RANGE
    if max(values) > high:
        raise InvalidArgument(f"Feature: {name} has uint64 element. Only int64 is supported.")
    if min(values) < low:
        raise InvalidArgument(f"Feature: {name} has an element below int64.")


def _check_floats(values: Sequence[float]) -> None:
    given = np.array(values, np.float64)
    lossy = given[(np.abs(given) > _LARGEST_FLOAT) & np.isfinite(given)]
    if lossy.size:
        raise InvalidArgument(
            f"Cannot convert JSON value: {shown(lossy[0].item())} to float without loss of "
            "precision."
        )


def _what_is_wrong(name: str, values: Sequence[Any]) -> str:
    """Of values that are not all of one kind, or of none: about the first that cannot be."""
    expected = ""
    for value in values:
        kind = _kind(value)
        if kind is None:
            return f"Feature: {name} has element with unexpected JSON type: {type_name(value)}"
        if expected and kind != expected:
            break
        expected = kind
    return f"Unexpected element type in feature: {name} expecting type: {expected}"


def _kind(value: Any) -> str | None:
    if isinstance(value, bool | int):
        return "int64"
    if isinstance(value, float):
        return "float"
    return "bytes" if isinstance(value, str) or is_base64(value) else None
