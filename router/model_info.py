"""GetModelMetadata and GetModelStatus, and the JSON that REST has for them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from shardserve.batching.errors import InvalidArgument
from shardserve.router.catalog import Catalog, ModelSpec

_SIGNATURE_DEF = "signature_def"


def check_metadata_fields(fields: Iterable[str]) -> None:
    """Raises InvalidArgument for none, and for one that there is not."""
    if not fields:
        raise InvalidArgument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in fields:
        if field != _SIGNATURE_DEF:
            raise InvalidArgument(f"Metadata field {field} is not supported")


def metadata_of(
    catalog: Catalog, spec: ModelSpec
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """The model's signatures. Raises as `Catalog.resolve` does."""
    servable = catalog.resolve(spec)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    signatures = get_model_metadata_pb2.SignatureDefMap.FromString(servable.signature_def_map)
    response.metadata[_SIGNATURE_DEF].Pack(signatures, deterministic=True)
    return response


def metadata_json(response: get_model_metadata_pb2.GetModelMetadataResponse) -> bytes:
    """The REST form, in which the signatures are not packed; line by line as the original's."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata[_SIGNATURE_DEF].Unpack(signatures)
    return (
        f'{{\n"model_spec":{_json(response.model_spec)}\n,\n'
        f'"metadata": {{"{_SIGNATURE_DEF}": {_json(signatures)}\n}}\n}}\n'
    ).encode()


def status_of(catalog: Catalog, spec: ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
    """The states of the model's versions, newest first; a label is not looked at."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, version in catalog.statuses(spec):
        row = response.model_version_status.add(version=number, state=int(version.state))
        row.status.error_code = int(version.code)
        row.status.error_message = version.message
    return response


def status_json(response: get_model_status_pb2.GetModelStatusResponse) -> bytes:
    """The REST form."""
    return f"{_json(response)}\n".encode()


def _json(message: Message) -> str:
    """The same text in every process: maps come in an order of the process' own."""
    fields: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(_with_maps_sorted(fields, message.DESCRIPTOR), indent=1, ensure_ascii=False)


def _with_maps_sorted(fields: Any, of: Any) -> Any:
    """A message's fields by its descriptor; a well-known type that is no object stays as it is."""
    if not isinstance(fields, dict):
        return fields
    return {name: _value_sorted(value, of.fields_by_name[name]) for name, value in fields.items()}


def _value_sorted(value: Any, of: FieldDescriptor) -> Any:
    inner = of.message_type
    if inner is None:
        return value
    if inner.GetOptions().map_entry:
        entry = inner.fields_by_name["value"]
        return {key: _value_sorted(value[key], entry) for key in sorted(value)}
    if isinstance(value, list):
        return [_with_maps_sorted(one, inner) for one in value]
    return _with_maps_sorted(value, inner)
