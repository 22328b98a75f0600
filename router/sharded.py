"""A sharded servable: a cut model's program, run over one TensorFlow session and the shards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from shardserve.batching.driver import BatchDevice, StageCounts
from shardserve.batching.memory import return_free_memory
from shardserve.batching.step_driver import StepCounts
from shardserve.batching.tensors import rows_of
from shardserve.router.batched import BatchedServable
from shardserve.router.call_outs import CallOuts
from shardserve.router.compiling import Compiler, Way
from shardserve.router.lifted import CannotStep, LoopRunner, RemoteLoop
from shardserve.router.once import OnceCache
from shardserve.router.regions import LocalRegion, Regions, together
from shardserve.router.repeats import Repeats
from shardserve.router.restoring import graph_of, initialise
from shardserve.router.rounds import Fanout, SplitRound, ask
from shardserve.router.servable import RequestContext, Signature
from shardserve.router.session import Parallelism, Stage, StageThreads, TensorFlowRunner
from shardserve.router.stage_runner import StageRunner
from shardserve.router.whole import signature_def_map_of, signatures_of
from shardserve.router.work import Compiled, Step, Work
from shardserve.shards.batched_channel import BatchedChannel
from shardserve.shards.cut.call_outs import REQUEST
from shardserve.shards.cut.cut import CutModel, CutRule, cut_saved_model
from shardserve.shards.cut.loops import StepLoop
from shardserve.shards.cut.regions import CutRegion, RegionCall
from shardserve.shards.local import LocalChannel
from shardserve.shards.messages import ShardChannel
from shardserve.shards.model import ModelPlan
from shardserve.shards.sequences_form import LoopEntry
from shardserve.shards.stage_groups import stage_of_loop
from shardserve.shards.stages import Stages

Array = npt.NDArray[Any]

MAX_COMPILED_PROGRAMS = 256
#: Requests of a model that can be in a stage that calls out at a time.
WAITING_THREADS = 16


def load_sharded(
    plan: ModelPlan,
    channels: Sequence[ShardChannel],
    threads: StageThreads,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 (frozen)
    batching: StageBatching | None = None,
    cut: CutModel | None = None,
) -> ShardedServable:
    """Load a plan's model, but for its tables: those are asked of `channels`, one for each shard.

    Its stages take turns with those of other models on the device of `batching`; None: it has one
    of its own. `cut` is what the plan was made of, where it was made in this process; otherwise it
    is cut here. Blocks while TensorFlow loads; call it on a thread. Raises a `ServingError` that
    names the file, the table or the region when the model does not match the plan.
    """
    batching = batching or StageBatching(BatchDevice(threads.count))
    if cut is None:
        rule = CutRule(only=frozenset(plan.layout.tables))
        cut = cut_saved_model(Path(plan.directory), rule, plan.tags, plan.stages.regions)
    cut = cut.stepping(plan.stages.loops)
    far = not any(isinstance(channel, LocalChannel) for channel in channels)
    tables = {name: source.table for name, source in plan.sources.items()}
    fanout = Fanout(plan.layout, tables, Repeats() if far else None)
    call_outs = CallOuts(cut.call_outs, fanout, channels)
    call_outs.connect(cut.graph_def)
    runner = TensorFlowRunner(threads, graph_of(cut), parallelism)
    initialise(runner, cut)
    servable = ShardedServable(plan, cut, channels, runner, batching, fanout, call_outs)
    return_free_memory()
    return servable


@dataclass(frozen=True)
class StageBatching:
    """What stages of a router's models are batched in; others run those in `remote`, by name."""

    device: BatchDevice
    remote: Mapping[str, StageRunner] = field(default_factory=dict)


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
        fanout: Fanout,
        call_outs: CallOuts,
    ) -> None:
        self.name = plan.name
        self.version = plan.version
        self.signatures: Mapping[str, Signature] = signatures_of(cut.inlined.meta_graph, plan.name)
        self.signature_def_map = signature_def_map_of(cut.inlined.meta_graph)
        self._fanout = fanout
        self._call_outs = call_outs
        self._waiting = StageThreads(WAITING_THREADS) if cut.call_outs else None
        self._cut = cut
        self._channels = tuple(channels)
        self._runner = runner
        self._batching = batching
        self._compiler = Compiler(self.name, cut, runner, batching.device, plan.stages)
        self._loops: dict[str, LoopRunner] = {}
        self._regions = self._regions_of(cut, plan.stages)
        self._compiled = OnceCache(runner.threads, self._compile, MAX_COMPILED_PROGRAMS)
        for name, signature in self.signatures.items():
            key = (name, tuple(sorted(signature.outputs)), Way.JOINED)
            self._compiled.put(key, self._compiler.signature(key))
        cut.pack()
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
        compiled = await self._compiled.get((*key, Way.JOINED), context)
        if signature in self._cut.stepped:
            try:
                return await self.walk(compiled, inputs, outputs, context)
            except CannotStep:
                compiled = await self._compiled.get((*key, Way.WHOLE_LOOPS), context)
        elif compiled.at_front and self._front is not None:
            return await self._front.run(signature, inputs, outputs, context)
        return await self.walk(compiled, inputs, outputs, context)

    async def run_unjoined(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """As `run`, of what is a batch already: its stages are not joined with others'."""
        key = (signature, tuple(sorted(outputs)), Way.UNJOINED)
        return await self.walk(await self._compiled.get(key, context), inputs, outputs, context)

    async def walk(
        self,
        compiled: Compiled,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """The outputs of a program, by alias; each of its stages joined or not on its own."""
        known = {compiled.program.inputs[alias]: value for alias, value in inputs.items()}
        steps = (*compiled.steps, compiled.dense)
        rows = rows_of(list(inputs.values())) if any(step.joined for step in steps) else 0
        caller = self._call_outs.open(context)
        try:
            work = Work(self._fanout, known, context, caller)
            for step in compiled.steps:
                split = await self._perform(work, step, rows)
                await self._ask(work, split, step)
            await self._finish(work, compiled.dense, rows)
        finally:
            if caller is not None:
                self._call_outs.close(caller)
        return {alias: known[compiled.program.outputs[alias]] for alias in outputs}

    async def walk_signature(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """As `walk`, by a signature's name."""
        key = (signature, tuple(sorted(outputs)), Way.JOINED)
        compiled = await self._compiled.get(key, context)
        return await self.walk(compiled, inputs, outputs, context)

    def stage_counts(self) -> dict[str, StageCounts]:
        """See `Servable.stage_counts`."""
        found = {f"{self.name}/{name}": counts for name, counts in self._regions.counts().items()}
        found |= self._compiler.counts()
        for shard, channel in enumerate(self._channels):
            if isinstance(channel, BatchedChannel):
                found[f"{self.name}/lookups/{shard}"] = channel.counts()
        if self._front is not None:
            found |= self._front.stage_counts()
        for name, counts in self.loop_counts().items():
            found[f"{self.name}/{stage_of_loop(name)}"] = counts.as_stage()
        return found

    def loop_counts(self) -> dict[str, StepCounts]:
        """What each loop that is stepped here has done, by its node's name."""
        return {name: loop.step_counts() for name, loop in self._loops.items()}

    def _compile(self, key: tuple[str, tuple[str, ...], Way]) -> Compiled:
        """For a request that is the first of its kind."""
        try:
            return self._compiler.signature(key)
        finally:
            self._cut.pack()

    async def _ask(self, work: Work, split: SplitRound, step: Step) -> None:
        """Lookups and regions of one round, at once."""
        if not step.regions:
            work.take(split, await ask(split, self._channels, work.context))
            return
        calls = [self._call(work, call) for call in step.regions]
        if step.lookups:
            calls.append(self._look_up(work, split))
        await together(calls)

    async def _call(self, work: Work, call: RegionCall) -> None:
        work.known.update(await self._regions.run(call, work.known, work.context))

    async def _look_up(self, work: Work, split: SplitRound) -> None:
        work.take(split, await ask(split, self._channels, work.context))

    async def _perform(self, work: Work, step: Step, rows: int) -> SplitRound:
        """Merge what came, run the ids stage, split the next round; a little of it on the loop."""
        if step.joined is not None:
            await self._merge(work)
            await step.joined(work.known, rows, work.context)
            step = replace(step, stage=None)
        if step.stage is None and work.is_small(step.lookups):
            return work.next_round(None, step.lookups)
        split: SplitRound = await self._threads_for(step.stage).run(
            lambda: work.next_round(step.stage, step.lookups), work.context, None
        )
        return split

    async def _finish(self, work: Work, dense: Step, rows: int) -> None:
        if dense.joined is not None:
            await self._merge(work)
            await dense.joined(work.known, rows, work.context)
        elif dense.stage is None:
            await self._merge(work)
        else:
            threads = self._threads_for(dense.stage)
            await threads.run(lambda: work.finish(dense.stage), work.context, None)

    def _threads_for(self, stage: Stage | None) -> StageThreads:
        """A stage that calls out mostly waits, and must not keep others from theirs."""
        if self._waiting is not None and stage is not None and REQUEST in stage.feeds:
            return self._waiting
        return self._runner.threads

    async def _merge(self, work: Work) -> None:
        if work.is_small(()):
            work.merge()
        else:
            await self._runner.threads.run(work.merge, work.context, None)

    def stage_of(
        self, signature: str, inputs: Sequence[str], outputs: Sequence[str]
    ) -> Stage | None:
        """The stage from these inputs of a signature to these outputs, by alias.

        None where it is not one stage: there are lookups, or an output is an input.
        """
        program = self._cut.program_for(signature, outputs)
        self._cut.pack()
        feeds = [program.inputs[alias] for alias in inputs]
        fetches = [program.outputs[alias] for alias in outputs]
        calls_out = REQUEST in program.dense.feeds
        if program.rounds or calls_out or not {*fetches}.isdisjoint(feeds):
            return None
        return self._runner.make_callable(feeds, fetches)

    def _regions_of(self, cut: CutModel, stages: Stages) -> Regions:
        runners: dict[str, StageRunner] = {
            name: self._batching.remote.get(name) or self._local_region(one)
            for name, one in cut.regions.items()
        }
        inputs = {n: len(one.region.inputs) for n, one in cut.regions.items()}
        loops = {
            loop.node: self._loop(loop, stages.loops[signature])
            for signature, loop in cut.stepped_loops()
        }
        inputs |= dict.fromkeys(loops, 1)
        return Regions({**runners, **loops}, inputs)

    def _loop(self, loop: StepLoop, entry: LoopEntry) -> StageRunner:
        parameters = entry.batching.parameters()
        actors = self._batching.remote.get(stage_of_loop(loop.node))
        if actors is not None:
            return RemoteLoop(loop, actors, parameters.max_batch_size)
        made = LoopRunner(loop, self._runner, parameters, self._batching.device)
        self._loops[loop.node] = made
        return made

    def _local_region(self, one: CutRegion) -> LocalRegion:
        """Runs a region here. Batches that wait for others' have slots of their own."""
        compiled = self._compiler.region(one.program)
        names = [str(number) for number in range(len(one.region.outputs))]
        device = self._batching.device
        if one.program.rounds or REQUEST in one.program.dense.feeds:
            device = BatchDevice(one.region.batching.slots)

        async def run(tensors: Sequence[Array], context: RequestContext) -> list[Array]:
            inputs = {str(number): value for number, value in enumerate(tensors)}
            found = await self.walk(compiled, inputs, names, context)
            return [found[name] for name in names]

        return LocalRegion(one.region, device, run)

    def region(self, name: str) -> StageRunner:
        """Who runs the region of this name. Raises KeyError."""
        return self._regions.runner(name)

    async def close(self) -> None:
        """See `Servable.close`."""
        if self._front is not None:
            await self._front.drain()
        await self._regions.drain()
        await self._compiler.drain()
        await self._compiled.close()
        await asyncio.to_thread(self._free)

    def _free(self) -> None:
        if self._waiting is not None:
            self._waiting.close()
        self._runner.close()


class _Walking:
    """A sharded servable as `BatchedServable` runs it: from the first stage to the last."""

    def __init__(self, servable: ShardedServable) -> None:
        self.name = servable.name
        self.version = servable.version
        self.signatures = servable.signatures
        self.signature_def_map = servable.signature_def_map
        self.run = servable.walk_signature

    def stage_counts(self) -> dict[str, StageCounts]:
        """See `Servable.stage_counts`: the servable says them itself."""
        return {}

    async def close(self) -> None:
        """See `Servable.close`: the servable closes itself."""
