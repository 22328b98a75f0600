"""Messages that no Python package has, and text-format files of messages.

The messages are made here, in a pool of their own, so that they cannot clash with a package's.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from shardserve.batching.errors import InvalidArgument, NotFound

MAX_FILE_BYTES = 16 << 20

_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "string": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
    "int64": _Field.TYPE_INT64,
    "bytes": _Field.TYPE_BYTES,
}
#: Messages around one value, so that one that is not set is told from a zero.
_WRAPPERS = frozenset({"Int64Value", "StringValue", "BoolValue"})

#: A message's fields in the order of their numbers, from 1: a kind of `_KINDS`, one of protobuf's
#: `_WRAPPERS`, or another message of the file; "repeated " before it if there may be many.
Fields = Mapping[str, str]


def message_classes(package: str, messages: Mapping[str, Fields]) -> dict[str, type[Any]]:
    """The classes of a file's messages, by name. What a message names comes before it."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}/{'_'.join(messages).lower()}.proto",
        package=package,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            assert not keyword.iskeyword(field)
            _describe(message.field.add(name=field, number=number), kind, package)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in messages
    }


def parse_message(text: str, kind: type[Any], source: str) -> Any:
    """Raises InvalidArgument with `source`, line and column for what does not parse."""
    message = kind()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        name = message.DESCRIPTOR.full_name
        raise InvalidArgument(f"{source}: Error parsing text-format {name}: {error}") from None
    return message


def read_text(path: Path) -> str:
    """A file's text. Raises NotFound or InvalidArgument, naming it."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: {error}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidArgument(f"{path}: a configuration is at most {MAX_FILE_BYTES} bytes long")
    return text


def _describe(field: _Field, kind: str, package: str) -> None:
    single = kind.removeprefix("repeated ")
    field.label = _Field.LABEL_REPEATED if single != kind else _Field.LABEL_OPTIONAL
    if single in _KINDS:
        field.type = _KINDS[single]
    else:
        field.type = _Field.TYPE_MESSAGE
        where = "google.protobuf" if single in _WRAPPERS else package
        field.type_name = f".{where}.{single}"
