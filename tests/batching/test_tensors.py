"""unbatch(batch(x)) is x, of every dtype."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.tensors import NotBatchable, check_rows, fold, join, rows_of, split, unfold

DTYPES = [
    *(np.dtype(t) for t in "?bBhHiIlLefdFD"),
    *(np.dtype(t) for t in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4)),
    np.dtype(object),
]

_INNER = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)


@st.composite
def _array(draw: st.DrawFn, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.hasobject:
        return draw(hnp.arrays(object, shape, elements=st.binary(max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(0, 7, shape).astype(dtype)


@st.composite
def _tasks(draw: st.DrawFn, min_rows: int = 0) -> list[list[np.ndarray]]:
    """Some tasks' tensors, as a queue puts them together: alike but for dimension 0."""
    kinds = draw(st.lists(st.tuples(st.sampled_from(DTYPES), _INNER), min_size=1, max_size=3))
    sizes = draw(st.lists(st.integers(min_rows, 4), min_size=1, max_size=5))
    return [[draw(_array(dtype, (rows, *inner))) for dtype, inner in kinds] for rows in sizes]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tolist() == b.tolist()


def _sizes(tasks: list[list[np.ndarray]]) -> list[int]:
    return [rows_of(tensors) for tensors in tasks]


def _split(tensors: list[np.ndarray], sizes: list[int]) -> list[tuple[np.ndarray, ...]]:
    """By task, as they were joined."""
    return list(zip(*[split(tensor, sizes) for tensor in tensors], strict=True))


@given(_tasks())
@settings(max_examples=200)
def test_unbatching_a_batch_gives_each_task_its_tensors_back(tasks):
    sizes = _sizes(tasks)
    for task, back in zip(tasks, _split(join(tasks), sizes), strict=True):
        assert all(_same(a, b) for a, b in zip(task, back, strict=True))


@given(_tasks(min_rows=1), st.integers(1, 5))
def test_rows_added_repeat_the_first_of_the_last_task_and_are_dropped_again(tasks, more):
    sizes = _sizes(tasks)
    joined = join(tasks, more)
    for tensor, last in zip(joined, tasks[-1], strict=True):
        assert _same(tensor[-more:], np.repeat(last[:1], more, axis=0))
    for task, back in zip(tasks, _split(joined, sizes), strict=True):
        assert all(_same(a, b) for a, b in zip(task, back, strict=True))


def test_added_rows_repeat_the_last_task_that_has_any():
    empty, one = np.zeros((0, 2)), np.array([[1.0, 2.0]])
    assert join([[one], [empty]], 1)[0].tolist() == [[1, 2], [1, 2]]


def test_a_task_alone_is_not_copied():
    tensor = np.zeros((3, 2))
    assert join([[tensor]])[0] is tensor


@given(st.data(), st.sampled_from(DTYPES), st.integers(0, 2))
def test_padded_tensors_keep_their_elements_and_are_filled_with_their_first(data, dtype, rank):
    shapes = data.draw(
        st.lists(st.tuples(st.integers(1, 3), *[st.integers(1, 3)] * rank), min_size=1, max_size=4)
    )
    tasks = [[data.draw(_array(dtype, shape))] for shape in shapes]
    sizes = _sizes(tasks)
    (joined,) = join(tasks, pad_inner=True)
    assert joined.shape[1:] == tuple(max(sizes) for sizes in zip(*shapes, strict=True))[1:]
    for (task,), back in zip(tasks, split(joined, sizes), strict=True):
        kept = tuple(slice(size) for size in task.shape)
        assert _same(back[kept], task)
        outside = np.ones(back.shape, bool)
        outside[kept] = False
        assert set(back[outside].tolist()) <= {task.flat[0]}


def test_a_tensor_without_elements_cannot_grow():
    with pytest.raises(InvalidArgument, match="Got empty tensor in batch of non-empty tensors"):
        join([[np.ones((1, 2))], [np.ones((1, 0))]], pad_inner=True)


def test_arrays_of_another_dtype_do_not_change_everybodys():
    with pytest.raises(TypeError):
        join([[np.ones(1, np.float32)], [np.ones(1, np.float64)]])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "Batching Run() must have at least one input tensor"),
        (
            [np.ones(2), np.array(1.0)],
            "Batching Run() input tensors must have at least one dimension",
        ),
        (
            [np.ones(2), np.ones(3)],
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
    ],
)
def test_tensors_must_agree_in_dimension_0(tensors, message):
    with pytest.raises(InvalidArgument) as raised:
        rows_of(tensors)
    assert raised.value.message == message


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.array(1.0), "Batched output tensor has 0 dimensions: 'y'"),
        (np.ones(4), "Batched output tensor's 0th dimension does not equal the sum.*'y' has 4"),
    ],
)
def test_outputs_must_have_the_batchs_rows(output, message):
    with pytest.raises(NotBatchable, match=message):
        check_rows("y", output, 3)


@given(st.integers(0, 4), st.integers(1, 3))
def test_a_row_may_be_several_lines(rows, lines):
    tensor = np.arange(rows * lines * 2).reshape(rows * lines, 2)
    folded = fold(tensor, lines)
    assert len(folded) == rows
    assert _same(unfold(folded, lines), tensor)
