"""scikit-learn estimators: `model.skops` in the version's directory, or a pickle, where allowed.

skops keeps an estimator as data and says which types it would make before it makes any; only types
that it trusts, or the operator, are made. `model.pkl` can run any code when it is read: it needs
the operator's word.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any
from zipfile import BadZipFile

import numpy as np
import skops.io
from skops.io.exceptions import UntrustedTypesFoundException

from shardserve.batching.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ServingError,
    Unimplemented,
)
from shardserve.router.computed import Spec, signature, strings
from shardserve.router.kinds import Version
from shardserve.router.servable import Array, Signature

FILE = "model.skops"
PICKLE = "model.pkl"
SIGNATURE = "serving_default"
INPUTS = "inputs"
#: What an estimator can do, and what its output is called.
METHODS = {
    "predict": "predictions",
    "predict_proba": "probabilities",
    "decision_function": "scores",
    "transform": "transformed",
}


class Estimator:
    """One signature: `inputs` [n, features], float64, to what the estimator's methods return."""

    def __init__(self, estimator: Any, where: str) -> None:
        features = getattr(estimator, "n_features_in_", None)
        if features is None:
            raise FailedPrecondition(f"{where}: the estimator is not fitted")
        self._methods = {
            alias: getattr(estimator, method)
            for method, alias in METHODS.items()
            if hasattr(estimator, method)
        }
        probe = np.zeros((1, features))
        try:
            outputs = {a: _spec(a, call(probe), where) for a, call in self._methods.items()}
        except ValueError as error:
            raise FailedPrecondition(
                f"{where}: it does not take float64 features: {error}"
            ) from error
        inputs = {INPUTS: Spec(np.dtype(np.float64), (-1, features))}
        self.signatures: Mapping[str, Signature] = {SIGNATURE: signature(inputs, outputs)}

    def compute(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> Mapping[str, Array]:
        try:
            return {alias: strings(self._methods[alias](inputs[INPUTS])) for alias in outputs}
        except ValueError as error:
            raise InvalidArgument(str(error)) from error


def load(version: Version) -> Estimator:
    """Raises NotFound, DataLoss, PermissionDenied or FailedPrecondition, each naming the file."""
    path = version.directory / FILE
    if path.is_file():
        trusted = list(version.trusted_types)
        return Estimator(_naming(str(path), lambda: skops.io.load(path, trusted)), str(path))
    pickled = version.directory / PICKLE
    if not pickled.is_file():
        raise NotFound(f"there is no estimator in {version.directory}: {path} does not exist")
    if not version.allow_pickle:
        raise PermissionDenied(
            f"{pickled}: reading a pickle can run any code, and --allow_pickle is not set; "
            f"skops.io.dump makes a {FILE} of the estimator"
        )
    return Estimator(_naming(str(pickled), lambda: _unpickled(pickled.read_bytes())), str(pickled))


def _unpickled(raw: bytes) -> Any:
    return pickle.loads(raw)  # noqa: S301 (the operator has allowed it)


def _naming(where: str, read: Any) -> Any:
    try:
        return read()
    except UntrustedTypesFoundException as error:
        # The rest is advice to whoever calls skops.
        what = str(error).partition("\n")[0]
        raise PermissionDenied(
            f"{where}: {what} They are not known to be harmless: name them in --trusted_types if "
            "you trust who made the file; an ONNX model of the estimator does without them."
        ) from error
    except ServingError:
        raise
    except (BadZipFile, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
        raise DataLoss(f"{where}: {error}") from error


def _spec(alias: str, value: Any, where: str) -> Spec:
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        raise Unimplemented(f"{where}: what becomes {alias!r} is a {type(value).__name__}")
    encoded = strings(value)
    return Spec(encoded.dtype, (-1, *encoded.shape[1:]))
