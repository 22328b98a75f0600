"""The open inference protocol (KServe v2), which Triton speaks: JSON and gRPC, for one output.

Only the fields that are used, with the protocol's own numbers: no client package is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from benchmarks.workloads import Array

INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"
DATATYPES = {"float32": "FP32", "int64": "INT64"}

_Field = descriptor_pb2.FieldDescriptorProto


def json_request(inputs: Mapping[str, Array]) -> bytes:
    """The body of `POST /v2/models/NAME/infer`."""
    tensors = [
        {
            "name": name,
            "shape": list(value.shape),
            "datatype": DATATYPES[value.dtype.name],
            "data": value.reshape(-1),
        }
        for name, value in inputs.items()
    ]
    return orjson.dumps({"inputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)


def json_predictions(reply: bytes) -> Array:
    """The one output's data, float32. Raises ValueError if there is none."""
    try:
        return np.array(orjson.loads(reply)["outputs"][0]["data"], np.float32)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no output in {reply[:100]!r}") from error


def grpc_request(model_name: str) -> Callable[[Mapping[str, Array]], bytes]:
    """Encodes a ModelInferRequest with raw contents, as Triton's own client does."""

    def encode(inputs: Mapping[str, Array]) -> bytes:
        request = _REQUEST(model_name=model_name)
        for name, value in inputs.items():
            datatype = DATATYPES[value.dtype.name]
            request.inputs.add(name=name, datatype=datatype, shape=value.shape)
            request.raw_input_contents.append(value.tobytes())
        serialized: bytes = request.SerializeToString()
        return serialized

    return encode


def grpc_predictions(reply: bytes) -> Array:
    """The one output's raw contents, float32. Raises ValueError if there are none."""
    try:
        return np.frombuffer(_RESPONSE.FromString(reply).raw_output_contents[0], np.float32)
    except (DecodeError, IndexError) as error:
        raise ValueError(f"no output in {reply[:100]!r}") from error


def _messages() -> tuple[Any, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="kserve_subset.proto", package="inference", syntax="proto3"
    )
    tensor = file.message_type.add(name="InferTensor")
    _add(tensor, "name", 1, _Field.TYPE_STRING)
    _add(tensor, "datatype", 2, _Field.TYPE_STRING)
    _add(tensor, "shape", 3, _Field.TYPE_INT64, repeated=True)
    request = file.message_type.add(name="ModelInferRequest")
    _add(request, "model_name", 1, _Field.TYPE_STRING)
    _add(request, "inputs", 5, _Field.TYPE_MESSAGE, repeated=True)
    request.field[-1].type_name = ".inference.InferTensor"
    _add(request, "raw_input_contents", 7, _Field.TYPE_BYTES, repeated=True)
    response = file.message_type.add(name="ModelInferResponse")
    _add(response, "raw_output_contents", 6, _Field.TYPE_BYTES, repeated=True)
    # A pool of its own: a client package in the same process may register the whole protocol.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    request_type, response_type = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}"))
        for name in ("ModelInferRequest", "ModelInferResponse")
    )
    return request_type, response_type


def _add(message: Any, name: str, number: int, kind: Any, repeated: bool = False) -> None:
    label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    message.field.add(name=name, number=number, type=kind, label=label)


_REQUEST, _RESPONSE = _messages()
