"""Servables that are no TensorFlow graphs: a function of arrays, and its signatures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tensorflow.core.framework import tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import dtypes
from tensorflow_serving.apis import get_model_metadata_pb2

from shardserve.batching.errors import Internal, InvalidArgument, ServingError, Unavailable
from shardserve.batching.stage import StageCounts
from shardserve.router.servable import Array, RequestContext, Signature, TensorInfo, numpy_dtype
from shardserve.router.session import StageThreads

PREDICT_METHOD = "tensorflow/serving/predict"


class Computation(Protocol):
    """What a servable of any kind but TensorFlow's computes.

    `compute` is called from several threads at once; it gets the signature's inputs, each of the
    dtype and the rank that the signature says, and returns at least the `outputs` named, by alias,
    each convertible to its dtype. It raises a `ServingError` for what is the client's fault; any
    other exception is the model's, reaches the client as INTERNAL and the log whole.

    If it has a `close`, that is called once, with no `compute` under way, to free what it holds.
    """

    signatures: Mapping[str, Signature]

    def compute(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> Mapping[str, Array]: ...


@dataclass(frozen=True)
class Spec:
    """An input or output: its dtype, and its shape with -1 for unknown sizes; None for any rank."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...] | None


def signature(inputs: Mapping[str, Spec], outputs: Mapping[str, Spec]) -> Signature:
    """A signature of the predict method. Arrays of objects are strings."""
    return Signature(PREDICT_METHOD, _infos(inputs), _infos(outputs))


class ComputedServable:
    """A `Servable` around a computation, which runs on the stage threads."""

    def __init__(
        self, name: str, version: int, computation: Computation, threads: StageThreads
    ) -> None:
        self.name = name
        self.version = version
        self.signatures: Mapping[str, Signature] = dict(computation.signatures)
        self.signature_def_map = _signature_def_map(self.signatures)
        self._computation: Computation | None = computation
        self._threads = threads
        self._idle = threading.Condition()
        #: Computations under way, of requests that gave up too.
        self._computing = 0

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """See `Servable.run`."""
        for alias, info in self.signatures[signature].inputs.items():
            _check_shape(alias, info, inputs[alias])
        found: dict[str, Array] = await self._threads.run(
            lambda: self._compute(signature, inputs, outputs), context
        )
        return found

    def stage_counts(self) -> dict[str, StageCounts]:
        """See `Servable.stage_counts`: nothing is batched here."""
        return {}

    async def close(self) -> None:
        """See `Servable.close`. Waits for computations that requests left behind."""
        await asyncio.to_thread(self._free)

    def _free(self) -> None:
        with self._idle:
            computation, self._computation = self._computation, None
            self._idle.wait_for(lambda: not self._computing)
        close = getattr(computation, "close", None)
        if close is not None:
            close()

    def _compute(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        with self._begun() as computation:
            found = self._found(computation, signature, inputs, outputs)
        infos = self.signatures[signature].outputs
        return {
            alias: np.asarray(found[alias], numpy_dtype(infos[alias].dtype)) for alias in outputs
        }

    def _found(
        self,
        computation: Computation,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
    ) -> Mapping[str, Array]:
        try:
            return computation.compute(signature, inputs, outputs)
        except ServingError:
            raise
        except Exception as error:
            raise Internal(f"model {self.name}: {type(error).__name__}: {error}") from error

    @contextmanager
    def _begun(self) -> Iterator[Computation]:
        with self._idle:
            computation = self._computation
            if computation is None:
                raise Unavailable(f"model {self.name} has been unloaded")
            self._computing += 1
        try:
            yield computation
        finally:
            with self._idle:
                self._computing -= 1
                self._idle.notify_all()


def strings(value: Array) -> Array:
    """Text as the strings of a tensor, objects of bytes; what is no text as it is."""
    if value.dtype.kind not in "OU":
        return value
    found = np.empty(value.size, object)
    found[:] = [str(one).encode() for one in value.reshape(-1)]
    return found.reshape(value.shape)


def _check_shape(alias: str, info: TensorInfo, value: Array) -> None:
    if info.shape is None:
        return
    fits = len(info.shape) == value.ndim and all(
        declared in (-1, size) for declared, size in zip(info.shape, value.shape, strict=True)
    )
    if not fits:
        raise InvalidArgument(
            f"input {alias!r} must be of shape {_shown(info.shape)}, not {_shown(value.shape)}"
        )


def _shown(shape: Sequence[int]) -> str:
    return "[" + ",".join("?" if size == -1 else str(size) for size in shape) + "]"


def _infos(specs: Mapping[str, Spec]) -> dict[str, TensorInfo]:
    return {
        alias: TensorInfo(f"{alias}:0", dtypes.as_dtype(spec.dtype).as_datatype_enum, spec.shape)
        for alias, spec in sorted(specs.items())
    }


def _signature_def_map(signatures: Mapping[str, Signature]) -> bytes:
    whole = get_model_metadata_pb2.SignatureDefMap()
    for name, one in signatures.items():
        definition = whole.signature_def[name]
        definition.method_name = one.method_name
        for alias, info in one.inputs.items():
            definition.inputs[alias].CopyFrom(_proto(info))
        for alias, info in one.outputs.items():
            definition.outputs[alias].CopyFrom(_proto(info))
    serialized: bytes = whole.SerializeToString(deterministic=True)
    return serialized


def _proto(info: TensorInfo) -> meta_graph_pb2.TensorInfo:
    shape = tensor_shape_pb2.TensorShapeProto(unknown_rank=info.shape is None)
    for size in info.shape or ():
        shape.dim.add(size=size)
    return meta_graph_pb2.TensorInfo(name=info.tensor, dtype=info.dtype, tensor_shape=shape)
