"""Requests that run together get the answers they would have got alone."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import types_pb2

from shardserve.batching.errors import (
    FailedPrecondition,
    InvalidArgument,
    ServingError,
    Unavailable,
)
from shardserve.batching.parameters import BatchingParameters
from shardserve.router.batched import BatchedServable
from shardserve.router.servable import Array, RequestContext, Servable, Signature, TensorInfo
from shardserve.router.session import StageThreads
from shardserve.router.tensor_types import BY_NUMPY, STRING
from shardserve.router.whole import load_whole

#: What comes at once runs together, and so does what comes while that runs.
ONE_AT_A_TIME = BatchingParameters(max_batch_size=100, num_batch_threads=1)

FLOAT = types_pb2.DT_FLOAT


class Echo:
    """A `Servable` whose outputs are its inputs, and "scalar", which nothing can batch.

    What it was called with is in `calls`. A negative first element of "a" is refused.
    """

    name = "echo"
    version = 1
    signature_def_map = b""

    def __init__(self) -> None:
        infos = {alias: TensorInfo(f"{alias}:0", FLOAT, None) for alias in ("a", "b")}
        outputs = infos | {"scalar": TensorInfo("scalar:0", FLOAT, ())}
        self.signatures: Mapping[str, Signature] = {
            "one": Signature("", {"a": infos["a"]}, outputs),
            "two": Signature("", infos, outputs),
        }
        self.calls: list[Mapping[str, Array]] = []
        self.contexts: list[RequestContext] = []

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        self.calls.append(inputs)
        self.contexts.append(context)
        await asyncio.sleep(0)
        context.spend("dense", 0.5)
        if inputs["a"].dtype == np.float32 and np.any(inputs["a"] < 0):
            raise InvalidArgument("negative")
        known = {**inputs, "scalar": np.array(1.0)}
        return {alias: known[alias] for alias in outputs}

    @property
    def rows(self) -> list[int]:
        return [len(inputs["a"]) for inputs in self.calls]


def context(deadline: float = math.inf) -> RequestContext:
    return RequestContext("r", deadline)


def floats(*shape: int, value: float = 1.0) -> Array:
    return np.full(shape, value, np.float32)


async def ask(
    servable: Servable, requests: Sequence[Mapping[str, Array]], signature: str = "one"
) -> list[dict[str, Array] | BaseException]:
    """All at once; each for the outputs that are its inputs."""
    return await asyncio.gather(
        *[servable.run(signature, inputs, sorted(inputs), context()) for inputs in requests],
        return_exceptions=True,
    )


@st.composite
def _requests(draw: st.DrawFn) -> list[dict[str, Array]]:
    """Of every dtype a request may carry; some alike, some not."""
    dtypes = st.sampled_from(sorted(BY_NUMPY, key=str))
    kinds = draw(st.lists(st.tuples(dtypes, hnp.array_shapes(max_dims=2, max_side=2)), min_size=1))
    requests = []
    for number in range(draw(st.integers(1, 6))):
        dtype, inner = draw(st.sampled_from(kinds))
        shape = (draw(st.integers(0, 3)), *inner)
        values = np.arange(number, number + math.prod(shape)).reshape(shape)
        if dtype == STRING.numpy:
            value = np.array([b"%d" % v for v in values.flat], object).reshape(shape)
        else:
            value = (values % 8).astype(dtype)
        requests.append({"a": value})
    return requests


@given(_requests(), st.sampled_from([(), (4, 12, 50)]))
@settings(deadline=None)
def test_every_request_gets_its_own_rows_back_in_every_dtype(requests, allowed):
    parameters = BatchingParameters(50, allowed_batch_sizes=allowed, num_batch_threads=1)
    echo = Echo()
    answers = asyncio.run(ask(BatchedServable(echo, parameters), requests))
    for request, answer in zip(requests, answers, strict=True):
        assert answer["a"].dtype == request["a"].dtype
        assert answer["a"].shape == request["a"].shape
        assert answer["a"].tolist() == request["a"].tolist()
    assert not allowed or set(echo.rows) <= {0, *allowed}


async def test_a_request_alone_runs_as_it_is():
    echo = Echo()
    inputs, own = {"a": floats(2)}, context()
    await BatchedServable(echo, ONE_AT_A_TIME).run("one", inputs, ["a"], own)
    assert echo.calls[0]["a"] is inputs["a"]
    assert echo.contexts[0] is own


async def test_only_requests_that_are_alike_share_a_batch():
    echo = Echo()
    batched = BatchedServable(echo, ONE_AT_A_TIME)
    like = {"a": floats(1, 3)}
    await ask(batched, [like, like, {"a": floats(1, 4)}, {"a": like["a"].astype("f8")}, like])
    assert echo.rows == [3, 1, 1]
    await asyncio.gather(
        *[batched.run("one", like, outputs, context()) for outputs in (["a"], ["a"], [])],
        batched.run("two", like | {"b": floats(1)}, ["a"], context()),
        batched.run("one", like, ["a"], context()),
    )
    assert echo.rows[3:] == [3, 1, 1]


async def test_requests_of_several_lengths_share_a_batch_if_padding_is_asked_for():
    echo = Echo()
    padding = BatchingParameters(pad_variable_length_inputs=True, num_batch_threads=1)
    requests = [{"a": floats(1, 3)}, {"a": floats(1, 2, value=7)}, {"a": floats(2, 3)}]
    answers = await ask(BatchedServable(echo, padding), requests)
    assert echo.rows == [4]
    assert [answer["a"].tolist() for answer in answers] == [[[1] * 3], [[7] * 3], [[1] * 3] * 2]


async def test_a_batch_has_the_latest_deadline_and_gives_its_times_to_each_request():
    echo = Echo()
    batched = BatchedServable(echo, ONE_AT_A_TIME)
    soon = time.monotonic() + 100
    contexts = [context(soon), context(soon + 1), context(soon + 2), context(soon + 1)]
    await asyncio.gather(*[batched.run("one", {"a": floats(1)}, ["a"], c) for c in contexts])
    assert [c.deadline for c in echo.contexts] == [soon + 2]
    assert echo.contexts[0].request_id == "r+3"
    for own in contexts:
        assert own.seconds.keys() == {"queue", "dense"}
        assert own.seconds["dense"] == 0.5
        assert own.seconds["queue"] >= 0


async def test_a_bad_request_does_not_fail_its_mates():
    echo = Echo()
    requests = [{"a": floats(2, value=value)} for value in (1, 2, 3, -1, 4)]
    answers = await ask(BatchedServable(echo, ONE_AT_A_TIME), requests)
    assert isinstance(answers.pop(3), InvalidArgument)
    assert [answer["a"].tolist() for answer in answers] == [[1, 1], [2, 2], [3, 3], [4, 4]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": floats(), "b": floats(1)}, "input tensors must have at least one dimension"),
        ({"a": floats(2), "b": floats(1)}, "input tensors must have equal 0th-dimension size"),
        (
            {"a": floats(101), "b": floats(101)},
            "Task size 101 is larger than maximum input batch size 100",
        ),
    ],
)
async def test_what_cannot_be_batched_is_refused_before_it_joins(inputs, message):
    echo = Echo()
    (error,) = await ask(BatchedServable(echo, ONE_AT_A_TIME), [inputs], "two")
    assert isinstance(error, InvalidArgument)
    assert error.message.endswith(message)
    assert echo.calls == []


async def test_an_output_without_the_batchs_rows_is_the_models_fault_and_not_tried_again():
    echo = Echo()
    batched = BatchedServable(echo, ONE_AT_A_TIME)
    errors = await asyncio.gather(
        *[batched.run("one", {"a": floats(1)}, ["scalar"], context()) for _ in range(4)],
        return_exceptions=True,
    )
    assert {type(error) for error in errors} == {FailedPrecondition}
    assert errors[0].message == "Batched output tensor has 0 dimensions: 'scalar'"
    assert echo.rows == [4]


async def test_a_cancelled_request_leaves_its_batch_and_a_drain_answers_the_rest():
    echo = Echo()
    batched = BatchedServable(echo, BatchingParameters(100, batch_timeout_micros=10**9))
    requests = [
        asyncio.create_task(batched.run("one", {"a": floats(1)}, ["a"], context()))
        for _ in range(4)
    ]
    await asyncio.sleep(0)
    requests[2].cancel()
    await asyncio.sleep(0)
    await batched.drain()
    with pytest.raises(Unavailable):
        await batched.run("one", {"a": floats(1)}, ["a"], context())
    await asyncio.wait(requests)
    assert [request.cancelled() for request in requests] == [False, False, True, False]
    assert echo.rows == [3]


class _Model(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = tf.Variable(np.arange(20, dtype=np.float32).reshape(10, 2))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.int64, name="ids"),
            tf.TensorSpec([None], tf.string, name="words"),
        ]
    )
    def __call__(self, ids: tf.Tensor, words: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.gather(self.table, ids)
        return {"sums": tf.reduce_sum(rows, axis=1), "words": tf.strings.upper(words)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batched")
    module = _Model()
    tf.saved_model.save(module, str(path), signatures=module.__call__)
    return path


async def _answers(servable: Servable, requests: Sequence[Mapping[str, Array]]) -> list[object]:
    answers = await asyncio.gather(
        *[
            servable.run("serving_default", inputs, ["sums", "words"], context())
            for inputs in requests
        ],
        return_exceptions=True,
    )
    return [
        (a.code, a.message) if isinstance(a, ServingError) else {k: a[k].tolist() for k in a}
        for a in answers
    ]


def test_a_saved_model_answers_in_batches_as_it_does_one_by_one(model):
    rng = np.random.default_rng(0)
    requests = []
    for rows in rng.integers(1, 4, 40):
        ids = rng.integers(0, 10, (rows, rng.integers(1, 3)))
        words = np.array([b"w%d" % n for n in rng.integers(0, 99, rows)], object)
        requests.append({"ids": ids, "words": words})
    for culprit in (7, 23):
        requests[culprit]["ids"][-1, -1] = 10 + culprit
    threads = StageThreads(2)
    try:
        alone = load_whole("m", 1, model, threads)
        batched = BatchedServable(alone, ONE_AT_A_TIME)
        expected = [asyncio.run(_answers(alone, [request]))[0] for request in requests]
        assert asyncio.run(_answers(batched, requests)) == expected
    finally:
        threads.close()
    refused = [place for place, answer in enumerate(expected) if isinstance(answer, tuple)]
    assert refused == [7, 23]
