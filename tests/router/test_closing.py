"""A servable that is closed leaves nothing behind: no session, no place in a queue, no thread."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardserve.batching.driver import BatchDevice
from shardserve.batching.errors import DeadlineExceeded, ServingError, Unavailable
from shardserve.batching.parameters import BatchingParameters
from shardserve.router.admitting import AdmittingServable
from shardserve.router.batched import BatchedServable
from shardserve.router.computed import ComputedServable, Spec, signature
from shardserve.router.sequences import SequenceServable
from shardserve.router.servable import RequestContext, Servable
from shardserve.router.session import StageThreads
from shardserve.router.sharded import StageBatching, load_sharded
from shardserve.router.whole import load_whole
from shardserve.shards.cut.planning import plan_model
from shardserve.shards.local import LocalChannel
from shardserve.shards.model import PlanOptions
from shardserve.shards.regions import Region
from shardserve.shards.sequences_form import SequenceEntry
from shardserve.shards.shard import Shard
from shardserve.shards.stages import Stages
from tests import stage_models
from tests.saved_models import THRESHOLD
from tests.step_models import WIDTH

BATCHING = BatchingParameters(max_batch_size=8, num_batch_threads=2)

ENCODE = {
    "step": "step",
    "state": {"h": "new_h", "c": "new_c"},
    "per_step": {"x": "x"},
    "returns": {"output": "all"},
    "batching": {"max_batch_size": 8},
}


@dataclass(frozen=True)
class Served:
    """A servable, a request for it, and what has to be gone once it is closed."""

    servable: Servable
    signature: str
    inputs: dict[str, Any]
    session: Any

    async def ask(self, deadline: float = math.inf) -> dict[str, Any]:
        outputs = list(self.servable.signatures[self.signature].outputs)
        context = RequestContext("test", deadline)
        return await self.servable.run(self.signature, self.inputs, outputs, context)


Make = Callable[[BatchDevice], Served]


@pytest.fixture
def make(
    request: pytest.FixtureRequest,
    half_plus_two_dir: Path,
    saved_model: Callable[[str], Path],
    threads: StageThreads,
) -> Make:
    """The servable of this kind, its stages on the device that is given."""
    x = {"x": np.ones(2, np.float32)}

    def whole(device: BatchDevice) -> Served:
        servable = load_whole("m", 1, half_plus_two_dir, threads)
        return Served(servable, "serving_default", x, servable._runner.session)

    def batched(device: BatchDevice) -> Served:
        inner = whole(device)
        servable = AdmittingServable(BatchedServable(inner.servable, BATCHING, device))
        return Served(servable, "serving_default", x, inner.session)

    def sequences(device: BatchDevice) -> Served:
        inner = load_whole("m", 1, saved_model("encoder"), threads)
        entries = {"encode": SequenceEntry.model_validate(ENCODE)}
        servable = SequenceServable(inner, inner, entries, threads, device)
        defaults = servable.signatures["encode"].defaults
        rows = {"x": np.ones((2, 3, WIDTH), np.float32), **defaults}
        return Served(servable, "encode", rows, inner._runner.session)

    def sharded_from(
        directory: Path, stages: Stages, inputs: dict[str, Any], device: BatchDevice
    ) -> Served:
        plan = plan_model("m", 1, directory, PlanOptions(shards=2, threshold=THRESHOLD))
        plan = replace(plan, stages=stages)
        shards = [Shard.load(plan.sources, plan.slices_of_shard(n)) for n in range(2)]
        channels = [LocalChannel(shard) for shard in shards]
        servable = load_sharded(plan, channels, threads, batching=StageBatching(device))
        return Served(servable, "serving_default", inputs, servable._runner.session)

    def sharded(device: BatchDevice) -> Served:
        inputs = {"ids": np.ones((2, 5), np.int32), "extra": np.ones((2, 3), np.float32)}
        stages = Stages(ids=BATCHING, dense=BATCHING)
        return sharded_from(saved_model("keras_embedding"), stages, inputs, device)

    def with_regions(device: BatchDevice) -> Served:
        directory = saved_model("staged")
        names = stage_models.tensors_ending(directory, "joined_1/concat", "scores_1/BiasAdd")
        region = Region("tower", (names[0],), (names[1],), BATCHING)
        stages = Stages(regions=(region,))
        return sharded_from(directory, stages, dict(stage_models.feeds(2, 0)), device)

    def calling_out(device: BatchDevice) -> Served:
        inputs = {"ids": np.arange(20).reshape(10, 2), "steps": np.array(3, np.int32)}
        return sharded_from(saved_model("mapped"), Stages(), inputs, device)

    made: dict[str, Make] = {
        "whole": whole,
        "batched": batched,
        "sequences": sequences,
        "sharded": sharded,
        "with regions": with_regions,
        "calling out": calling_out,
    }
    return made[request.param]


KINDS = ("whole", "batched", "sequences", "sharded", "with regions", "calling out")

of_every_kind = pytest.mark.parametrize("make", KINDS, indirect=True)


@contextmanager
def nothing_collected() -> Iterator[None]:
    """What is freed in here is freed because nobody knows it any more."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@of_every_kind
async def test_a_closed_servable_leaves_no_session_and_no_stage(make: Make) -> None:
    device = BatchDevice(2)
    names = {thread.name for thread in threading.enumerate()}
    with nothing_collected():
        served = make(device)
        await served.ask()
        session, servable = weakref.ref(served.session), served.servable
        del served
        await servable.close()
        assert session() is None
    assert not device.scheduler._waiting.stages
    left = {thread.name for thread in threading.enumerate()} - names
    assert all(name.startswith("uvloop") for name in left), "but the loop's own"


@of_every_kind
async def test_closing_again_does_nothing_and_asking_is_an_error(make: Make) -> None:
    served = make(BatchDevice(2))
    await served.ask()
    await served.servable.close()
    await served.servable.close()
    with pytest.raises(ServingError):
        await served.ask()


async def test_what_a_request_left_behind_is_ended(mixed_dir: Path, threads: StageThreads) -> None:
    """A request that gave up at its deadline still has a stage on a thread."""
    servable = load_whole("m", 1, mixed_dir, threads)
    warm = Served(servable, "count", {"rounds": np.array(1)}, None)
    await warm.ask()
    endless = replace(warm, inputs={"rounds": np.array(2**40)})
    with pytest.raises(DeadlineExceeded):
        await endless.ask(time.monotonic() + 0.05)
    await servable.close()
    # Its thread takes work again: were it still counting, this would never come back.
    assert await asyncio.gather(*[threads.run(lambda: 1) for _ in range(4)]) == [1] * 4


class Held:
    """A computation that a test holds up, and that notes when it is closed."""

    def __init__(self) -> None:
        floats = Spec(np.dtype(np.float32), (-1,))
        self.signatures = {"serving_default": signature({"x": floats}, {"y": floats})}
        self.began, self.go = threading.Event(), threading.Event()
        self.closed: list[bool] = []

    def compute(self, signature: str, inputs: Any, outputs: Any) -> dict[str, Any]:
        self.began.set()
        self.go.wait(30)
        return {"y": inputs["x"]}

    def close(self) -> None:
        self.closed.append(self.go.is_set())


async def test_a_computation_is_closed_once_after_the_last_that_runs(threads: StageThreads) -> None:
    held = Held()
    servable = ComputedServable("m", 1, held, threads)
    asked = Served(servable, "serving_default", {"x": np.ones(1, np.float32)}, None)
    given_up = asyncio.ensure_future(asked.ask())
    await asyncio.to_thread(held.began.wait, 30)
    given_up.cancel()
    closing = asyncio.ensure_future(servable.close())
    await asyncio.sleep(0)
    assert not held.closed
    held.go.set()
    await closing
    await servable.close()
    assert held.closed == [True]
    with pytest.raises(Unavailable, match="m has been unloaded"):
        await asked.ask()
