"""A stage of tensors gives each call what it would have got alone, in every dtype and shape."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.driver import BatchDevice, DeviceLimits
from shardserve.batching.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from shardserve.batching.likeness import Likeness
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.tasks import Priority
from shardserve.batching.tensor_stage import TensorBatch, TensorStage
from shardserve.batching.tensors import Array

DTYPES = [np.dtype(t) for t in ("?", "i1", "i8", "f2", "f4", "c8", ml_dtypes.bfloat16, object)]


class Identity:
    """Gives back what it gets, and writes down how many rows that was. Rows of -1 are refused."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    async def __call__(self, tensors: list[Array], batch: TensorBatch) -> Sequence[Array]:
        self.rows.append(len(tensors[0]))
        await asyncio.sleep(0)
        if tensors[0].dtype == np.float64 and (tensors[0] == -1).any():
            raise InvalidArgument("-1")
        return tensors


def stage_of(
    run: Any,
    *,
    outputs: int = 1,
    multiples: bool = False,
    max_bytes: int = 1 << 20,
    **parameters: Any,
) -> TensorStage:
    device = BatchDevice(1, DeviceLimits(max_bytes))
    names = [f"y{place}" for place in range(outputs)]
    return TensorStage(
        device, "s", BatchingParameters(**parameters), run, names, multiples=multiples
    )


def array(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> Array:
    values = np.arange(seed, seed + int(np.prod(shape)))
    if dtype.hasobject:
        return np.array([b"%d" % value for value in values], object).reshape(shape)
    return (values % 100).astype(dtype).reshape(shape)


async def asked(stage: TensorStage, calls: Sequence[list[Array]], **how: Any) -> list[Any]:
    return await asyncio.gather(
        *[stage(tensors, len(tensors[0]), **how) for tensors in calls], return_exceptions=True
    )


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()


@given(
    kinds=st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 2)), min_size=1, max_size=3),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    allowed=st.sampled_from([(), (4, 12), (2, 6)]),
    splits=st.booleans(),
)
@settings(deadline=None)
def test_each_call_gets_its_own_rows_back(kinds, sizes, allowed, splits):
    largest = allowed[-1] if allowed else 12
    parameters: dict[str, Any] = {"max_batch_size": 12, "allowed_batch_sizes": allowed}
    if splits or largest < 12:
        parameters |= {"enable_large_batch_splitting": True, "max_execution_batch_size": largest}
    run = Identity()
    calls = [
        [array(dtype, (rows, *[2] * rank), 50 * place) for dtype, rank in kinds]
        for place, rows in enumerate(sizes)
    ]
    answers = asyncio.run(asked(stage_of(run, outputs=len(kinds), **parameters), calls))
    for tensors, answer in zip(calls, answers, strict=True):
        assert all(same(a, b) for a, b in zip(tensors, answer, strict=True))
    assert max(run.rows) <= largest
    assert not allowed or {0, *allowed} >= set(run.rows)


async def test_a_call_that_is_cut_into_pieces_fails_with_any_of_them_and_alone():
    stage = stage_of(
        Identity(), max_batch_size=9, enable_large_batch_splitting=True, max_execution_batch_size=3
    )
    calls = [[np.arange(rows, dtype=np.float64)] for rows in (2, 8, 4)]
    calls[1][0][-1] = -1
    one, two, three = await asked(stage, calls)
    assert isinstance(two, InvalidArgument)
    assert one[0].tolist() == [0, 1]
    assert three[0].tolist() == [0, 1, 2, 3]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 3))
@settings(deadline=None)
def test_rows_may_be_several_lines_where_the_owner_says_so(sizes, lines):
    stage = stage_of(Identity(), outputs=2, multiples=True, allowed_batch_sizes=(7, 1000))
    calls = [
        [array(np.dtype("f4"), (n * lines, 2), 9 * n), array(np.dtype("i8"), (n,), n)]
        for n in sizes
    ]

    async def ask() -> list[list[Array]]:
        return await asyncio.gather(
            *[stage(tensors, rows) for tensors, rows in zip(calls, sizes, strict=True)]
        )

    for tensors, answer in zip(calls, asyncio.run(ask()), strict=True):
        assert all(same(a, b) for a, b in zip(tensors, answer, strict=True))


async def test_only_calls_that_look_alike_and_are_of_one_group_share_a_batch():
    run = Identity()
    stage = stage_of(run)
    one = np.ones((1, 2))
    alike = [[one], [one], [np.ones((2, 2))]]
    others = [[one.astype("f4")], [np.ones((1, 3))]]
    await asyncio.gather(asked(stage, [*alike, *others]), asked(stage, alike, group="g"))
    assert sorted(run.rows) == [1, 1, 4, 4]


async def test_the_run_knows_whom_it_is_for():
    seen = []

    async def run(tensors: list[Array], batch: TensorBatch) -> Sequence[Array]:
        assert isinstance(batch.key, Likeness)
        seen.append((batch.key.group, [(task.size, task.context) for task in batch.tasks]))
        return tensors

    stage = stage_of(run)
    await asyncio.gather(
        stage([np.ones(2)], 2, group="g", context="a"),
        stage([np.ones(1)], 1, group="g", context="b", priority=Priority.LOW),
    )
    assert seen == [("g", [(2, "a"), (1, "b")])]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "at least one input tensor"),
        ([np.array(1.0)], "at least one dimension"),
        ([np.ones(2), np.ones(4)], "equal 0th-dimension size"),
    ],
)
async def test_what_has_not_the_rows_is_refused(tensors, message):
    with pytest.raises(InvalidArgument, match=message):
        await stage_of(Identity())(tensors, 2)


async def test_an_output_without_the_rows_is_named():
    async def run(tensors: list[Array], batch: TensorBatch) -> Sequence[Array]:
        return [tensors[0], np.ones(5)]

    with pytest.raises(FailedPrecondition, match="'y1' has 5, they have 2"):
        await stage_of(run, outputs=2)([np.ones(2)], 2)


async def test_what_a_caller_does_to_its_result_reaches_nobody_else():
    stage = stage_of(Identity())
    calls = [[np.full((1, 3), place, np.float32)] for place in range(4)]
    answers = await asked(stage, calls)
    for place, (answer,) in enumerate(answers):
        assert answer.tolist() == [[place] * 3]
        answer[:] = 99
    assert [call[0][0, 0] for call in calls] == [0, 1, 2, 3]


async def test_strings_count_with_their_bytes_and_what_is_too_much_is_refused_at_once():
    stage = stage_of(Identity(), batch_timeout_micros=10**9, max_bytes=1000)
    text = np.array([b"x" * 600], object)
    first = asyncio.create_task(stage([text], 1))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="currently 608 bytes enqueued and max_enqueued_bytes is"):
        await stage([text], 1)
    with pytest.raises(ResourceExhausted, match="1208 bytes"):
        await stage([np.array([b"y" * 1200], object)], 1)
    await stage.drain()
    assert (await first)[0][0] is text[0]
    assert stage.counts().refused == 2
