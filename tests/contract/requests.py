"""Requests of every RPC, in few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
    session_service_pb2,
)
from tensorflow_serving.config import model_server_config_pb2


def spec(
    name: str, version: int | None = None, label: str | None = None, signature: str = ""
) -> model_pb2.ModelSpec:
    made = model_pb2.ModelSpec(name=name, signature_name=signature)
    if version is not None:
        made.version.value = version
    if label is not None:
        made.version_label = label
    return made


def tensor(value: Any, dtype: Any = None) -> tensor_pb2.TensorProto:
    if isinstance(value, tensor_pb2.TensorProto):
        return value
    return tf.make_tensor_proto(value, dtype)


def predict(
    model: model_pb2.ModelSpec, outputs: tuple[str, ...] = (), **inputs: Any
) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest(model_spec=model, output_filter=outputs)
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tensor(value))
    return request


def half(**options: Any) -> predict_pb2.PredictRequest:
    """A good request of half_plus_two, whose answer to 1.0 is 2.5."""
    return predict(spec("half_plus_two", **options), x=tf.constant([1.0]).numpy())


def example(**features: Any) -> tf.train.Example:
    made = tf.train.Example()
    for name, value in features.items():
        feature = made.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.float_list.value.append(value)
    return made


def examples(*given: tf.train.Example, context: tf.train.Example | None = None) -> input_pb2.Input:
    made = input_pb2.Input()
    if context is None:
        made.example_list.examples.extend(given)
    else:
        made.example_list_with_context.context.CopyFrom(context)
        made.example_list_with_context.examples.extend(given)
    return made


ONE = examples(example(x=1.0))


def classify(signature: str = "classify", given: input_pb2.Input = ONE, **options: Any) -> Any:
    model = spec("examples", signature=signature, **options)
    return classification_pb2.ClassificationRequest(model_spec=model, input=given)


def regress(signature: str = "regress", given: input_pb2.Input = ONE, **options: Any) -> Any:
    model = spec("examples", signature=signature, **options)
    return regression_pb2.RegressionRequest(model_spec=model, input=given)


def task(signature: str, method: str, model: str = "examples") -> inference_pb2.InferenceTask:
    return inference_pb2.InferenceTask(
        model_spec=spec(model, signature=signature), method_name=f"tensorflow/serving/{method}"
    )


def multi(*tasks: inference_pb2.InferenceTask, given: input_pb2.Input = ONE) -> Any:
    return inference_pb2.MultiInferenceRequest(tasks=tasks, input=given)


def metadata(model: model_pb2.ModelSpec | None, *fields: str) -> Any:
    return get_model_metadata_pb2.GetModelMetadataRequest(model_spec=model, metadata_field=fields)


def status(model: model_pb2.ModelSpec | None) -> Any:
    return get_model_status_pb2.GetModelStatusRequest(model_spec=model)


def reload(config: model_server_config_pb2.ModelServerConfig, metrics: Sequence[str] = ()) -> Any:
    return model_management_pb2.ReloadConfigRequest(config=config, metric_names=metrics)


def session_run(
    model: model_pb2.ModelSpec,
    feeds: dict[str, Any],
    fetches: tuple[str, ...],
    targets: tuple[str, ...] = (),
    by_alias: bool = False,
) -> Any:
    request = session_service_pb2.SessionRunRequest(
        model_spec=model, fetch=fetches, target=targets, tensor_name_is_alias=by_alias
    )
    for name, value in feeds.items():
        request.feed.add(name=name, tensor=tensor(value))
    return request
