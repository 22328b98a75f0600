"""Stages that stage actors run: the router sends tensors, and gets the outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from shardserve.router.servable import Array, RequestContext, Said
from shardserve.router.stage_runner import StageRunner
from shardserve.shards.model import ModelPlan
from shardserve.shards.stage_groups import stage_name
from shardserve.shards.stage_messages import StageChannel, StageRequest


class RemoteStage:
    """Runs the stage of this name on whichever actor answers. Implements `StageRunner`.

    The actor batches: requests of all routers meet there. What fails there fails here, with the
    same code and the same words. An actor that is lost costs nothing while there is another: a
    stage changes nothing, so asking twice is safe, and a sequence begins anew.
    """

    def __init__(self, name: str, actors: StageChannel) -> None:
        self._name = name
        self._actors = actors

    async def run(
        self, tensors: Sequence[Array], rows: int, context: RequestContext
    ) -> list[Array]:
        """See `StageRunner.run`. Arrays of the reply are read-only."""
        asked = time.monotonic()
        request = StageRequest(self._name, tuple(tensors), rows)
        reply = await self._actors.ask(request, context.deadline)
        passed = time.monotonic() - asked
        said = Said(f"stage {self._name}", reply.queue_seconds, reply.run_seconds)
        context.told([said], passed)
        context.spend("queue", reply.queue_seconds)
        context.spend("dense", reply.run_seconds)
        context.spend("wire", max(0.0, passed - reply.queue_seconds - reply.run_seconds))
        return list(reply.tensors)


def remote_stages(plan: ModelPlan, actors: Mapping[str, StageChannel]) -> dict[str, StageRunner]:
    """Who runs each of the plan's stages that has actors, by its name; `actors` are by group."""
    return {
        stage: RemoteStage(stage_name(plan.name, plan.version, stage), actors[group.name])
        for group in plan.stage_groups
        for stage in group.stages
    }
