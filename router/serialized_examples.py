"""Requests of tf.Examples, parsed but for the Examples, which the model's graph is to parse.

The messages have the wire format of TensorFlow Serving's, with `bytes` where those have an Example,
as the original has them for itself: parsing an Example only to serialise it again takes longer than
all the rest of a request.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow_serving.apis import inference_pb2, model_pb2

from shardserve.router.servable import Array

_PACKAGE = "shardserve"
_FILE = "shardserve/serialized_examples.proto"

_Field = descriptor_pb2.FieldDescriptorProto


def _message(name: str, *fields: descriptor_pb2.FieldDescriptorProto) -> Any:
    return descriptor_pb2.DescriptorProto(name=name, field=fields)


def _bytes(name: str, number: int, label: Any = _Field.LABEL_OPTIONAL) -> Any:
    return _Field(name=name, number=number, label=label, type=_Field.TYPE_BYTES)


def _of(
    kind: str, name: str, number: int, label: Any = _Field.LABEL_OPTIONAL, **options: Any
) -> Any:
    return _Field(
        name=name,
        number=number,
        label=label,
        type=_Field.TYPE_MESSAGE,
        type_name=f".{kind}",
        **options,
    )


def _input() -> descriptor_pb2.DescriptorProto:
    lists = ("ExampleList", "example_list"), ("ExampleListWithContext", "example_list_with_context")
    fields = [
        _of(f"{_PACKAGE}.{kind}", name, number, oneof_index=0)
        for number, (kind, name) in enumerate(lists, 1)
    ]
    message: descriptor_pb2.DescriptorProto = _message("Input", *fields)
    message.oneof_decl.add(name="kind")
    return message


def _file() -> descriptor_pb2.FileDescriptorProto:
    examples = _bytes("examples", 1, _Field.LABEL_REPEATED)
    spec = _of(model_pb2.ModelSpec.DESCRIPTOR.full_name, "model_spec", 1)
    task = inference_pb2.InferenceTask.DESCRIPTOR.full_name
    tasks = _of(task, "tasks", 1, _Field.LABEL_REPEATED)
    given = _of(f"{_PACKAGE}.Input", "input", 2)
    return descriptor_pb2.FileDescriptorProto(
        name=_FILE,
        package=_PACKAGE,
        syntax="proto3",
        dependency=[model_pb2.DESCRIPTOR.name, inference_pb2.DESCRIPTOR.name],
        message_type=[
            _message("ExampleList", examples),
            _message("ExampleListWithContext", examples, _bytes("context", 2)),
            _input(),
            _message("ExamplesRequest", spec, given),
            _message("MultiInferenceRequest", tasks, given),
        ],
    )


_pool = descriptor_pool.Default()
_pool.Add(_file())


def _class_of(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


#: `tensorflow.serving.Input`.
Input = _class_of("Input")

#: `ClassificationRequest` and `RegressionRequest`, which are alike.
ExamplesRequest = _class_of("ExamplesRequest")

MultiInferenceRequest = _class_of("MultiInferenceRequest")


def encode_examples_request(model_spec: bytes, examples: Array) -> bytes:
    """A serialised ExamplesRequest of a serialised ModelSpec, and of Examples, [n]."""
    request = ExamplesRequest()
    request.model_spec.ParseFromString(model_spec)
    request.input.example_list.examples.extend(examples.tolist())
    serialized: bytes = request.SerializeToString()
    return serialized
