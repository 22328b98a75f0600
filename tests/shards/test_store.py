"""The conformance suite: what every slice store has to do.

The GPU tier is held against it on the machine's GPU, where there is one, and always on a device
that runs the same kernels on the processor, where there is a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from shardserve.batching.errors import InvalidArgument, Unimplemented
from shardserve.shards import chunks
from shardserve.shards.gpu_device import why_no_gpu
from shardserve.shards.rows import RowHash, RowMod, RowRange
from shardserve.shards.storage import Precision, coded_row_bytes
from shardserve.shards.store import HostStore, SliceStore, array_dtype
from tests.shards.gpus import devices, on_gpu, why_no_emulation
from tests.shards.stores import coded, mapped

Make = Callable[[np.ndarray, str], SliceStore]

STORES: dict[str, Callable[[Path], Make]] = {
    "memory": lambda _: HostStore,
    "mapped": mapped(lambda rows: RowRange(0, rows)),
    "mapped, a range of rows": mapped(lambda rows: RowRange(7, 7 + rows)),
    "mapped, every third row": mapped(lambda rows: RowMod(1, 3, 3 * rows)),
    "mapped, scattered rows": mapped(lambda rows: RowHash(2, 3, 3 * rows)),
    "mapped, columns": mapped(lambda rows: RowRange(0, rows), column_start=3),
    "mapped, of a sliced checkpoint": mapped(lambda rows: RowHash(0, 2, 2 * rows), cuts=True),
    "mapped, with a cache": mapped(lambda rows: RowRange(0, rows), cache_bytes=1 << 20),
    "mapped, with a small cache": mapped(lambda rows: RowRange(0, rows), cache_bytes=1000),
}
#: Stores of float32 alone, and the largest element of rows that they hold to the bit.
CODED = {
    Precision.FLOAT16: 2000,
    Precision.BFLOAT16: 100,
    Precision.INT8: 127,
    Precision.INT4: 7,
}
for _name, _device in devices().items():
    STORES[_name] = lambda _, device=_device: on_gpu(device)
#: The same precisions in a GPU's memory.
CODED_ON_GPU = {
    f"{name}, {precision}": (device, precision)
    for name, device in devices().items()
    for precision in CODED
}


def precision_of(kind: str) -> Precision | None:
    """That of a store of float32 alone, None for a store of any table as it was saved."""
    if isinstance(kind, Precision):
        return kind
    return CODED_ON_GPU[kind][1] if kind in CODED_ON_GPU else None


@pytest.mark.parametrize(
    ("of_what", "reason"),
    [("a GPU", why_no_gpu()), ("the GPU's kernels on the processor", why_no_emulation())],
)
def test_the_suite_runs_over_everything(of_what, reason):
    if reason is not None:
        pytest.skip(f"no store on {of_what} is tested here: {reason}")


@pytest.fixture(params=STORES)
def make_any(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A store of an array [rows, columns] and a table's dtype."""
    return STORES[request.param](tmp_path)


@pytest.fixture(params=[*STORES, *CODED, *CODED_ON_GPU])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(kind: str, tmp_path: Path) -> Make:
    if kind in CODED_ON_GPU:
        return on_gpu(*CODED_ON_GPU[kind])
    return coded(kind) if isinstance(kind, Precision) else STORES[kind](tmp_path)


@pytest.fixture
def table(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    precision = precision_of(kind)
    if precision is None:
        return rng.normal(size=(100, 16)).astype(np.float32)
    peak = CODED[precision]
    table = rng.integers(-peak, peak + 1, (100, 16))
    table[:, 5] = peak
    return table.astype(np.float32)


@pytest.fixture
def store(make: Make, table: np.ndarray) -> SliceStore:
    return make(table.copy(), "float32")


def test_it_says_what_it_holds(store, kind):
    precision = precision_of(kind)
    row_bytes = 64 if precision is None else coded_row_bytes(precision, 16)
    assert (store.rows, store.columns, store.dtype) == (100, 16, "float32")
    assert store.nbytes == 100 * row_bytes
    assert store.may_wait is kind.startswith(("mapped", "gpu"))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_it_gathers_rows(store, table, dtype):
    rows = np.array([99, 0, 0, 41], dtype)
    np.testing.assert_array_equal(store.gather(rows), table[rows])


@pytest.mark.parametrize(("first", "last"), [(0, 100), (17, 60), (99, 100), (5, 5)])
def test_it_gives_blocks_of_rows(store, table, first, last):
    np.testing.assert_array_equal(store.block(first, last), table[first:last])


def test_it_says_where_rows_are_and_what_they_take_of_memory(store, kind):
    store.gather(np.array([3, 3]))
    tier = kind.partition(",")[0] if kind.startswith(("mapped", "gpu")) else "memory"
    assert store.tier == tier
    assert store.in_place is (kind == "memory")
    cached = {"mapped, with a cache": 64, "mapped, with a small cache": 64}.get(kind, 0)
    assert store.resident_bytes == (cached if tier == "mapped" else store.nbytes)


def test_it_pools_rows(store, table):
    rows, offsets = np.array([5, 6, 5, 99]), np.array([0, 2, 2, 4])
    expected = [table[5] + table[6], np.zeros(16), table[5] + table[99]]
    np.testing.assert_array_equal(store.pool(rows, offsets, None), np.float32(expected))


def test_it_pools_rows_by_weight(store, table):
    rows, offsets = np.array([5, 6]), np.array([0, 2], np.int32)
    weights = np.array([0.5, -3.0], np.float32)
    expected = table[5] * weights[0] + table[6] * weights[1]
    np.testing.assert_array_equal(store.pool(rows, offsets, weights), expected[None])


@pytest.mark.parametrize("weighted", [False, True])
def test_it_pools_bags_of_any_size_in_order(store, table, weighted, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 5 * 64)
    rng = np.random.default_rng(2)
    offsets = np.cumsum([0, 0, 3, 0, 0, 1, 40, 5, 5, 0, 17, 0])
    rows = rng.integers(0, 100, offsets[-1])
    weights = rng.normal(size=len(rows)).astype(np.float32) if weighted else None
    expected = summed_in_order(table, rows, offsets, weights)
    np.testing.assert_array_equal(store.pool(rows, offsets, weights), expected)


def summed_in_order(
    table: np.ndarray, rows: np.ndarray, offsets: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    sums = np.zeros((len(offsets) - 1, table.shape[1]), np.float32)
    for bag, (first, stop) in enumerate(pairwise(offsets)):
        for place in range(first, stop):
            row = table[rows[place]]
            sums[bag] += row if weights is None else row * weights[place]
    return sums


@pytest.mark.parametrize("offsets", [[], [0], [0, 1], [1, 2], [0, 3, 2], [0, -1, 2]])
def test_it_refuses_offsets_that_do_not_rise(store, offsets):
    with pytest.raises(InvalidArgument, match="offsets must rise from 0 to the number of rows, 2"):
        store.pool(np.array([0, 1]), np.array(offsets, np.int64), None)


def test_it_answers_nothing_with_nothing(store):
    none = np.array([], np.int64)
    assert store.gather(none).shape == (0, 16)
    assert store.pool(none, np.array([0]), None).shape == (0, 16)
    assert store.pool(none, np.array([0, 0, 0]), None).tolist() == [[0.0] * 16] * 2


@pytest.mark.parametrize("bad", [-1, 100, 2**40])
def test_it_refuses_rows_outside_and_names_them(store, bad):
    rows = np.array([0, bad, 1])
    message = rf"rows\[1\] = {bad} is not in \[0, 100\)"
    with pytest.raises(InvalidArgument, match=message):
        store.gather(rows)
    with pytest.raises(InvalidArgument, match=message):
        store.pool(rows, np.array([0, 3]), None)


def test_it_refuses_offsets_and_weights_that_do_not_fit(store):
    rows = np.array([0, 1])
    with pytest.raises(InvalidArgument, match="offsets"):
        store.pool(rows, np.array([0, 3]), None)
    with pytest.raises(InvalidArgument, match="weights"):
        store.pool(rows, np.array([0, 2]), np.ones(3, np.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "float64"])
def test_it_gathers_rows_of_any_dtype_to_the_bit(make_any, dtype):
    rng = np.random.default_rng(1)
    size = array_dtype(dtype).itemsize
    table = rng.integers(0, 256, (9, 5 * size), np.uint8).view(array_dtype(dtype))
    store = make_any(table.copy(), dtype)
    assert (store.dtype, store.columns, store.nbytes) == (dtype, 5, 45 * size)
    assert store.gather(np.array([8, 1])).tobytes() == table[[8, 1]].tobytes()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("columns", [5, 16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_pools_rows_of_half_precision_as_float32(
    make_any, dtype, columns, weighted, monkeypatch
):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 5 * 64)
    rng = np.random.default_rng(3)
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    halves = rng.normal(size=(50, columns)).astype(numpy_dtype)
    store = make_any(halves.view(array_dtype(dtype)).copy(), dtype)
    offsets = np.cumsum([0, 0, 3, 17, 1])
    rows = rng.integers(0, 50, offsets[-1])
    weights = rng.normal(size=len(rows)).astype(np.float32) if weighted else None
    pooled = store.pool(rows, offsets, weights)
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(
        pooled, summed_in_order(halves.astype(np.float32), rows, offsets, weights)
    )


def test_it_says_what_it_cannot_pool(make_any):
    store = make_any(np.zeros((3, 4), np.int32), "int32")
    with pytest.raises(Unimplemented, match="pooling rows of int32"):
        store.pool(np.array([0]), np.array([0, 1]), None)


def test_its_answers_belong_to_the_caller(store, table):
    store.gather(np.arange(100))[:] = 0
    store.pool(np.arange(100), np.arange(101), None)[:] = 0
    np.testing.assert_array_equal(store.gather(np.arange(100)), table)


def test_many_threads_may_ask_at_once(store, table):
    def ask(seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, 100, 2000)
        np.testing.assert_array_equal(store.gather(rows), table[rows])
        np.testing.assert_array_equal(store.pool(rows, np.arange(2001), None), table[rows])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(40)))
