"""What the handlers need of a model, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shardserve.batching.stage import StageCounts

Array = npt.NDArray[Any]

STAGES = ("decode", "ids", "queue", "wire", "lookup", "merge", "dense", "encode")


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a signature.

    `tensor` is the graph's name for it ("x:0"), `dtype` the `types_pb2.DataType` number, `shape`
    its declared shape with -1 for an unknown size, or None where the rank is unknown.
    """

    tensor: str
    dtype: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Signature:
    """A SignatureDef: inputs and outputs by alias. `defaults` supply inputs that are omitted."""

    method_name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    defaults: Mapping[str, Array] = field(default_factory=dict)


class Headers(Protocol):
    """A request's headers, or its metadata; names in lower case find them however they came."""

    def get(self, name: str, /) -> str | bytes | None: ...


class Said(NamedTuple):
    """What a shard or a stage actor says of its work for a request: it waited, then worked."""

    name: str
    queue_seconds: float
    work_seconds: float


@dataclass
class RequestContext:
    """One request's identity, its deadline (on `time.monotonic`), and what each stage took.

    `headers` are what came with it, None where nothing did. `chance`, in [0, 1), decides about the
    experiments that it is in, once it is drawn.
    """

    request_id: str
    deadline: float
    seconds: dict[str, float] = field(default_factory=dict)
    headers: Headers | None = None
    chance: float | None = None

    def spend(self, stage: str, seconds: float) -> None:
        """Add to a stage of `STAGES`."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def told(self, said: Iterable[Said], elapsed: float) -> None:
        """Note what others did, who were asked `elapsed` seconds ago and answered just now.

        Only who traces the request does anything with it; what is said need not be made before.
        """


class Servable(Protocol):
    """One version of one model, ready to answer. Safe for many requests at once."""

    name: str
    version: int
    signatures: Mapping[str, Signature]
    #: `SignatureDefMap` as the SavedModel has it, serialised, for GetModelMetadata.
    signature_def_map: bytes

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """The outputs named, by alias.

        `inputs` has exactly the signature's aliases (defaults filled in), each of its signature's
        numpy dtype (strings: object arrays of bytes). Raises a `ServingError`: InvalidArgument for
        what the graph refuses, DeadlineExceeded by `context.deadline`, Unavailable when a shard
        cannot be reached. Spends its time on `context`.
        """
        ...

    def stage_counts(self) -> Mapping[str, StageCounts]:
        """What its stages that batch have done so far, by name."""
        ...

    async def close(self) -> None:
        """Free what it holds: its sessions, its threads, its places in the queues of devices.

        Whoever calls it has seen all requests end, and sends no more. Work that was left behind by
        requests that gave up is ended. What it was given (channels, devices, the process's threads)
        stays. Closing it again does nothing.
        """
        ...


class Admitting(Protocol):
    """A `Servable` that knows before a request is decoded whether it would refuse it."""

    def admit(self, deadline: float) -> None:
        """Raise Unavailable if a request that came now, with such a deadline, would be refused.

        Cheap, and without effect: a request that is admitted may still be refused later.
        """
        ...


class RunningTensors(Protocol):
    """A `Servable` any of whose graph's tensors can be fed and fetched by its name ("x:0")."""

    async def run_tensors(
        self,
        feeds: Mapping[str, Array],
        fetches: Sequence[str],
        targets: Sequence[str],
        context: RequestContext,
    ) -> list[Array]:
        """The values of `fetches`, in one run in which the operations `targets` run as well.

        Raises as `Servable.run` does, and InvalidArgument for what the graph does not have.
        """
        ...


def admit(servable: Servable, deadline: float) -> None:
    """Raise Unavailable if `servable` is `Admitting`, and would refuse a request that came now."""
    ask = getattr(servable, "admit", None)
    if ask is not None:
        ask(deadline)


def nbytes_of(arrays: Iterable[Array]) -> int:
    """The bytes that they keep, of strings as well."""
    return sum([_nbytes(array) for array in arrays])


def _nbytes(array: Array) -> int:
    return array.nbytes + (sum(map(len, array.flat)) if array.dtype.hasobject else 0)


def numpy_dtype(dtype: int) -> np.dtype[Any]:
    """The numpy dtype that holds a `types_pb2.DataType` (object for strings).

    Raises KeyError for what numpy has no array of (resource, variant).
    """
    from tensorflow.python.framework import dtypes  # noqa: PLC0415 (TensorFlow is slow to import)

    found: np.dtype[Any] = np.dtype(dtypes.as_dtype(dtype).as_numpy_dtype)
    return found
