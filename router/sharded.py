"""A sharded servable: a cut model's program, run over one TensorFlow session and the shards."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from shardserve.batching.driver import BatchDevice
from shardserve.batching.parameters import BatchingParameters
from shardserve.batching.step_driver import StepCounts
from shardserve.batching.tensors import rows_of
from shardserve.router.batched import BatchedServable
from shardserve.router.joined_stage import JoinedStage
from shardserve.router.lifted import CannotStep, LoopRunner
from shardserve.router.once import OnceCache
from shardserve.router.regions import LocalRegion, RegionRunner, Regions, together
from shardserve.router.restoring import graph_of, initialise
from shardserve.router.rounds import Fanout, SplitRound, ask
from shardserve.router.servable import RequestContext, Signature
from shardserve.router.session import Parallelism, Stage, StageThreads, TensorFlowRunner
from shardserve.router.whole import signature_def_map_of, signatures_of
from shardserve.shards.cut.cut import CutModel, CutRule, cut_saved_model
from shardserve.shards.cut.loops import StepLoop
from shardserve.shards.cut.program import Program, Round, StagePlan
from shardserve.shards.cut.regions import CutRegion, RegionCall
from shardserve.shards.cut.scorings import AnyLookup
from shardserve.shards.messages import ShardChannel
from shardserve.shards.model import ModelPlan

Array = npt.NDArray[Any]

MAX_COMPILED_PROGRAMS = 256
#: Stages that have a queue. Clients choose the outputs, hence the programs: it is bounded.
MAX_JOINED_STAGES = 128
#: Ids in a round, or elements to merge, up to which splitting and merging stay on the event loop:
#: handing over to a thread and back costs about what they cost then.
INLINE_IDS = 2048


def load_sharded(
    plan: ModelPlan,
    channels: Sequence[ShardChannel],
    threads: StageThreads,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 (frozen)
    batching: StageBatching | None = None,
) -> ShardedServable:
    """Load a plan's model, but for its tables: those are asked of `channels`, one for each shard.

    Its stages take turns with those of other models on the device of `batching`; None: it has one
    of its own. Blocks while TensorFlow loads; call it on a thread. Raises a `ServingError` that
    names the file, the table or the region when the model does not match the plan.
    """
    batching = batching or StageBatching(BatchDevice(threads.count))
    rule = CutRule(only=frozenset(plan.layout.tables))
    cut = cut_saved_model(Path(plan.directory), rule, plan.tags, plan.stages.regions)
    cut = cut.stepping(plan.stages.loops)
    runner = TensorFlowRunner(threads, graph_of(cut), parallelism)
    initialise(runner, cut)
    return ShardedServable(plan, cut, channels, runner, batching)


@dataclass(frozen=True)
class StageBatching:
    """What the stages of a router's models are batched in; `remote` regions are run by others."""

    device: BatchDevice
    remote: Mapping[str, RegionRunner] = field(default_factory=dict)


@dataclass(frozen=True)
class _Step:
    """A stage (None where nothing has to run), and the lookups and regions that follow it.

    `joined` where requests are joined for it.
    """

    stage: Stage | None
    joined: JoinedStage | None
    lookups: tuple[AnyLookup, ...]
    regions: tuple[RegionCall, ...]


@dataclass(frozen=True)
class _Compiled:
    """`dense` is the last step. `at_front`: its requests are to be joined before the first."""

    program: Program
    steps: tuple[_Step, ...]
    dense: _Step
    at_front: bool = False


class _Way(enum.Enum):
    """How a signature is run: with its stages joined where they may be, or every one alone."""

    JOINED = enum.auto()
    #: As it is said, but for the loops that might be stepped.
    WHOLE_LOOPS = enum.auto()
    UNJOINED = enum.auto()


class ShardedServable:
    """One version of a model whose tables lie on shards. Implements `Servable`.

    Or a whole model with regions, without tables.
    """

    def __init__(
        self,
        plan: ModelPlan,
        cut: CutModel,
        channels: Sequence[ShardChannel],
        runner: TensorFlowRunner,
        batching: StageBatching,
    ) -> None:
        self.name = plan.name
        self.version = plan.version
        self.signatures: Mapping[str, Signature] = signatures_of(cut.inlined.meta_graph)
        self.signature_def_map = signature_def_map_of(cut.inlined.meta_graph)
        tables = {name: source.table for name, source in plan.sources.items()}
        self._fanout = Fanout(plan.layout, tables)
        self._cut = cut
        self._channels = tuple(channels)
        self._runner = runner
        self._batching = batching
        self._stages = plan.stages
        self._joined = 0
        self._regions = self._regions_of(cut)
        self._compiled = OnceCache(runner.threads, self._compile, MAX_COMPILED_PROGRAMS)
        for name, signature in self.signatures.items():
            self._compiled.prepare((name, tuple(sorted(signature.outputs)), _Way.JOINED))
        dense = plan.stages.dense
        self._front = None if dense is None else BatchedServable(_Walking(self), dense)

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """See `Servable.run`; with batching, what `BatchedServable.run` raises besides."""
        key = (signature, tuple(sorted(outputs)))
        compiled = await self._compiled.get((*key, _Way.JOINED), context)
        if signature in self._cut.stepped:
            try:
                return await self.walk(compiled, inputs, outputs, context)
            except CannotStep:
                compiled = await self._compiled.get((*key, _Way.WHOLE_LOOPS), context)
        elif compiled.at_front and self._front is not None:
            return await self._front.run(signature, inputs, outputs, context)
        return await self.walk(compiled, inputs, outputs, context)

    async def walk(
        self,
        compiled: _Compiled,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """The outputs of a program, by alias; each of its stages joined or not on its own."""
        known = {compiled.program.inputs[alias]: value for alias, value in inputs.items()}
        steps = (*compiled.steps, compiled.dense)
        rows = rows_of(list(inputs.values())) if any(step.joined for step in steps) else 0
        work = _Work(self._fanout, known, context)
        for step in compiled.steps:
            split = await self._perform(work, step, rows)
            await self._ask(work, split, step)
        await self._finish(work, compiled.dense, rows)
        return {alias: known[compiled.program.outputs[alias]] for alias in outputs}

    async def run_unjoined(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """As `run`, of what is a batch already: its stages are not joined with others'."""
        key = (signature, tuple(sorted(outputs)), _Way.UNJOINED)
        return await self.walk(await self._compiled.get(key, context), inputs, outputs, context)

    async def walk_signature(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """As `walk`, by a signature's name."""
        key = (signature, tuple(sorted(outputs)), _Way.JOINED)
        compiled = await self._compiled.get(key, context)
        return await self.walk(compiled, inputs, outputs, context)

    async def _ask(self, work: _Work, split: SplitRound, step: _Step) -> None:
        """Lookups and regions of one round, at once."""
        if not step.regions:
            work.take(split, await ask(split, self._channels, work.context))
            return
        calls = [self._call(work, call) for call in step.regions]
        if step.lookups:
            calls.append(self._look_up(work, split))
        await together(calls)

    async def _call(self, work: _Work, call: RegionCall) -> None:
        work.known.update(await self._regions.run(call, work.known, work.context))

    async def _look_up(self, work: _Work, split: SplitRound) -> None:
        work.take(split, await ask(split, self._channels, work.context))

    async def _perform(self, work: _Work, step: _Step, rows: int) -> SplitRound:
        """Merge what came, run the ids stage, split the next round; a little of it on the loop."""
        if step.joined is not None:
            await self._merge(work)
            await step.joined(work.known, rows, work.context)
            step = replace(step, stage=None)
        if step.stage is None and work.is_small(step.lookups):
            return work.next_round(step)
        split: SplitRound = await self._runner.threads.run(
            lambda: work.next_round(step), work.context, None
        )
        return split

    async def _finish(self, work: _Work, dense: _Step, rows: int) -> None:
        if dense.joined is not None:
            await self._merge(work)
            await dense.joined(work.known, rows, work.context)
        elif dense.stage is None:
            await self._merge(work)
        else:
            await self._runner.threads.run(lambda: work.finish(dense.stage), work.context, None)

    async def _merge(self, work: _Work) -> None:
        if work.is_small(()):
            work.merge()
        else:
            await self._runner.threads.run(work.merge, work.context, None)

    def _compile(self, key: tuple[str, tuple[str, ...], _Way]) -> _Compiled:
        """The program of a signature, its stages joined where they may be."""
        signature, outputs, way = key
        whole_loops = way is _Way.WHOLE_LOOPS
        program = self._cut.program_for(signature, outputs, whole_loops=whole_loops)
        if way is _Way.UNJOINED:
            return self._unjoined(program)
        dense_joins = not self._cut.why_not_joined(program.dense.feeds)
        steps = tuple(self._step(r, "ids", self._ids_parameters(r.stage)) for r in program.rounds)
        last = Round(program.dense, ())
        dense = self._step(last, "dense", self._stages.dense if dense_joins else None)
        return _Compiled(program, steps, dense, at_front=not dense_joins)

    def _unjoined(self, program: Program) -> _Compiled:
        """A program, none of whose stages is joined."""
        steps = tuple(
            _Step(self._stage(r.stage), None, r.lookups, r.regions) for r in program.rounds
        )
        return _Compiled(program, steps, _Step(self._stage(program.dense), None, (), ()))

    def _step(self, part: Round, kind: str, parameters: BatchingParameters | None) -> _Step:
        stage = self._stage(part.stage)
        joined = None
        if stage is not None and parameters is not None and self._joined < MAX_JOINED_STAGES:
            self._joined += 1
            device, threads = self._batching.device, self._runner.threads
            joined = JoinedStage(device, f"{self.name}/{kind}", parameters, threads, stage, kind)
        return _Step(stage, joined, part.lookups, part.regions)

    def _ids_parameters(self, plan: StagePlan) -> BatchingParameters | None:
        if self._stages.ids is None:
            return None
        joins = not self._cut.why_not_joined((*plan.feeds, *plan.fetches))
        return self._stages.ids if joins else None

    def _stage(self, plan: StagePlan) -> Stage | None:
        return self._runner.make_callable(plan.feeds, plan.fetches) if plan.fetches else None

    def stage_of(
        self, signature: str, inputs: Sequence[str], outputs: Sequence[str]
    ) -> Stage | None:
        """The stage from these inputs of a signature to these outputs, by alias.

        None where it is not one stage: there are lookups, or an output is an input.
        """
        program = self._cut.program_for(signature, outputs)
        feeds = [program.inputs[alias] for alias in inputs]
        fetches = [program.outputs[alias] for alias in outputs]
        if program.rounds or not {*fetches}.isdisjoint(feeds):
            return None
        return self._runner.make_callable(feeds, fetches)

    def _regions_of(self, cut: CutModel) -> Regions:
        runners: dict[str, RegionRunner] = {
            name: self._batching.remote.get(name) or self._local_region(one)
            for name, one in cut.regions.items()
        }
        inputs = {n: len(one.region.inputs) for n, one in cut.regions.items()}
        self._loops = {name: self._loop(loop) for name, loop in cut.loops.loops.items()}
        inputs |= dict.fromkeys(self._loops, 1)
        return Regions({**runners, **self._loops}, inputs)

    def _loop(self, loop: StepLoop) -> LoopRunner:
        """With the parameters of the first signature that has the loop."""
        parameters = next(
            parameters
            for name, parameters in self._stages.loops.items()
            if any(loop.call.region == c.region for c in self._cut.loop_calls(name))
        )
        return LoopRunner(loop, self._runner, parameters, self._batching.device)

    def _local_region(self, one: CutRegion) -> LocalRegion:
        """Runs a region here. Batches that wait for others' have slots of their own."""
        program = one.program
        compiled = self._unjoined(program)
        names = [str(number) for number in range(len(one.region.outputs))]
        device = self._batching.device
        if program.rounds:
            device = BatchDevice(one.region.batching.num_batch_threads)

        async def run(tensors: Sequence[Array], context: RequestContext) -> list[Array]:
            inputs = {str(number): value for number, value in enumerate(tensors)}
            found = await self.walk(compiled, inputs, names, context)
            return [found[name] for name in names]

        return LocalRegion(one.region, device, run)

    def loop_counts(self) -> dict[str, StepCounts]:
        """What each loop that is stepped has done, by its node's name."""
        return {name: loop.counts() for name, loop in self._loops.items()}

    def close(self) -> None:
        """Free the session. No request may be running any more."""
        self._runner.close()


class _Walking:
    """A sharded servable as `BatchedServable` runs it: from the first stage to the last."""

    def __init__(self, servable: ShardedServable) -> None:
        self.name = servable.name
        self.version = servable.version
        self.signatures = servable.signatures
        self.signature_def_map = servable.signature_def_map
        self.run = servable.walk_signature


class _Work:
    """One request on its way: the tensors known, and the round that is still to be merged."""

    def __init__(self, fanout: Fanout, known: dict[str, Array], context: RequestContext) -> None:
        self.context = context
        self.known = known
        self._fanout = fanout
        self._pending: tuple[SplitRound, dict[int, Any]] | None = None

    def take(self, split: SplitRound, replies: dict[int, Any]) -> None:
        self._pending = (split, replies)

    def is_small(self, lookups: Sequence[AnyLookup]) -> bool:
        """Whether merging what came, and splitting these lookups, is too little for a thread."""
        known = [one.operands[0] for one in lookups if one.operands[0] in self.known]
        ids = sum(self.known[name].size for name in known)
        if self._pending is not None:
            ids += sum(one.size for one in self._pending[0].prepared)
        return ids <= INLINE_IDS

    def merge(self) -> None:
        if self._pending is None:
            return
        started = time.monotonic()
        split, replies = self._pending
        self._pending = None
        self.known.update(self._fanout.merge(split, replies))
        self.context.spend("merge", time.monotonic() - started)

    def next_round(self, step: _Step) -> SplitRound:
        self.merge()
        started = time.monotonic()
        self._run(step.stage)
        split = self._fanout.split(step.lookups, self.known)
        self.context.spend("ids", time.monotonic() - started)
        return split

    def finish(self, dense: Stage | None) -> None:
        self.merge()
        started = time.monotonic()
        self._run(dense)
        self.context.spend("dense", time.monotonic() - started)

    def _run(self, stage: Stage | None) -> None:
        if stage is not None:
            values = stage(*(self.known[name] for name in stage.feeds))
            self.known.update(zip(stage.fetches, values, strict=True))
