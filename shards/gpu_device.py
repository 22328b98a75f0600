"""The GPU of this process, by CuPy, which is imported when a GPU is asked for and never before.

Ray shows each actor its own GPU, as the first and only one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import (
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    ServingError,
)
from shardserve.shards.device_loss import DeviceLost
from shardserve.shards.gpu_calls import ALIGNMENT, Call, Place, packed
from shardserve.shards.gpu_code import ALL_FOUND_BYTE, DEVICE

Array = npt.NDArray[Any]

#: Products and sums are rounded apart.
_OPTIONS = ("--fmad=false",)
#: cudaErrorMemoryAllocation: of device memory CuPy says so in an error of its own.
_SHORT_OF_MEMORY = 2


@functools.cache
def why_no_gpu() -> str | None:
    """Why there is no GPU for this process; None if there is one."""
    try:
        cupy = import_module("cupy")
    except ImportError as error:
        first_line = str(error).strip().partition("\n")[0]
        return f"CuPy cannot be imported ({first_line}); pip install 'shardserve[gpu]' brings it"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no GPU: {error}"
    return None if count else "CuPy finds no GPU: none is visible to this process"


@functools.cache
def the_gpu() -> CupyDevice:
    """This process's GPU. Raises FailedPrecondition, saying why, where there is none."""
    reason = why_no_gpu()
    if reason is not None:
        raise FailedPrecondition(f"tier 'gpu' needs a GPU: {reason}")
    return CupyDevice()


class CupyDevice:
    """A `Device`: each thread has a stream of its own, and waits for what it asked for."""

    def __init__(self) -> None:
        self._cupy = import_module("cupy")
        self._empty_pinned = import_module("cupyx").empty_pinned
        self._threads = threading.local()
        self._kernels: dict[tuple[str, str], Any] = {}

    def hold(self, nbytes: int) -> Any:
        """See `Device.hold`: a cupy array of uint8."""
        with self._failures(f"for a slice of {nbytes} bytes"):
            return self._cupy.empty(nbytes, np.uint8)

    def perform(self, memory: Any, call: Call) -> tuple[Array, int]:
        """See `Device.perform`. Both ways bytes go through pinned memory, in one copy."""
        cupy = self._cupy
        result_bytes = call.dtype.itemsize * int(np.prod(call.shape, dtype=np.int64))
        with self._failures(f"for a lookup that answers {result_bytes} bytes"), self._stream():
            sent, addresses = self._send(call.arrays)
            answer = cupy.empty(ALIGNMENT + result_bytes, np.uint8)
            answer[:ALIGNMENT].data.memset_async(ALL_FOUND_BYTE, ALIGNMENT)
            known = {
                Place.MISSED: answer.data.ptr,
                Place.RESULT: answer.data.ptr + ALIGNMENT,
            }
            self.launch(memory, call, addresses, known)
            back = self._empty_pinned(answer.nbytes, np.uint8)
            answer.data.copy_to_host_async(back.ctypes.data, answer.nbytes)
            cupy.cuda.get_current_stream().synchronize()
            del sent  # It had to live until here, as `answer` had.
        missed = int(back[:8].view(np.uint64)[0])
        return back[ALIGNMENT:].view(call.dtype).reshape(call.shape).copy(), missed

    def compile(self, call: Call) -> None:
        """See `Device.compile`."""
        with self._failures("for a kernel"):
            self._kernel(call)

    def release_unused(self) -> None:
        """See `Device.release_unused`."""
        with self._failures("for nothing"):
            self._cupy.get_default_memory_pool().free_all_blocks()
            self._cupy.get_default_pinned_memory_pool().free_all_blocks()

    def launch(
        self, memory: Any, call: Call, addresses: list[int], known: dict[Place, int]
    ) -> None:
        """Put a launch on the current stream; its arrays, result and `missed` lie where it is told.

        For measurements of the kernels alone.
        """
        table = {Place.TABLE: memory.data.ptr}
        arguments = tuple(words(call, table | known, addresses))
        self._kernel(call)(call.geometry.grid, call.geometry.block, arguments)

    def _kernel(self, call: Call) -> Any:
        """Compiled when it is first asked for, with its code's others; CuPy keeps that on disk."""
        found = self._kernels.get((call.code, call.name))
        if found is None:
            module = self._cupy.RawModule(code=DEVICE + call.code, options=_OPTIONS)
            found = module.get_function(call.name)
            self._kernels[call.code, call.name] = found
        return found

    def _send(self, arrays: list[Array]) -> tuple[Any, list[int]]:
        """The arrays, in one buffer on the device, and the address of each there."""
        starts, nbytes = packed(arrays)
        staged = self._empty_pinned(nbytes, np.uint8)
        for array, start in zip(arrays, starts, strict=True):
            staged[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        sent = self._cupy.empty(nbytes, np.uint8)
        sent.data.copy_from_host_async(staged.ctypes.data, nbytes)
        return (sent, staged), [sent.data.ptr + start for start in starts]

    def _stream(self) -> Any:
        if not hasattr(self._threads, "stream"):
            self._threads.stream = self._cupy.cuda.Stream(non_blocking=True)
        return self._threads.stream

    @contextmanager
    def _failures(self, what_for: str) -> Iterator[None]:
        cuda = self._cupy.cuda
        try:
            yield
        except cuda.memory.OutOfMemoryError as error:
            raise self._shortage(what_for) from error
        except cuda.compiler.CompileException as error:
            raise Internal(f"a kernel does not compile: {error}") from error
        except RuntimeError as error:  # CUDA's own errors, and a library of CUDA's that is missing.
            raise self._failure(error, what_for) from error

    def _shortage(self, what_for: str) -> ServingError:
        runtime = self._cupy.cuda.runtime
        try:
            free, total = runtime.memGetInfo()
        except runtime.CUDARuntimeError as error:
            return self._failure(error, what_for)
        return ResourceExhausted(
            f"the GPU has too little memory {what_for}: {free} of {total} bytes are free"
        )

    def _failure(self, error: RuntimeError, what_for: str) -> ServingError:
        """An error that CUDA does not get over is one that it gives whatever it is asked next."""
        runtime = self._cupy.cuda.runtime
        if isinstance(error, runtime.CUDARuntimeError) and error.status == _SHORT_OF_MEMORY:
            return ResourceExhausted(f"there is too little pinned memory {what_for}: {error}")
        try:
            runtime.deviceSynchronize()
        except runtime.CUDARuntimeError as lasting:
            return DeviceLost(f"the GPU failed, and this process cannot use it again: {lasting}")
        return Internal(f"the GPU failed: {error}")


def words(call: Call, known: dict[Place, int], addresses: list[int]) -> Iterator[np.int64]:
    """The call's arguments as a kernel takes them: eight bytes each.

    `known` has the address of each Place, `addresses` that of each array, in order.
    """
    left = iter(addresses)
    for argument in call.arguments:
        match argument:
            case Place():
                yield np.int64(known[argument])
            case int():
                yield np.int64(argument)
            case None:
                yield np.int64(0)
            case _:
                yield np.int64(next(left))
