"""ONNX models, run by onnxruntime: `model.onnx` in the version's directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from shardserve.batching.errors import DataLoss, InvalidArgument, NotFound, Unimplemented
from shardserve.router.computed import Spec, signature, strings
from shardserve.router.kinds import Version
from shardserve.router.servable import Array, Signature

FILE = "model.onnx"
SIGNATURE = "serving_default"

_DTYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
_UNREADABLE = (states.Fail, states.InvalidGraph, states.InvalidProtobuf, states.RuntimeException)
_CLIENT_FAULTS = (states.InvalidArgument, states.Fail)


class OnnxModel:
    """One model, one signature. Runs beside each other are safe; each takes one core."""

    def __init__(self, session: onnxruntime.InferenceSession, where: str) -> None:
        self._session = session
        inputs = {one.name: _spec(one, where) for one in session.get_inputs()}
        outputs = {one.name: _spec(one, where) for one in session.get_outputs()}
        self.signatures: Mapping[str, Signature] = {SIGNATURE: signature(inputs, outputs)}

    def compute(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> Mapping[str, Array]:
        fed = {alias: _text(value) for alias, value in inputs.items()}
        try:
            found = self._session.run(list(outputs), fed)
        except _CLIENT_FAULTS as error:
            raise InvalidArgument(str(error)) from error
        return {alias: strings(value) for alias, value in zip(outputs, found, strict=True)}


def load(version: Version) -> OnnxModel:
    """Raises NotFound or DataLoss naming the file, Unimplemented where an output is no tensor."""
    path = version.directory / FILE
    if not path.is_file():
        raise NotFound(f"there is no ONNX model in {version.directory}: {path} does not exist")
    options = onnxruntime.SessionOptions()
    # Requests run beside each other, on the threads that all models share.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except _UNREADABLE as error:
        raise DataLoss(f"{path}: {error}") from error
    except states.NotImplemented as error:
        raise Unimplemented(f"{path}: {error}") from error
    return OnnxModel(session, str(path))


def _spec(one: onnxruntime.NodeArg, where: str) -> Spec:
    if one.type not in _DTYPES:
        raise Unimplemented(
            f"{where}: {one.name!r} is a {one.type}, which no tensor holds (scikit-learn "
            "classifiers are to be converted with zipmap=False)"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in one.shape)
    return Spec(np.dtype(_DTYPES[one.type]), shape)


def _text(value: Array) -> Array:
    """Strings are bytes here, and text there."""
    if value.dtype != object:
        return value
    try:
        return np.array([one.decode() for one in value.reshape(-1)], object).reshape(value.shape)
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"an ONNX model's strings are UTF-8: {error}") from None
