"""A shard scores queries against its slices."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, Unimplemented
from shardserve.shards import class_matrix, scoring
from shardserve.shards.best import unpack
from shardserve.shards.halves import PRODUCTS
from shardserve.shards.messages import Axis, LookupRequest, Op, Part, ScorePart
from shardserve.shards.replicas import ReplicatedChannel
from shardserve.shards.rows import RowHash, RowRange
from shardserve.shards.server import serve_in_thread
from shardserve.shards.session import ServerLimits
from shardserve.shards.shard import Shard
from shardserve.shards.storage import Precision
from shardserve.shards.store import HostStore
from tests.shards.gpus import devices, on_gpu
from tests.shards.plane import CREDENTIALS
from tests.shards.stores import coded, mapped

COPIED = {
    "mapped": mapped(lambda rows: RowRange(0, rows)),
    "mapped, scattered": mapped(lambda rows: RowHash(2, 3, 3 * rows), column_start=1),
    "coded": lambda _: coded(Precision.FLOAT16),
    **{name: lambda _, device=device: on_gpu(device) for name, device in devices().items()},
}
WHOLE = np.random.default_rng(0).integers(-2, 3, (9, 5))


def stored(dtype: str) -> HostStore:
    if dtype == "bfloat16":
        bits = WHOLE.astype(np.float32).view(np.uint32) >> 16
        return HostStore(bits.astype(np.uint16), "bfloat16")
    return HostStore(WHOLE.astype(dtype), dtype)


def queries(width: int, dtype: str = "float32", n: int = 3) -> np.ndarray:
    drawn = np.random.default_rng(1).integers(-3, 4, (n, width))
    return drawn.astype(PRODUCTS[dtype])


def picked(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("axis", Axis)
def test_scores_are_the_product(dtype, axis):
    asked = queries(5 if axis is Axis.ROWS else 9, dtype)
    (found,) = Shard([stored(dtype)]).execute(LookupRequest((), (ScorePart(0, asked, axis),)))
    assert found.dtype == asked.dtype
    np.testing.assert_array_equal(found, asked @ (WHOLE.T if axis is Axis.ROWS else WHOLE))


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize("axis", Axis)
@pytest.mark.parametrize("k", [1, 3, 5, 100])
def test_the_best_are_the_highest_and_of_equal_ones_the_first(dtype, axis, k):
    asked = queries(5 if axis is Axis.ROWS else 9, dtype)
    scores = asked @ (WHOLE.T if axis is Axis.ROWS else WHOLE)
    bias = np.arange(scores.shape[1]).astype(asked.dtype) % 2
    part = ScorePart(0, asked, axis, k, bias, totals=True)
    classes = scores.shape[1]
    best = unpack(scoring.answer(stored(dtype), part), classes, min(k, classes), totals=True)
    expected = picked(scores + bias, k)
    np.testing.assert_array_equal(best.indices, expected)
    np.testing.assert_array_equal(best.values, np.take_along_axis(scores + bias, expected, axis=1))
    logs = np.log(np.exp((scores + bias).astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(best.totals.peaks + np.log(best.totals.sums), logs, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 600), st.integers(1, 3000), st.integers(1, 7), st.sampled_from(list(Axis)))
def test_many_queries_and_many_classes_are_scored_in_pieces(n, classes, k, axis):
    rng = np.random.default_rng(n * classes)
    table = rng.integers(-3, 4, (classes, 2)).astype(np.float32)
    asked = rng.integers(-3, 4, (n, 2)).astype(np.float32)
    store = HostStore(table if axis is Axis.ROWS else np.ascontiguousarray(table.T))
    k = min(k, classes)
    best = unpack(scoring.answer(store, ScorePart(0, asked, axis, k)), classes, k, totals=False)
    np.testing.assert_array_equal(best.indices, picked(asked @ table.T, k))


@pytest.mark.parametrize("make", COPIED.values(), ids=COPIED)
@pytest.mark.parametrize("axis", Axis)
@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("copied", [1, 50, 1 << 20])
def test_a_store_whose_rows_have_to_be_fetched_answers_the_same_from_a_few_at_a_time(
    make, axis, k, copied, monkeypatch, tmp_path
):
    array = WHOLE.astype(np.float32)
    store = make(tmp_path)(array, "float32")
    asked: list[int] = []
    block = store.block

    def recorded(first: int, last: int) -> np.ndarray:
        asked.append((last - first) * array.shape[1] * array.itemsize)
        return block(first, last)

    monkeypatch.setattr(class_matrix, "COPY_BYTES", copied)
    monkeypatch.setattr(class_matrix, "SUM_BYTES", copied)
    monkeypatch.setattr(store, "block", recorded)
    part = ScorePart(0, queries(5 if axis is Axis.ROWS else 9), axis, k)
    found, expected = (scoring.answer(one, part) for one in (store, HostStore(array)))
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))
    least = array.itemsize * array.shape[1] * (k if axis is Axis.ROWS and k else 1)
    assert max(asked) <= max(copied, least)


def test_products_of_half_precision_are_rounded_before_the_best_are_picked():
    table = np.array([[2048.0, 1.0], [2048.0, 0.0], [2048.0, 3.0]], np.float16)
    part = ScorePart(0, np.ones((1, 2), np.float32), Axis.ROWS, 3)
    best = unpack(scoring.answer(HostStore(table), part), 3, 3, totals=False)
    assert best.values.tolist() == [[2052.0, 2048.0, 2048.0]]
    assert best.indices.tolist() == [[2, 0, 1]]


def test_rounding_to_bfloat16_is_to_the_nearest_even():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(2).normal(size=1000).astype(np.float32)
    values[:3] = [np.nan, np.inf, -np.inf]
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(scoring.rounded(values, "bfloat16"), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": np.zeros((2, 4), np.float32)}, r"queries must be float32 \[n, 5\]"),
        ({"queries": np.zeros(5, np.float32)}, r"queries must be float32 \[n, 5\]"),
        ({"queries": np.zeros((2, 5))}, "not float64"),
        ({"axis": Axis.COLUMNS}, r"\[n, 9\]"),
        ({"bias": np.zeros(4, np.float32)}, r"a bias must be float32 \[9\]"),
        ({"k": 0, "bias": np.zeros(9, np.float32)}, "neither a bias nor totals"),
        ({"slice_id": 1}, r"slice 1 is not in \[0, 1\)"),
    ],
)
def test_what_does_not_fit_the_slice_is_refused(changes, message):
    part = replace(ScorePart(0, queries(5), Axis.ROWS, 2), **changes)
    before = Part(0, Op.GATHER, np.array([0]))
    with pytest.raises(InvalidArgument, match=rf"parts\[1\]: .*{message}"):
        Shard([stored("float32")]).execute(LookupRequest((before,), (part,)))


def test_a_table_of_integers_is_not_scored():
    store = HostStore(np.zeros((3, 2), np.int32))
    with pytest.raises(Unimplemented, match="a table of int32"):
        scoring.answer(store, ScorePart(0, np.zeros((1, 2), np.float32), Axis.ROWS))


class _Terabyte:
    """A store as far as its cost goes."""

    rows, columns, dtype, nbytes = 1 << 32, 64, "float32", 1 << 40


def test_the_cost_grows_with_what_is_written_but_a_large_slice_can_be_asked():
    asked = ScorePart(0, np.zeros((2, 64), np.float32), Axis.ROWS, 10)
    cost = scoring.cost([_Terabyte()], asked)
    limits = ServerLimits()
    assert limits.inline_cost < cost < limits.max_job_cost
    assert scoring.cost([_Terabyte()], replace(asked, k=0)) > 2 << 32
    assert scoring.cost([_Terabyte()], replace(asked, slice_id=1)) == 0


async def test_scores_travel_like_lookups_do(tmp_path):
    shard = Shard([stored("float32")])
    server = serve_in_thread(shard, CREDENTIALS, unix_path=str(tmp_path / "socket"))
    channel = ReplicatedChannel("shard 0", [server.address], CREDENTIALS)
    try:
        bias = np.arange(9, dtype=np.float32)
        best = ScorePart(0, queries(5), Axis.ROWS, 2, bias, totals=True)
        every = ScorePart(0, queries(9, n=40_000), Axis.COLUMNS)
        row = Part(0, Op.GATHER, np.array([3]))
        request = LookupRequest((row,), (best, every))
        reply = await channel.lookup(request, time.monotonic() + 30)
        for found, expected in zip(reply.results, shard.execute(request), strict=True):
            assert found.tobytes() == expected.tobytes()
        with pytest.raises(InvalidArgument, match=r"parts\[0\]: slice 7 is not in"):
            await channel.lookup(
                LookupRequest((), (replace(best, slice_id=7),)), time.monotonic() + 30
            )
    finally:
        await channel.close()
        server.close()
