"""ModelSpec messages, as requests have them and as replies do."""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow_serving.apis import model_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.router.catalog import ModelSpec

#: The tag of a message that is field 1, as `model_spec` is of most requests.
_FIRST_FIELD = 0x0A

#: Characters of a model's name in metrics and logs, where what clients send is kept.
_MAX_NAME = 256


def spec_of(request: Any) -> ModelSpec:
    """The ModelSpec of any request that has one. Raises InvalidArgument if it is missing."""
    if not request.HasField("model_spec"):
        raise InvalidArgument("Missing ModelSpec")
    return spec_from(request.model_spec)


def spec_from(spec: model_pb2.ModelSpec) -> ModelSpec:
    """The message as the catalog takes it."""
    choice = spec.WhichOneof("version_choice")
    return ModelSpec(
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )


def metric_name(name: str) -> str:
    """A model's name, of those that clients made up too, as metrics and logs may have it."""
    if name.isascii() and len(name) <= _MAX_NAME:
        return name
    return name[:_MAX_NAME].encode("utf-8", "replace").decode()


def peek_spec(raw: bytes) -> ModelSpec | None:
    """The ModelSpec that a serialised request begins with, where it does, without parsing more."""
    if not raw or raw[0] != _FIRST_FIELD:
        return None
    size = shift = 0
    for place in range(1, min(len(raw), 6)):
        size |= (raw[place] & 127) << shift
        shift += 7
        if raw[place] < 128:
            return _parsed(raw[place + 1 : place + 1 + size])
    return None


def _parsed(raw: bytes) -> ModelSpec | None:
    try:
        return spec_from(model_pb2.ModelSpec.FromString(raw))
    except DecodeError:
        return None


def spec_message(spec: ModelSpec, signature: str) -> bytes:
    """The serialised ModelSpec of a request that means `spec`, and this signature of it."""
    message = model_pb2.ModelSpec(name=spec.name, signature_name=signature)
    if spec.version is not None:
        message.version.value = spec.version
    elif spec.label is not None:
        message.version_label = spec.label
    serialized: bytes = message.SerializeToString()
    return serialized


@functools.lru_cache(maxsize=1024)
def served_spec(name: str, signature: str, version: int) -> bytes:
    """The serialised ModelSpec of a reply: what answered, with nothing left open."""
    spec = model_pb2.ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    serialized: bytes = spec.SerializeToString()
    return serialized
