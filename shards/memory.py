"""A shard process's memory: what it uses, arrays in huge pages, and giving code pages back."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HUGE_PAGE = 2 << 20
CACHE_LINE = 64

_MADV_DONTNEED = 4


def current_rss_bytes() -> int:
    """Resident bytes of this process now."""
    return _status_bytes("VmRSS")


def peak_rss_bytes() -> int:
    """The most bytes that were ever resident in this process.

    Not getrusage's `ru_maxrss`, which a process takes over from the one that forked it.
    """
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """As `numpy.empty`, but aligned to cache lines, and a large array to huge pages.

    A row of 64 floats then lies in four lines, not five, and random rows miss the TLB less: a
    pool over 1 GiB is a third faster. Memory is taken from the system page by page as it is
    written, and goes back when the last view of the array does.
    """
    dtype = np.dtype(dtype)
    nbytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if nbytes < HUGE_PAGE:
        raw = np.empty(nbytes + CACHE_LINE, np.uint8)
        alignment = CACHE_LINE
    else:
        mapping = mmap.mmap(-1, nbytes + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(mapping, np.uint8)
        alignment = HUGE_PAGE
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes].view(dtype).reshape(shape)


@dataclass(frozen=True)
class _Mapping:
    start: int
    stop: int
    writable: bool
    path: str
    anonymous_bytes: int


def release_code_pages(library: str = "libllvmlite") -> int:
    """Give back the memory of a shared library's pages that are only copies of its file.

    Returns the bytes by which this process shrank. LLVM, once the kernels are loaded, is some 45 MB
    of code and tables that nothing touches again. Safe at any time, from any thread: only mappings
    that are not writable and hold no page of their own ("Anonymous" of 0, so nothing was ever
    written there, not by the dynamic linker either) are let go, and such a page is read again from
    the file when it is next touched. Does nothing where the kernel does not tell of mappings.
    """
    before = current_rss_bytes()
    for mapping in _mappings():
        if library in mapping.path and not mapping.writable and not mapping.anonymous_bytes:
            _forget(mapping)
    return before - current_rss_bytes()


def _mappings() -> Iterator[_Mapping]:
    """This process's file mappings (proc(5), /proc/pid/smaps)."""
    smaps = Path("/proc/self/smaps")
    head: list[str] = []
    for line in smaps.read_text().splitlines() if smaps.exists() else ():
        words = line.split()
        if not words[0].endswith(":"):
            head = words
        elif words[0] == "Anonymous:" and len(head) > 5:
            start, _, stop = head[0].partition("-")
            yield _Mapping(
                int(start, 16), int(stop, 16), "w" in head[1], head[5], int(words[1]) * 1024
            )


def _forget(mapping: _Mapping) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    address, length = ctypes.c_void_p(mapping.start), ctypes.c_size_t(mapping.stop - mapping.start)
    if libc.madvise(address, length, _MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), f"madvise {mapping.path}")
