"""The GPU tier's parts that need no GPU: geometry, arguments, loading, and what is said of GPUs.

What the kernels compute is shown where they can run: see `gpus.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import FailedPrecondition, InvalidArgument
from shardserve.shards import loading
from shardserve.shards.coded import CodedStore
from shardserve.shards.encoding import encode
from shardserve.shards.gpu_calls import ALIGNMENT, THREADS, WARP, Call, Place, geometry, packed
from shardserve.shards.gpu_code import (
    CODED_FORMS,
    FLOAT32,
    FLOAT64,
    SAVED_FORMS,
    form_code,
    word_bytes,
    words_code,
)
from shardserve.shards.gpu_device import the_gpu, why_no_gpu, words
from shardserve.shards.gpu_loading import load_gpu
from shardserve.shards.gpu_store import GpuStore
from shardserve.shards.layout import Slice
from shardserve.shards.rows import RowHash, RowMod, RowRange
from shardserve.shards.shard import Shard
from shardserve.shards.storage import Precision, Storage, Tier, coded_row_bytes
from shardserve.shards.store import HostStore
from tests.shards.gpus import EmulatedGpu, devices, on_gpu, why_no_emulation
from tests.shards.stores import written

on_each_device = pytest.mark.parametrize("device", devices().values(), ids=devices())
COLUMNS = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24, 64, 100, 128, 130, 200, 260, 512])


@given(st.integers(1, 10**6), st.integers(1, 10**5))
def test_a_launch_has_one_thread_for_each_step_of_each_item(items, steps):
    found = geometry(items, steps)
    (lanes, per_block), (across, wide) = found.block, found.grid
    assert lanes * per_block == THREADS
    assert lanes <= WARP
    assert WARP % lanes == 0
    assert (across - 1) * per_block < items <= across * per_block
    assert (wide - 1) * lanes < steps <= wide * lanes


def test_a_row_of_128_floats_is_one_warps_and_a_narrow_one_part_of_one():
    assert geometry(1000, 128 // FLOAT32.vector(128)).block == (32, 8)
    assert geometry(1000, 16 // FLOAT32.vector(16)).block == (4, 64)


def test_what_is_too_wide_for_a_grid_is_refused():
    with pytest.raises(InvalidArgument, match="rows are too wide for tier 'gpu'"):
        geometry(1, 33 * 65_536)
    if why_no_emulation() is None:
        with pytest.raises(InvalidArgument, match="too wide"):
            GpuStore(EmulatedGpu(), 0, 4 * 33 * 65_536, "float32", Precision.INT8)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_arrays_are_packed_aligned_without_overlap(sizes):
    arrays = [np.zeros(size, np.uint8) for size in sizes]
    starts, nbytes = packed(arrays)
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert all(end <= start for end, start in zip(ends, [*starts[1:], nbytes], strict=True))
    assert nbytes <= sum(sizes) + ALIGNMENT * len(sizes)


def test_a_kernel_gets_every_argument_in_eight_bytes():
    rows, weights = np.zeros(3, np.int32), np.zeros(3, np.float32)
    arguments = (Place.TABLE, 7, rows, None, weights, Place.RESULT, Place.MISSED)
    call = Call("code", "name", geometry(3, 1), arguments, (3, 1), np.dtype(np.float32))
    known = {Place.TABLE: 2**40, Place.RESULT: 16, Place.MISSED: 0}
    found = list(words(call, known, [100, 200]))
    assert found == [2**40, 7, 100, 0, 200, 16, 0]
    assert {type(word) for word in found} == {np.int64}
    assert [array is one for array, one in zip(call.arrays, (rows, weights), strict=True)]


@given(st.sampled_from([*SAVED_FORMS.values(), *CODED_FORMS.values()]), st.integers(1, 600))
def test_a_thread_loads_what_divides_the_row_and_is_aligned(form, columns):
    vector = form.vector(columns)
    head = 4 if form.has_scale else 0
    row_bits = 8 * head + columns * form.bits
    assert columns % vector == 0
    if vector > 1:
        load_bits = vector * form.bits
        assert load_bits <= 128
        assert load_bits % 8 == row_bits % load_bits == 8 * head % load_bits == 0


def test_usual_widths_are_loaded_as_widely_as_can_be():
    assert (FLOAT32.vector(128), FLOAT64.vector(128)) == (4, 2)
    assert {precision: form.vector(128) for precision, form in CODED_FORMS.items()} == {
        Precision.FLOAT16: 8,
        Precision.BFLOAT16: 8,
        Precision.INT8: 4,
        Precision.INT4: 8,
    }
    assert [word_bytes(size) for size in (512, 24, 12, 10, 5)] == [16, 8, 4, 2, 1]


def test_the_source_is_complete_and_needs_no_header():
    sources = [words_code(16, THREADS), form_code(FLOAT32, 4, THREADS)]
    sources += [form_code(form, form.vector(64), THREADS) for form in CODED_FORMS.values()]
    for source in sources:
        assert "#include" not in source
        assert "$" not in source
        assert source.count("{") == source.count("}")


def _bags(rng: np.random.Generator, count: int, wide: bool) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *rng.choice([0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 31], 40)])
    rows = rng.integers(0, count, offsets[-1])
    return rows.astype(np.int64 if wide else np.int32), offsets


@on_each_device
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    dtype=st.sampled_from([*SAVED_FORMS]),
    columns=COLUMNS,
    wide=st.booleans(),
    weighted=st.booleans(),
)
def test_it_answers_what_the_memory_tier_answers(device, dtype, columns, wide, weighted):
    rng = np.random.default_rng(columns)
    table = rng.normal(size=(70, columns)).astype(dtype)
    rows, offsets = _bags(rng, 70, wide)
    weights = rng.normal(size=len(rows)).astype(dtype) if weighted else None
    ours, host = on_gpu(device)(table, dtype), HostStore(table)
    expected = host.pool(rows, offsets, weights)
    assert ours.pool(rows, offsets, weights).tobytes() == expected.tobytes()
    assert ours.gather(rows).tobytes() == host.gather(rows).tobytes()


@on_each_device
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    precision=st.sampled_from([*CODED_FORMS]),
    columns=COLUMNS,
    wide=st.booleans(),
    weighted=st.booleans(),
)
def test_it_answers_what_the_memory_tier_answers_at_a_precision(
    device, precision, columns, wide, weighted
):
    rng = np.random.default_rng(columns)
    table = rng.normal(size=(70, columns)).astype(np.float32)
    rows, offsets = _bags(rng, 70, wide)
    weights = rng.normal(size=len(rows)).astype(np.float32) if weighted else None
    ours = on_gpu(device, precision)(table, "float32")
    host = CodedStore(encode(precision, table)[0], precision, columns)
    expected = host.pool(rows, offsets, weights)
    assert ours.pool(rows, offsets, weights).tobytes() == expected.tobytes()
    assert ours.gather(rows).tobytes() == host.gather(rows).tobytes()


@on_each_device
def test_every_half_is_widened_as_numpy_does(device):
    table = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)[:, None]
    table = table[~np.isnan(table[:, 0])]
    store = on_gpu(device, Precision.FLOAT16)(table, "float32")
    found = store.gather(np.arange(len(table)))
    np.testing.assert_array_equal(found, table)


@on_each_device
def test_the_first_of_many_bad_rows_is_named(device):
    store = on_gpu(device)(np.zeros((10, 4), np.float32), "float32")
    rows = np.tile([1, 10, -1, 3], 100)[1:]
    with pytest.raises(InvalidArgument, match=r"rows\[0\] = 10 is not in \[0, 10\)"):
        store.pool(rows, np.array([0, 200, len(rows)]), None)


@on_each_device
def test_a_store_of_no_rows_has_none_to_give(device):
    store = GpuStore(device(), 0, 4, "float32")
    assert store.pool(np.array([], int), np.array([0, 0]), None).tolist() == [[0.0] * 4]
    with pytest.raises(InvalidArgument, match=r"rows\[0\] = 0 is not in \[0, 0\)"):
        store.gather(np.array([0]))


@on_each_device
@pytest.mark.parametrize(
    "rows", [RowRange(100, 900), RowMod(1, 3, 1000), RowHash(2, 3, 1000)], ids=lambda r: type(r)
)
@pytest.mark.parametrize("precision", [Precision.AS_SAVED, Precision.INT8])
def test_a_slice_comes_from_the_checkpoint_in_small_pieces(
    device, rows, precision, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(loading, "BUFFER_BYTES", 7 * 32 * 4)
    table = np.random.default_rng(0).normal(size=(1000, 32)).astype(np.float32)
    source = written(tmp_path / "data", table, "float32", cuts=True)
    piece = Slice("table", 0, rows, 4, 28, Storage(Tier.GPU, precision))
    came: list[int] = []
    store = load_gpu(source, piece, came.append, device())
    expected = table[rows.rows(0, rows.count), 4:28]
    assert (store.rows, store.columns, store.dtype) == (rows.count, 24, "float32")
    assert sum(came) == store.nbytes
    assert max(came) <= loading.BUFFER_BYTES
    host = (
        HostStore(expected.copy())
        if precision is Precision.AS_SAVED
        else CodedStore(encode(precision, expected)[0], precision, 24)
    )
    every = np.arange(rows.count)
    assert store.gather(every).tobytes() == host.gather(every).tobytes()
    per_row = 96 if precision is Precision.AS_SAVED else coded_row_bytes(precision, 24)
    assert store.nbytes == rows.count * per_row


@on_each_device
def test_rows_that_a_precision_does_not_hold_are_named(device, tmp_path: Path):
    table = np.zeros((50, 8), np.float32)
    table[33, 2] = np.inf
    source = written(tmp_path / "data", table, "float32")
    piece = Slice("table", 0, RowRange(0, 50), 0, 8, Storage(Tier.GPU, Precision.INT8))
    with pytest.raises(InvalidArgument, match="table 'table': row 33 has elements"):
        load_gpu(source, piece, None, device())


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_the_table_and_the_reason_are_named(tmp_path: Path):
    source = written(tmp_path / "data", np.zeros((5, 8), np.float32), "float32")
    piece = Slice("table", 0, RowRange(0, 5), 0, 8, Storage(Tier.GPU))
    with pytest.raises(FailedPrecondition, match="table 'table': tier 'gpu' needs a GPU: CuPy"):
        Shard.load({"table": source}, [piece])
    with pytest.raises(FailedPrecondition, match="CuPy"):
        the_gpu()


def test_a_shard_without_gpu_tables_never_imports_cupy():
    code = "import sys, shardserve.shards.shard; print('cupy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
