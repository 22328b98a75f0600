"""GPUs to hold the GPU tier against its suite: the machine's, and the kernels on its processor.

`EmulatedGpu` compiles the kernels' own source with g++ and runs the threads of a launch one after
the other, which is a possible order since none of them needs another. What it cannot show is that
NVRTC takes the source, and how CuPy is driven: that needs a GPU.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shardserve.shards.encoding import encode
from shardserve.shards.gpu_calls import Call, Device, Place, packed
from shardserve.shards.gpu_code import ALL_FOUND
from shardserve.shards.gpu_device import the_gpu, why_no_gpu, words
from shardserve.shards.gpu_store import GpuStore
from shardserve.shards.storage import Precision

Make = Callable[[np.ndarray, str], GpuStore]

#: What CUDA has and C++ has not; loads that are not aligned as CUDA wants them end the process.
HOST = r"""
#include <cstring>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __restrict__
struct alignas(8) uint2 { unsigned int x, y; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
struct Dim { unsigned int x, y; };
static thread_local Dim blockIdx, blockDim, threadIdx;

static float bits_to_float(unsigned int bits) { float f; memcpy(&f, &bits, 4); return f; }
static float half_bits_to_float(unsigned short bits) {
    unsigned int sign = (bits & 0x8000u) << 16;
    float value = bits_to_float((bits & 0x7fffu) << 13) * 0x1p112f;
    unsigned int magnitude;
    memcpy(&magnitude, &value, 4);
    if ((bits & 0x7c00u) == 0x7c00u) magnitude |= 0x7f800000u;
    return bits_to_float(sign | magnitude);
}
static float times(float x, float y) { return x * y; }
static double times(double x, double y) { return x * y; }
static float plus(float x, float y) { return x + y; }
static double plus(double x, double y) { return x + y; }
static void lower(unsigned long long* least, unsigned long long value) {
    if (value < *least) *least = value;
}

extern "C" void run(void* kernel, const long long* a, int n, const int* grid, const int* block) {
    typedef long long i;
    blockDim = {(unsigned)block[0], (unsigned)block[1]};
    for (unsigned w = 0; w < grid[1] * 1u; ++w) for (unsigned v = 0; v < grid[0] * 1u; ++v)
    for (unsigned y = 0; y < blockDim.y; ++y) for (unsigned x = 0; x < blockDim.x; ++x) {
        blockIdx = {v, w};
        threadIdx = {x, y};
        switch (n) {
        case 7: ((void(*)(i,i,i,i,i,i,i))kernel)(a[0],a[1],a[2],a[3],a[4],a[5],a[6]); break;
        case 8: ((void(*)(i,i,i,i,i,i,i,i))kernel)(a[0],a[1],a[2],a[3],a[4],a[5],a[6],a[7]); break;
        case 10: ((void(*)(i,i,i,i,i,i,i,i,i,i))kernel)(
            a[0],a[1],a[2],a[3],a[4],a[5],a[6],a[7],a[8],a[9]); break;
        }
    }
}
"""
_OPTIONS = ("-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-w")
_CHECKS = ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")


def why_no_emulation() -> str | None:
    """Why the kernels cannot run on the processor; None if they can."""
    return (
        None if shutil.which("g++") else "there is no g++ to compile the kernels for the processor"
    )


def devices() -> dict[str, Callable[[], Device]]:
    """The GPUs that there are, by name."""
    found: dict[str, Callable[[], Device]] = {}
    if why_no_gpu() is None:
        found["gpu"] = the_gpu
    if why_no_emulation() is None:
        found["gpu, emulated"] = EmulatedGpu
    return found


class EmulatedGpu:
    """A `Device` whose memory is the host's."""

    def hold(self, nbytes: int) -> np.ndarray:
        return aligned(nbytes)

    def compile(self, call: Call) -> None:
        assert hasattr(_compiled(call.code), call.name)

    def release_unused(self) -> None: ...

    def perform(self, memory: np.ndarray, call: Call) -> tuple[np.ndarray, int]:
        starts, nbytes = packed(call.arrays)
        sent = aligned(nbytes)
        for array, start in zip(call.arrays, starts, strict=True):
            sent[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        result = aligned(call.dtype.itemsize * int(np.prod(call.shape)))
        missed = np.full(1, ALL_FOUND, np.uint64)
        known = {
            Place.TABLE: memory.ctypes.data,
            Place.RESULT: result.ctypes.data,
            Place.MISSED: missed.ctypes.data,
        }
        addresses = [sent.ctypes.data + start for start in starts]
        arguments = list(words(call, known, addresses))
        launched(call.code, call.name, call.geometry.grid, call.geometry.block, arguments)
        return result.view(call.dtype).reshape(call.shape), int(missed[0])


def launched(
    code: str, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any]
) -> None:
    """Run all threads of a launch."""
    library = _compiled(code)
    library.run(
        ctypes.cast(library[name], ctypes.c_void_p),
        np.array(arguments, np.int64).ctypes.data_as(ctypes.c_void_p),
        len(arguments),
        (ctypes.c_int * 2)(*grid),
        (ctypes.c_int * 2)(*block),
    )


def aligned(nbytes: int) -> np.ndarray:
    """As a device gives memory: no more bytes than asked for, and aligned."""
    raw = np.full(nbytes + 256, 0xAA, np.uint8)
    start = -raw.ctypes.data % 256
    return raw[start : start + nbytes]


@cache
def _compiled(code: str) -> Any:
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory) / "kernels.cpp", Path(directory) / "kernels.so"
        source.write_text(HOST + code)
        command = ["g++", *_OPTIONS, *_CHECKS, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


def on_gpu(device: Callable[[], Device], precision: Precision | None = None) -> Make:
    """Makes stores on a device, of rows that are loaded in two pieces, the second one first."""

    def make(array: np.ndarray, dtype: str) -> GpuStore:
        store = GpuStore(device(), *array.shape, dtype, precision)
        if precision is None:
            kept = array.view(np.uint8).reshape(len(array), -1)
        else:
            kept, fits = encode(precision, array)
            assert fits.all()
        places = np.arange(len(array))
        half = len(array) // 2
        store.put(places[half:], kept[half:])
        store.put(places[:half], kept[:half])
        return store

    return make
