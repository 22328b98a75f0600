"""What classify, regress and multi-inference ask of a signature, and what comes of its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf import text_format
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from shardserve.batching.errors import InvalidArgument, Unimplemented
from shardserve.router.servable import Array, Servable, Signature
from shardserve.router.tensor_types import BY_NUMPY, STRING, name_of

INPUTS = "inputs"

_CLASSES = "classes"
_SCORES = "scores"
_OUTPUTS = "outputs"

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"

_MATRIX = 2


@dataclass(frozen=True)
class Classes:
    """Labels (bytes) and scores (float32), both [examples, classes]; None where not given."""

    labels: Array | None
    scores: Array | None


def signature_for_examples(servable: Servable, name: str) -> Signature:
    """The signature that a classify or regress request names. Raises InvalidArgument."""
    signature = servable.signatures.get(name)
    if signature is None:
        raise InvalidArgument(f"No signature was found with the name: {name}")
    return signature


def check_method_name(signature: Signature, method: str) -> None:
    """Raises InvalidArgument for a signature that is not meant for `method`."""
    if signature.method_name != method:
        kind = "classification" if method == CLASSIFY else "regression"
        raise InvalidArgument(
            f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}"
        )


def outputs_for(servable: Servable, name: str, method: str) -> tuple[str, ...]:
    """The outputs of a signature that `CLASSIFY` or `REGRESS` takes.

    Raises InvalidArgument unless its inputs and outputs are as they must be, Unimplemented for
    another method.
    """
    signature = servable.signatures[name]
    if method == CLASSIFY:
        return _outputs_to_classify(servable, name, signature)
    if method == REGRESS:
        return _outputs_to_regress(servable, name, signature)
    raise Unimplemented(f"Unsupported signature method_name: {method}")


def check_takes_strings(signature: Signature) -> None:
    """Raises InvalidArgument, as TensorFlow does, if the input is not of serialised Examples."""
    dtype = signature.inputs[INPUTS].dtype
    if dtype != STRING.number:
        raise InvalidArgument(
            f"Expects arg[0] to be {name_of(dtype)} but {STRING.name} is provided"
        )


def classes_of(outputs: Mapping[str, Array], count: int) -> Classes:
    """The classification of `count` examples. Raises InvalidArgument for outputs of other forms."""
    labels, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    if labels is not None:
        _check_matrix(_CLASSES, labels, "DT_STRING", count)
    if scores is not None:
        _check_matrix(_SCORES, scores, "DT_FLOAT", count)
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise InvalidArgument(
            "Tensors class and score should match in dim_size(1). Got "
            f"{labels.shape[1]} vs. {scores.shape[1]}"
        )
    return Classes(labels, scores)


def regressions_of(outputs: Mapping[str, Array], count: int) -> Array:
    """A float32 for each of `count` examples. Raises InvalidArgument for outputs of other forms."""
    values = outputs[_OUTPUTS]
    if not (values.ndim == 1 or (values.ndim == _MATRIX and values.shape[1] == 1)):
        raise InvalidArgument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(values)}"
        )
    if len(values) != count:
        raise InvalidArgument(
            f"Input batch size did not match output batch size: {count} vs. {len(values)}"
        )
    if values.dtype != np.float32:
        raise InvalidArgument(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(values)}")
    return values.ravel()


def _outputs_to_classify(servable: Servable, name: str, signature: Signature) -> tuple[str, ...]:
    _check_one_input(signature)
    if len(signature.outputs) not in (1, 2):
        raise InvalidArgument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUTS not in signature.inputs:
        text = _text_of(servable, name)
        raise InvalidArgument(f"No classification inputs found in SignatureDef: {text}")
    found = tuple([alias for alias in (_CLASSES, _SCORES) if alias in signature.outputs])
    if not found:
        raise InvalidArgument(
            "Expected classification signature outputs to contain at least one of "
            f'"{_CLASSES}" or "{_SCORES}". Signature was: {_text_of(servable, name)}'
        )
    return found


def _outputs_to_regress(servable: Servable, name: str, signature: Signature) -> tuple[str, ...]:
    _check_one_input(signature)
    if len(signature.outputs) != 1:
        raise InvalidArgument("Expected one output Tensor.")
    for alias, found in ((INPUTS, signature.inputs), (_OUTPUTS, signature.outputs)):
        if alias not in found:
            text = _text_of(servable, name)
            raise InvalidArgument(f"No regression {alias} found in SignatureDef: {text}")
    return (_OUTPUTS,)


def _check_one_input(signature: Signature) -> None:
    if len(signature.inputs) != 1:
        raise InvalidArgument("Expected one input Tensor.")


def _check_matrix(alias: str, array: Array, dtype: str, count: int) -> None:
    if array.ndim != _MATRIX:
        raise InvalidArgument(
            f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}"
        )
    if _dtype(array) != dtype:
        raise InvalidArgument(f"Expected {alias} Tensor of {dtype}. Got: {_dtype(array)}")
    if len(array) != count:
        raise InvalidArgument(f"Expected {alias} output batch size of {count}. Got: {len(array)}")


def _text_of(servable: Servable, name: str) -> str:
    signatures = get_model_metadata_pb2.SignatureDefMap.FromString(servable.signature_def_map)
    return text_format.MessageToString(signatures.signature_def[name])


def _shape(array: Array) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _dtype(array: Array) -> str:
    return str(types_pb2.DataType.Name(BY_NUMPY[array.dtype].number))
