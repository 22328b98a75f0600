"""The example model's requests on each wire, with TensorFlow's own answers to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from benchmarks.serving_load import Workload
from benchmarks.workloads import Array
from examples.dlrm import quiet_tensorflow

Inputs = Mapping[str, Array]


@dataclass(frozen=True)
class Queries:
    """Inputs of queries of one size, and the predictions that TensorFlow gives, float32 [size]."""

    inputs: Sequence[Inputs]
    answers: Sequence[Array]

    def encoded(
        self, encode: Callable[[Inputs], bytes], decode: Callable[[bytes], Array]
    ) -> Workload:
        """The same queries on one wire."""
        return Workload([encode(inputs) for inputs in self.inputs], self.answers, decode)


class Drawable(Protocol):
    """Queries by their numbers."""

    def query(self, number: int, size: int = 1) -> dict[str, Array]:
        """The inputs of `size` examples."""
        ...


def draw(model: Callable[..., Any], queries: Drawable, size: int, count: int) -> Queries:
    """Queries 0 to `count`, each of `size` examples, answered by a loaded signature."""
    tf = quiet_tensorflow()
    inputs = [queries.query(number, size) for number in range(count)]
    answers = [
        model(**{name: tf.constant(value) for name, value in one.items()})["prediction"].numpy()
        for one in inputs
    ]
    return Queries(inputs, [answer.reshape(-1) for answer in answers])


def load_signature(directory: Path) -> Callable[..., Any]:
    """The uncut model as TensorFlow itself serves it."""
    loaded = quiet_tensorflow().saved_model.load(str(directory))
    signature: Any = loaded.signatures["serving_default"]
    # The signature alone does not keep the variables alive.
    return lambda **inputs: (loaded, signature(**inputs))[1]


def rest_rows(inputs: Inputs) -> bytes:
    """TensorFlow Serving's REST row form."""
    size = len(next(iter(inputs.values())))
    rows = [{name: value[row] for name, value in inputs.items()} for row in range(size)]
    return orjson.dumps({"instances": rows}, option=orjson.OPT_SERIALIZE_NUMPY)


def rest_predictions(reply: bytes) -> Array:
    """The reply to the row form. Raises ValueError if it is none."""
    try:
        return np.array(orjson.loads(reply)["predictions"], np.float32).reshape(-1)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{reply[:100]!r}") from error


def predict_request(model_name: str) -> Callable[[Inputs], bytes]:
    """Encodes a PredictRequest as stock clients do, arrays as `tensor_content`."""
    tf = quiet_tensorflow()
    from tensorflow_serving.apis import predict_pb2

    def encode(inputs: Inputs) -> bytes:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model_name
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        serialized: bytes = request.SerializeToString()
        return serialized

    return encode


def grpc_predictions(reply: bytes) -> Array:
    """A PredictResponse's prediction. Raises ValueError if it has none."""
    tf = quiet_tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import predict_pb2

    try:
        response = predict_pb2.PredictResponse.FromString(reply)
    except DecodeError as error:
        raise ValueError(f"{reply[:100]!r}") from error
    prediction: Array = tf.make_ndarray(response.outputs["prediction"])
    return prediction.reshape(-1)
