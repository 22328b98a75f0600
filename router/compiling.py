"""Makes a model's programs ready to run: stages compiled, each with its queue where it has one."""

from __future__ import annotations

import enum
from dataclasses import replace

from shardserve.batching.driver import BatchDevice
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.stage import StageCounts
from shardserve.router.joined_stage import JoinedStage, StageQueue
from shardserve.router.session import Stage, TensorFlowRunner
from shardserve.router.work import Compiled, Step
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.joining import why_at_front, why_not_ids
from shardserve.shards.cut.program import Program, Round, StagePlan
from shardserve.shards.stages import Stages


class Way(enum.Enum):
    """How a signature is run: with its stages joined where they may be, or every one alone."""

    JOINED = enum.auto()
    #: As it is said, but for the loops that might be stepped.
    WHOLE_LOOPS = enum.auto()
    UNJOINED = enum.auto()


class Compiler:
    """Compiles programs of one model; its ids stages share a queue, and so do its dense stages."""

    def __init__(
        self,
        name: str,
        cut: CutModel,
        runner: TensorFlowRunner,
        device: BatchDevice,
        stages: Stages,
    ) -> None:
        self._name = name
        self._cut = cut
        self._runner = runner
        self._device = device
        self._stages = stages
        self._ids = self._queue("ids", stages.ids)
        self._dense = self._queue("dense", stages.dense)

    def signature(self, key: tuple[str, tuple[str, ...], Way]) -> Compiled:
        """The program of a signature and some of its outputs, its stages joined where they may be.

        Takes as long as TensorFlow does.
        """
        name, outputs, way = key
        whole_loops = way is Way.WHOLE_LOOPS
        program = self._cut.program_for(name, outputs, whole_loops=whole_loops)
        if way is Way.UNJOINED:
            return self.region(program)
        dense = self._stages.dense
        at_front = dense is not None and bool(why_at_front(self._cut, program, dense))
        steps = tuple(self._step(part, self._ids_queue(part.stage)) for part in program.rounds)
        last = self._step(Round(program.dense, ()), None if at_front else self._dense)
        return Compiled(program, steps, last, at_front)

    def region(self, program: Program) -> Compiled:
        """The program of a region, whose requests are joined before it."""
        steps = tuple(self._step(part, None) for part in program.rounds)
        return Compiled(program, steps, self._step(Round(program.dense, ()), None))

    def counts(self) -> dict[str, StageCounts]:
        """What the stages with a queue have done, by name."""
        return {queue.name: queue.counts() for queue in self._queues()}

    async def drain(self) -> None:
        """Accept no more in any queue; return when all that was accepted has ended."""
        for queue in self._queues():
            await queue.drain()

    def _queues(self) -> list[StageQueue]:
        return [queue for queue in (self._ids, self._dense) if queue is not None]

    def _step(self, part: Round, queue: StageQueue | None) -> Step:
        stage = self._stage(part.stage)
        joined = None if stage is None or queue is None else JoinedStage(queue, stage)
        return Step(stage, joined, part.lookups, part.regions)

    def _stage(self, plan: StagePlan) -> Stage | None:
        return self._runner.make_callable(plan.feeds, plan.fetches) if plan.fetches else None

    def _ids_queue(self, plan: StagePlan) -> StageQueue | None:
        ids = self._stages.ids
        if ids is None or why_not_ids(self._cut, plan, ids):
            return None
        return self._ids

    def _queue(self, kind: str, parameters: BatchingParameters | None) -> StageQueue | None:
        if parameters is None:
            return None
        name = f"{self._name}/{kind}"
        told = replace(parameters, num_batch_threads=self._device.slots)
        return StageQueue(self._device, name, told, self._runner.threads, kind)
