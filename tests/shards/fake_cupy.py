"""As much of CuPy's documented interface as the GPU tier calls, over the host's memory.

Kernels are compiled for the processor, as `gpus.EmulatedGpu` has them; copies and launches happen
at once. `Cuda.failing` is what every call then fails with, as after an error that lasts.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.shards.gpus import aligned, launched


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"CUDA error {status}")
        self.status = status


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):
    pass


class Pointer:
    """cupy.cuda.MemoryPointer."""

    def __init__(self, cuda: Cuda, ptr: int) -> None:
        self._cuda = cuda
        self.ptr = ptr

    def copy_from_host_async(self, mem: int, size: int) -> None:
        self._cuda.asked("copy")
        ctypes.memmove(self.ptr, mem, size)

    def copy_to_host_async(self, mem: int, size: int) -> None:
        self._cuda.asked("copy")
        ctypes.memmove(mem, self.ptr, size)

    def memset_async(self, value: int, size: int) -> None:
        self._cuda.asked("memset")
        ctypes.memset(self.ptr, value, size)


class Array:
    """cupy.ndarray, of bytes."""

    def __init__(self, cuda: Cuda, held: np.ndarray) -> None:
        self._cuda, self._held = cuda, held
        self.nbytes = held.nbytes
        self.data = Pointer(cuda, held.ctypes.data)

    def __getitem__(self, some: slice) -> Array:
        return Array(self._cuda, self._held[some])


class Stream:
    """cupy.cuda.Stream."""

    def __init__(self, cuda: Cuda, non_blocking: bool) -> None:
        assert non_blocking
        self._cuda = cuda

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def synchronize(self) -> None:
        self._cuda.asked("synchronize")


class Cuda:
    """The device's state. Allocations above `capacity` bytes are refused."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        #: The status that each of these calls fails with; "every" means all of them.
        self.failing: dict[str, int] = {}

    def asked(self, what: str) -> None:
        for name in ("every", what):
            if name in self.failing:
                raise CUDARuntimeError(self.failing[name])

    def empty(self, nbytes: int, dtype: Any) -> Array:
        assert dtype is np.uint8
        self.asked("empty")
        if nbytes > self.capacity:
            raise OutOfMemoryError
        return Array(self, aligned(nbytes))

    def empty_pinned(self, nbytes: int, dtype: Any) -> np.ndarray:
        self.asked("pin")
        return np.empty(nbytes, dtype)

    def module(self, code: str, options: tuple[str, ...]) -> Any:
        assert options == ("--fmad=false",)
        if "not C" in code:
            raise CompileException("line 1")
        plain = code[code.index("typedef") :]  # Without what only CUDA knows.

        def function(name: str) -> Any:
            def launch(grid: tuple[int, int], block: tuple[int, int], words: Any) -> None:
                self.asked("launch")
                launched(plain, name, grid, block, words)

            return launch

        return SimpleNamespace(get_function=function)

    def memory(self) -> tuple[int, int]:
        self.asked("memory")
        return 5, self.capacity


def modules(cuda: Cuda) -> dict[str, Any]:
    """What to put into `sys.modules` in the place of CuPy's."""
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        memGetInfo=cuda.memory,
        deviceSynchronize=lambda: cuda.asked("device"),
    )
    stream = Stream(cuda, non_blocking=True)
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    cupy = SimpleNamespace(
        empty=cuda.empty,
        RawModule=cuda.module,
        get_default_memory_pool=lambda: pool,
        get_default_pinned_memory_pool=lambda: pool,
        cuda=SimpleNamespace(
            runtime=runtime,
            Stream=lambda *, non_blocking: Stream(cuda, non_blocking),
            get_current_stream=lambda: stream,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            compiler=SimpleNamespace(CompileException=CompileException),
        ),
    )
    return {"cupy": cupy, "cupyx": SimpleNamespace(empty_pinned=cuda.empty_pinned)}
