"""Requests are answered, or refused in TensorFlow Serving's words and codes, on every wire."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from shardserve.batching.errors import (
    Code,
    DataLoss,
    InvalidArgument,
    NotFound,
    ServingError,
)
from shardserve.router.catalog import Catalog, Model, ModelSpec, State, Version
from shardserve.router.handlers import Handlers
from shardserve.router.request_steps import LARGE_BODY
from shardserve.router.servable import RequestContext
from shardserve.router.whole import WholeServable

Contexts = Callable[..., RequestContext]


def predict_request(name: str = "half_plus_two", **inputs: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(
            value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
        )
    return request


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


MIXED = {"ids": np.array([1]), "text": np.array([b"a"], object), "scale": floats(2)}


async def refusal(
    handlers: Handlers, request: predict_pb2.PredictRequest, context: RequestContext
) -> ServingError:
    with pytest.raises(ServingError) as caught:
        await handlers.predict(request, context)
    return caught.value


# Predict over protos


async def test_a_prediction_says_what_answered(handlers: Handlers, context: Contexts) -> None:
    raw = await handlers.predict(predict_request(x=floats(1, 2, 5)), context())
    response = predict_pb2.PredictResponse.FromString(raw)
    assert list(response.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert response.model_spec.name == "half_plus_two"
    assert response.model_spec.version.value == 123
    assert response.model_spec.signature_name == "serving_default"


async def test_a_version_or_a_label_may_be_named_and_the_label_is_not_echoed(
    handlers: Handlers, context: Contexts
) -> None:
    by_version, by_label = predict_request(x=floats(1)), predict_request(x=floats(1))
    by_version.model_spec.version.value = 123
    by_label.model_spec.version_label = "stable"
    for request in (by_version, by_label):
        raw = await handlers.predict(request, context())
        spec = predict_pb2.PredictResponse.FromString(raw).model_spec
        assert (spec.version.value, spec.version_label) == (123, "")


async def test_only_the_outputs_of_the_filter_come_back(
    handlers: Handlers, context: Contexts
) -> None:
    request = predict_request("mixed", **MIXED)
    request.output_filter.extend(["total", "odd"])
    response = predict_pb2.PredictResponse.FromString(await handlers.predict(request, context()))
    assert response.outputs.keys() == {"total", "odd"}


async def test_defaults_stand_in_for_inputs_that_are_left_out(
    handlers: Handlers, context: Contexts
) -> None:
    request = predict_request("mixed", ids=np.array([1, 1]), text=np.array([b"", b""], object))
    request.model_spec.signature_name = "defaulted"
    response = predict_pb2.PredictResponse.FromString(await handlers.predict(request, context()))
    assert list(response.outputs["rows"].float_val) == [2.0, 3.0, 20.0, 30.0]


async def test_time_is_spent_on_stages(handlers: Handlers, context: Contexts) -> None:
    spending = context()
    await handlers.predict(predict_request(x=floats(1)), spending)
    assert spending.seconds.keys() == {"decode", "queue", "dense", "encode"}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda r: r.ClearField("model_spec"), 3, "Missing ModelSpec"),
        (lambda r: r.model_spec.ClearField("name"), 3, "ModelSpec has no name specified."),
        (
            lambda r: setattr(r.model_spec, "name", "no"),
            5,
            "Servable not found for request: Latest(no)",
        ),
        (
            lambda r: setattr(r.model_spec.version, "value", 7),
            5,
            "Servable not found for request: Specific(half_plus_two, 7)",
        ),
        (
            lambda r: setattr(r.model_spec.version, "value", 0),
            5,
            "Servable not found for request: Specific(half_plus_two, 0)",
        ),
        (
            lambda r: setattr(r.model_spec.version, "value", 124),
            5,
            "Servable not found for request: Specific(half_plus_two, 124)",
        ),
        (
            lambda r: setattr(r.model_spec, "version_label", "new"),
            3,
            "Unrecognized servable version label: new",
        ),
        (
            lambda r: setattr(r.model_spec, "version_label", "old"),
            5,
            "Servable not found for request: Specific(half_plus_two, 122)",
        ),
        (
            lambda r: setattr(r.model_spec, "signature_name", "s"),
            9,
            'Serving signature key "s" not found.',
        ),
        (
            lambda r: r.inputs["b"].CopyFrom(r.inputs["x"]),
            3,
            (
                "input size does not match signature: 2!=1 len({b,x}) != len({x}). "
                "Sent extra: {b}. Missing but required: {}."
            ),
        ),
        (
            lambda r: r.ClearField("inputs"),
            3,
            (
                "input size does not match signature: 0!=1 len({}) != len({x}). "
                "Sent extra: {}. Missing but required: {x}."
            ),
        ),
        (
            lambda r: (r.inputs["b"].CopyFrom(r.inputs["x"]), r.inputs.pop("x")),
            3,
            (
                "Signature input alias: x(feed name: serving_default_x:0) not found in request and "
                "no default value provided. Inputs expected to be in the request {b}, or default "
                "input alias set: "
            ),
        ),
        (
            lambda r: r.inputs["x"].CopyFrom(tf.make_tensor_proto([b"a"])),
            3,
            "Expects arg[0] to be float but string is provided",
        ),
        (
            lambda r: r.inputs["x"].CopyFrom(
                tensor_pb2.TensorProto(dtype=1, tensor_content=b"abc")
            ),
            3,
            "tensor parsing error: x (tensor_content has 3 bytes, the shape takes 4)",
        ),
        (
            lambda r: r.output_filter.append("z"),
            3,
            "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
        ),
        (lambda r: r.output_filter.extend(["y", "y"]), 3, "duplicate output tensor alias: y"),
    ],
)
async def test_what_is_wrong_with_a_prediction_is_said(
    handlers: Handlers,
    context: Contexts,
    change: Callable[[predict_pb2.PredictRequest], object],
    code: int,
    message: str,
) -> None:
    request = predict_request(x=floats(1))
    change(request)
    error = await refusal(handlers, request, context())
    assert (error.code, error.message) == (code, message)


async def test_a_wrong_name_beside_a_default_is_said(handlers: Handlers, context: Contexts) -> None:
    request = predict_request("mixed", ids=MIXED["ids"], text=MIXED["text"], skale=floats(1))
    request.model_spec.signature_name = "defaulted"
    error = await refusal(handlers, request, context())
    assert isinstance(error, InvalidArgument)
    assert error.message == (
        "Inputs contains invalid name. Used request inputs: ids,text, request input: ids,skale,text"
    )


async def test_what_the_graph_refuses_is_in_tensorflow_s_words(
    handlers: Handlers, context: Contexts
) -> None:
    request = predict_request("mixed", ids=np.array([3, 10]))
    request.model_spec.signature_name = "look_up"
    error = await refusal(handlers, request, context())
    assert isinstance(error, InvalidArgument)
    assert "indices[1] = 10 is not in [0, 10)" in error.message


# Predict over REST


async def test_rest_answers_in_the_form_it_is_asked(handlers: Handlers, context: Contexts) -> None:
    spec = ModelSpec("half_plus_two")
    rows = await handlers.predict_json(spec, b'{"instances": [1, 2, 5]}', context())
    columns = await handlers.predict_json(spec, b'{"inputs": [1, 2, 5]}', context())
    assert json.loads(rows) == {"predictions": [2.5, 3.0, 4.5]}
    assert json.loads(columns) == {"outputs": [2.5, 3.0, 4.5]}


async def test_a_large_body_is_decoded_on_a_thread_to_the_same_answer(
    handlers: Handlers, context: Contexts
) -> None:
    values = list(range(LARGE_BODY))
    spending = context()
    body = json.dumps({"instances": values}).encode()
    reply = await handlers.predict_json(ModelSpec("half_plus_two"), body, spending)
    assert json.loads(reply)["predictions"] == [value / 2 + 2 for value in values]
    assert spending.seconds["decode"] > 0


@pytest.mark.parametrize(
    ("spec", "body", "error", "message"),
    [
        (ModelSpec("no"), b"{", InvalidArgument, "JSON Parse error: "),
        (ModelSpec("no"), b'{"inputs": 1}', NotFound, "Servable not found for request: Latest(no)"),
        (
            ModelSpec("half_plus_two"),
            b'{"signature_name": "s", "inputs": 1}',
            InvalidArgument,
            'Serving signature name: "s" not found in signature def',
        ),
        (
            ModelSpec("half_plus_two", label="new"),
            b'{"inputs": 1}',
            InvalidArgument,
            "Unrecognized servable version label: new",
        ),
        (
            ModelSpec("mixed"),
            b'{"inputs": {"ids": [1], "text": ["a"], "scale": 1}, "signature_name": "look_up"}',
            None,
            "",
        ),
    ],
)
async def test_rest_has_words_of_its_own(
    handlers: Handlers,
    context: Contexts,
    spec: ModelSpec,
    body: bytes,
    error: type[ServingError] | None,
    message: str,
) -> None:
    if error is None:
        assert await handlers.predict_json(spec, body, context())
        return
    with pytest.raises(error) as caught:
        await handlers.predict_json(spec, body, context())
    assert caught.value.message.startswith(message)


# Metadata and status


def _metadata_request(name: str = "half_plus_two", *fields: str) -> Any:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = name
    return request


def test_metadata_are_the_saved_model_s_signatures(handlers: Handlers) -> None:
    response = handlers.metadata(_metadata_request("half_plus_two", "signature_def"))
    assert (response.model_spec.name, response.model_spec.version.value) == ("half_plus_two", 123)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {"serving_default", "__saved_model_init_op"}


def test_metadata_come_in_an_order_that_is_the_same_in_every_process(handlers: Handlers) -> None:
    reply = json.loads(handlers.metadata_json(ModelSpec("mixed")))
    assert list(reply) == ["model_spec", "metadata"]
    signatures = reply["metadata"]["signature_def"]["signature_def"]
    assert list(signatures) == sorted(signatures)
    for signature in signatures.values():
        for tensors in (signature["inputs"], signature["outputs"]):
            assert list(tensors) == sorted(tensors)
    dims = signatures["serving_default"]["inputs"]["ids"]["tensor_shape"]["dim"]
    assert dims == [{"size": "-1", "name": ""}]


def test_metadata_over_rest_are_unpacked_with_all_fields(handlers: Handlers) -> None:
    reply = json.loads(handlers.metadata_json(ModelSpec("half_plus_two")))
    assert reply["model_spec"] == {
        "name": "half_plus_two",
        "signature_name": "",
        "version": "123",
    }
    inputs = reply["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
    assert inputs["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "serving_default_x:0",
    }


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (
            _metadata_request(),
            InvalidArgument,
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (
            _metadata_request("half_plus_two", "graph"),
            InvalidArgument,
            "Metadata field graph is not supported",
        ),
        (
            _metadata_request("no", "signature_def"),
            NotFound,
            "Servable not found for request: Latest(no)",
        ),
        (
            get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"]),
            InvalidArgument,
            "Missing ModelSpec",
        ),
    ],
)
def test_metadata_that_cannot_be_had(
    handlers: Handlers, request_: Any, error: type[ServingError], message: str
) -> None:
    with pytest.raises(error) as caught:
        handlers.metadata(request_)
    assert caught.value.message == message


def _status_request(name: str, version: int | None = None, label: str | None = None) -> Any:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    return request


def test_status_lists_versions_newest_first_and_does_not_look_at_labels(handlers: Handlers) -> None:
    for request in (_status_request("half_plus_two"), _status_request("half_plus_two", label="?")):
        rows = handlers.status(request).model_version_status
        assert [(row.version, row.state) for row in rows] == [(124, 20), (123, 30), (122, 50)]


def test_status_of_one_version_tells_why_it_ended(
    catalog: Catalog, handlers: Handlers, half_plus_two: WholeServable
) -> None:
    ended = Version(State.END, code=DataLoss.code, message="variables.index: cut off")
    catalog.replace({"m": Model({1: Version(State.AVAILABLE, half_plus_two), 2: ended})})
    [row] = handlers.status(_status_request("m", 2)).model_version_status
    assert (row.status.error_code, row.status.error_message) == (
        int(Code.DATA_LOSS),
        "variables.index: cut off",
    )


def test_status_over_rest_has_the_proto_s_form(handlers: Handlers) -> None:
    reply = json.loads(handlers.status_json(ModelSpec("mixed")))
    assert reply == {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    json_format.ParseDict(reply, get_model_status_pb2.GetModelStatusResponse())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (_status_request("no"), "Could not find any versions of model no"),
        (_status_request(""), "Could not find any versions of model "),
        (_status_request("half_plus_two", 9), "Could not find version 9 of model half_plus_two"),
    ],
)
def test_status_of_what_was_never_known(handlers: Handlers, request_: Any, message: str) -> None:
    with pytest.raises(NotFound) as caught:
        handlers.status(request_)
    assert caught.value.message == message


# The catalog


def test_the_newest_available_version_answers(
    catalog: Catalog, half_plus_two: WholeServable
) -> None:
    assert catalog.resolve(ModelSpec("half_plus_two")) is half_plus_two


def test_a_snapshot_replaces_all_there_was(catalog: Catalog, mixed: WholeServable) -> None:
    catalog.replace({"new": Model({5: Version(State.AVAILABLE, mixed)})})
    assert catalog.resolve(ModelSpec("new")) is mixed
    with pytest.raises(NotFound):
        catalog.resolve(ModelSpec("half_plus_two"))


def test_a_model_without_an_available_version_is_not_found() -> None:
    catalog = Catalog({"m": Model({1: Version(State.UNLOADING)})})
    with pytest.raises(NotFound, match=r"Latest\(m\)"):
        catalog.resolve(ModelSpec("m"))
