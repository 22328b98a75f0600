"""A servable that refuses what it could not answer in time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from shardserve.batching.errors import DeadlineExceeded, InvalidArgument, Unavailable
from shardserve.batching.stage import StageCounts
from shardserve.router.admitting import AdmittingServable
from shardserve.router.servable import Array, RequestContext, Signature, TensorInfo

X = {"x": np.zeros(1, np.float32)}


class Held:
    """Answers when it is told to, or raises what it is told to."""

    name = "m"
    version = 1
    signature_def_map = b""

    def __init__(self) -> None:
        info = TensorInfo("x:0", 1, (-1,))
        self.signatures = {"s": Signature("", {"x": info}, {"y": info})}
        self.replies: list[asyncio.Future[None]] = []

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        reply = asyncio.get_running_loop().create_future()
        self.replies.append(reply)
        await reply
        return {"y": inputs["x"]}

    def stage_counts(self) -> dict[str, StageCounts]:
        return {}


async def begun(servable: AdmittingServable, held: Held, seconds: float) -> asyncio.Task:
    """A request that has come to where it is held."""
    context = RequestContext("r", time.monotonic() + seconds)
    before = len(held.replies)
    task = asyncio.ensure_future(servable.run("s", X, ("y",), context))
    while len(held.replies) == before and not task.done():  # noqa: ASYNC110 (a turn is enough)
        await asyncio.sleep(0)
    return task


async def overloaded() -> tuple[AdmittingServable, Held, asyncio.Task]:
    """One at which requests took all of the time they had, with one under way."""
    held = Held()
    servable = AdmittingServable(held)
    for _ in range(3):
        late = await begun(servable, held, 60.0)
        held.replies[-1].set_exception(DeadlineExceeded("late"))
        with pytest.raises(DeadlineExceeded):
            await late
    return servable, held, await begun(servable, held, 60.0)


async def test_what_would_be_late_is_refused_at_once_and_counted() -> None:
    servable, held, under_way = await overloaded()
    now = time.monotonic()
    with pytest.raises(Unavailable, match="overloaded"):
        servable.admit(now + 1e-9)
    with pytest.raises(Unavailable, match="overloaded"):
        await servable.run("s", X, ("y",), RequestContext("r", now + 1e-9))
    assert servable.stage_counts()["m/admission"].refused == 2
    held.replies[-1].set_result(None)
    assert (await under_way)["y"] is X["x"]


async def test_without_a_deadline_everything_is_admitted() -> None:
    servable, held, under_way = await overloaded()
    servable.admit(math.inf)
    held.replies[-1].set_result(None)
    await under_way


async def test_requests_that_fail_for_their_own_fault_say_nothing_of_the_pace() -> None:
    held = Held()
    servable = AdmittingServable(held)
    bad = await begun(servable, held, 60.0)
    held.replies[-1].set_exception(InvalidArgument("bad"))
    with pytest.raises(InvalidArgument):
        await bad
    under_way = await begun(servable, held, 60.0)
    servable.admit(time.monotonic() + 1e-9)
    held.replies[-1].set_result(None)
    await under_way
