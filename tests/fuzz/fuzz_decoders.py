"""Fuzzes the decoders of JSON bodies and of TensorProtos, for as long as it is let: opt-in.

    pip install -e '.[fuzz]'
    python tests/fuzz/fuzz_decoders.py [json|tensor|examples] [libFuzzer's options]

It ends with the first input that does anything but decode or be refused; the input is kept.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import atheris
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2

from shardserve.batching.errors import InvalidArgument, Unimplemented

# What numba compiles must stay as it is.
importlib.import_module("shardserve.router.varints")

with atheris.instrument_imports(include=["shardserve"]):
    from shardserve.router import examples, json_codec, proto_codec, serialized_examples
    from shardserve.router.servable import Signature, TensorInfo
    from shardserve.router.tensor_types import BY_NUMBER

TYPES = sorted(BY_NUMBER)


def json_body(data: bytes) -> None:
    """The first byte says how many inputs there are, and of which types."""
    if not data:
        return
    kinds = [TYPES[(data[0] + place) % len(TYPES)] for place in range(1 + data[0] % 2)]
    inputs = {name: TensorInfo(name, kind, None) for name, kind in zip("xy", kinds, strict=False)}
    try:
        json_codec.decode_predict(json_codec.parse_predict(data[1:]), Signature("", inputs, {}))
    except (InvalidArgument, Unimplemented):
        return


def tensor(data: bytes) -> None:
    try:
        array = proto_codec.decode_tensor(tensor_pb2.TensorProto.FromString(data))
    except (DecodeError, proto_codec.TensorError):
        return
    again = tensor_pb2.TensorProto.FromString(proto_codec.encode_tensor(array, as_content=True))
    assert proto_codec.decode_tensor(again).tobytes() == array.tobytes() or array.dtype == object
    # Numbers that are signalling NaNs may come back as quiet ones.
    proto_codec.decode_tensor(tensor_pb2.TensorProto.FromString(proto_codec.encode_tensor(array)))


def example_list(data: bytes) -> None:
    for decode in (
        lambda: examples.parse_examples(data),
        lambda: examples.example_strings(serialized_examples.Input.FromString(data)),
    ):
        try:
            decode()
        except (DecodeError, InvalidArgument):
            continue


TARGETS: dict[str, Callable[[bytes], None]] = {
    "json": json_body,
    "tensor": tensor,
    "examples": example_list,
}

if __name__ == "__main__":
    chosen = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in TARGETS else "json"
    atheris.Setup(sys.argv, TARGETS[chosen])
    atheris.Fuzz()
