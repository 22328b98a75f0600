"""Arrays in huge pages, and what a process uses."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from shardserve.shards import memory


@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (1000, 1000), (3 << 20,)])
@pytest.mark.parametrize("dtype", ["float32", "uint16", "bool"])
def test_an_array_is_as_asked_for_and_aligned(shape, dtype):
    array = memory.empty(shape, dtype)
    assert (array.shape, array.dtype, array.flags.carray) == (shape, dtype, True)
    alignment = memory.HUGE_PAGE if array.nbytes >= memory.HUGE_PAGE else memory.CACHE_LINE
    assert not array.size or array.ctypes.data % alignment == 0
    array.fill(1)
    assert (array == 1).all()


def test_memory_is_taken_as_it_is_written_and_goes_back_with_the_array():
    gc.collect()
    start = memory.current_rss_bytes()
    array = memory.empty((64 << 20,), np.uint8)
    assert memory.current_rss_bytes() - start < 8 << 20
    array[:] = 1
    assert memory.current_rss_bytes() - start > 56 << 20
    view = array[5:]
    del array
    assert memory.current_rss_bytes() - start > 56 << 20
    del view
    assert memory.current_rss_bytes() - start < 8 << 20
    assert memory.peak_rss_bytes() - start > 56 << 20
