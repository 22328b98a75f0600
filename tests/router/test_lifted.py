"""Loops of a model that are stepped for all requests answer as TensorFlow does for each alone."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardserve.batching.errors import InvalidArgument
from shardserve.router.servable import RequestContext, Servable
from shardserve.shards.actors_form import ActorsEntry
from shardserve.shards.cut.cut import CutRule, cut_saved_model
from shardserve.shards.model import ModelPlan, PlanOptions
from shardserve.shards.sequences_form import LoopEntry, StepBatching
from tests.loop_models import LIFTED, WHOLE, WIDTH, WORDS
from tests.stepped import HERE, ON_ACTORS, PLACES, Places, Stepped
from tests.uncut import Uncut

#: The same kernels on another number of rows add in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ROWS = 8
LOOP = {"batching": {"max_batch_size": ROWS}}
#: Each kind of operand, and more than one loop: what may differ where tensors are sent.
SENT = ("lstm_with_states", "both_ways", "running_means", "masked_to_zero")


@pytest.fixture
async def serve(threads, tmp_path):
    """Serves a model whose loops are stepped at a place."""
    async with AsyncExitStack() as stack:

        async def served(place: str, model: Path, options: PlanOptions | None = None) -> Stepped:
            places = Places(place, threads, tmp_path, stack)
            return await places.serve(model, options, loops={"serving_default": LOOP})

        yield served


def requests(name: str, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(1, 4)), int(rng.integers(1, 25))) for _ in range(count)]
    if "masked" in name:
        return [rng.integers(0, WORDS, shape) * (rng.random(shape) < 0.7) for shape in shapes]
    return [rng.normal(size=(*shape, WIDTH)).astype(np.float32) for shape in shapes]


async def ask(servable: Servable, x: np.ndarray) -> dict[str, np.ndarray]:
    outputs = list(servable.signatures["serving_default"].outputs)
    context = RequestContext("test", math.inf)
    return await servable.run("serving_default", {"x": x}, outputs, context)


def check(path: Path, asked: list[np.ndarray], answers: list[dict[str, np.ndarray]]) -> None:
    alone = Uncut(path)
    for x, answer in zip(asked, answers, strict=True):
        expected = alone.answer("serving_default", {"x": x})
        assert answer.keys() == expected.keys()
        for alias, array in expected.items():
            assert answer[alias].shape == array.shape
            np.testing.assert_allclose(answer[alias], array, **CLOSE)
    alone.close()


@pytest.mark.parametrize(
    ("name", "place"), [*((n, HERE) for n in LIFTED), *((n, ON_ACTORS) for n in SENT)]
)
async def test_requests_of_many_lengths_get_what_each_gets_alone(name, place, saved_model, serve):
    stepped = await serve(place, saved_model(name))
    asked = requests(name, 12)
    answers = await asyncio.gather(*[ask(stepped.servable, x) for x in asked])
    check(saved_model(name), asked, answers)
    counts = stepped.counts()
    assert len(counts) == (2 if name in ("stacked", "both_ways") else 1)
    for one in counts.values():
        assert one.rows == sum(x.shape[0] * x.shape[1] for x in asked)
        assert one.batches < one.rows / 2


@pytest.mark.parametrize("name", WHOLE)
async def test_a_loop_that_cannot_be_stepped_stays_whole(name, saved_model, serve):
    cut = cut_saved_model(saved_model(name), CutRule(only=frozenset()))
    (reason,) = cut.stepping(["serving_default"]).loops.whole.values()
    with pytest.raises(AssertionError, match=WHOLE[name][1]):
        raise AssertionError(reason)
    stepped = await serve(HERE, saved_model(name))
    assert not stepped.counts()
    asked = requests(name, 2)
    answers = [await ask(stepped.servable, x) for x in asked]
    if name != "draws":
        check(saved_model(name), asked, answers)


def test_a_lowered_loop_stays_whole(saved_model):
    loops = cut_saved_model(saved_model("lowered"), CutRule(only=frozenset())).stepping(
        ["serving_default"]
    )
    (reason,) = loops.loops.whole.values()
    assert "lowered control flow" in reason


@pytest.mark.parametrize("place", PLACES)
async def test_what_a_step_cannot_do_the_loop_itself_does(place, saved_model, serve):
    path = saved_model("running_means")
    stepped = await serve(place, path)
    many = requests("running_means", 1)[0].repeat(ROWS + 1, axis=0)
    none = np.zeros((2, 0, WIDTH), np.float32)
    check(path, [many], [await ask(stepped.servable, many)])
    with pytest.raises(InvalidArgument):
        await ask(stepped.servable, none)
    assert not any(one.batches for one in stepped.counts().values())


async def test_what_an_actor_cannot_step_the_routers_own_loop_does(saved_model, threads, tmp_path):
    path = saved_model("running_means")
    more = LoopEntry(batching=StepBatching(max_batch_size=2 * ROWS), actors=ActorsEntry())

    def as_router(plan: ModelPlan) -> ModelPlan:
        return replace(plan, stages=replace(plan.stages, loops={"serving_default": more}))

    async with AsyncExitStack() as stack:
        places = Places(ON_ACTORS, threads, tmp_path, stack)
        loops = {"serving_default": LOOP}
        stepped = await places.serve(path, loops=loops, as_router=as_router)
        many = requests("running_means", 1)[0].repeat(ROWS + 1, axis=0)[: ROWS + 1]
        check(path, [many], [await ask(stepped.servable, many)])
        assert not any(one.batches for one in stepped.counts().values())


@pytest.mark.parametrize("place", PLACES)
async def test_a_request_whose_operands_make_no_step_gets_tensorflows_own_error(
    place, saved_model, serve
):
    stepped = await serve(place, saved_model("lstm"))
    with pytest.raises(InvalidArgument, match="Tried to stack list which only contains"):
        await ask(stepped.servable, np.zeros((2, 0, WIDTH), np.float32))


@pytest.mark.parametrize("place", PLACES)
async def test_the_tables_of_a_model_with_loops_lie_on_shards(place, saved_model, serve):
    path = saved_model("masked_words")
    stepped = await serve(place, path, PlanOptions(threshold=WORDS * WIDTH * 4))
    asked = requests("masked_words", 10, seed=2)
    check(path, asked, await asyncio.gather(*[ask(stepped.servable, x) for x in asked]))
    (counts,) = [one for name, one in stepped.counts().items() if name.startswith("loops/")]
    assert counts.batches < counts.rows / 2


def test_a_signature_that_there_is_not_is_refused_by_name(saved_model):
    cut = cut_saved_model(saved_model("lstm"), CutRule(only=frozenset()))
    with pytest.raises(InvalidArgument, match=r"loops\.encode: the model has no such signature"):
        cut.stepping(["encode"])
