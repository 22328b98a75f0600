"""A sharded servable: a cut model's program, run over one TensorFlow session and the shards."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from shardserve.batching.errors import FailedPrecondition, error_of
from shardserve.router.once import OnceCache
from shardserve.router.rounds import Fanout, SplitRound, ask
from shardserve.router.servable import RequestContext, Signature
from shardserve.router.session import Parallelism, Stage, StageThreads, TensorFlowRunner
from shardserve.router.whole import signature_def_map_of, signatures_of
from shardserve.shards.cut.cut import CutModel, CutRule, cut_saved_model
from shardserve.shards.cut.program import Program, StagePlan
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.cut.scorings import AnyLookup
from shardserve.shards.messages import ShardChannel
from shardserve.shards.model import ModelPlan

Array = npt.NDArray[Any]

MAX_COMPILED_PROGRAMS = 256
#: Ids in a round, or elements to merge, up to which splitting and merging stay on the event loop:
#: handing over to a thread and back costs about what they cost then.
INLINE_IDS = 2048


def load_sharded(
    plan: ModelPlan,
    channels: Sequence[ShardChannel],
    threads: StageThreads,
    parallelism: Parallelism = Parallelism(),  # noqa: B008 (frozen)
) -> ShardedServable:
    """Load a plan's model, but for its tables: those are asked of `channels`, one for each shard.

    Blocks while TensorFlow loads; call it on a thread. Raises a `ServingError` that names the file
    or the table when the model does not match the plan.
    """
    cut = cut_saved_model(
        Path(plan.directory), CutRule(only=frozenset(plan.layout.tables)), plan.tags
    )
    runner = TensorFlowRunner(threads, _graph_of(cut), parallelism)
    _initialise(runner, cut)
    return ShardedServable(plan, cut, channels, runner)


@dataclass(frozen=True)
class _Step:
    """A stage (None where nothing has to run) and the lookups that follow it."""

    stage: Stage | None
    lookups: tuple[AnyLookup, ...]


@dataclass(frozen=True)
class _Compiled:
    program: Program
    steps: tuple[_Step, ...]
    dense: Stage | None


class ShardedServable:
    """One version of a model whose tables lie on shards. Implements `Servable`."""

    def __init__(
        self,
        plan: ModelPlan,
        cut: CutModel,
        channels: Sequence[ShardChannel],
        runner: TensorFlowRunner,
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
        self._compiled = OnceCache(runner.threads, self._compile, MAX_COMPILED_PROGRAMS)
        for name, signature in self.signatures.items():
            self._compiled.prepare((name, tuple(sorted(signature.outputs))))

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """See `Servable.run`."""
        compiled = await self._compiled.get((signature, tuple(sorted(outputs))), context)
        known = {compiled.program.inputs[alias]: value for alias, value in inputs.items()}
        work = _Work(self._fanout, known, context)
        for step in compiled.steps:
            split = await self._perform(work, step)
            work.take(split, await ask(split, self._channels, context))
        await self._finish(work, compiled.dense)
        return {alias: known[compiled.program.outputs[alias]] for alias in outputs}

    async def _perform(self, work: _Work, step: _Step) -> SplitRound:
        """Merge what came, run the ids stage, split the next round; a little of it on the loop."""
        if step.stage is None and work.is_small(step.lookups):
            return work.next_round(step)
        split: SplitRound = await self._runner.threads.run(
            lambda: work.next_round(step), work.context, None
        )
        return split

    async def _finish(self, work: _Work, dense: Stage | None) -> None:
        if dense is None and work.is_small(()):
            work.merge()
        else:
            await self._runner.threads.run(lambda: work.finish(dense), work.context, None)

    def _compile(self, key: tuple[str, tuple[str, ...]]) -> _Compiled:
        program = self._cut.program_for(*key)
        steps = tuple(_Step(self._stage(r.stage), r.lookups) for r in program.rounds)
        return _Compiled(program, steps, self._stage(program.dense))

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

    def close(self) -> None:
        """Free the session. No request may be running any more."""
        self._runner.close()


class _Work:
    """One request on its way: the tensors known, and the round that is still to be merged."""

    def __init__(self, fanout: Fanout, known: dict[str, Array], context: RequestContext) -> None:
        self.context = context
        self._fanout = fanout
        self._known = known
        self._pending: tuple[SplitRound, dict[int, Any]] | None = None

    def take(self, split: SplitRound, replies: dict[int, Any]) -> None:
        self._pending = (split, replies)

    def is_small(self, lookups: Sequence[AnyLookup]) -> bool:
        """Whether merging what came, and splitting these lookups, is too little for a thread."""
        known = [one.operands[0] for one in lookups if one.operands[0] in self._known]
        ids = sum(self._known[name].size for name in known)
        if self._pending is not None:
            ids += sum(one.size for one in self._pending[0].prepared)
        return ids <= INLINE_IDS

    def merge(self) -> None:
        if self._pending is None:
            return
        started = time.monotonic()
        split, replies = self._pending
        self._pending = None
        self._known.update(self._fanout.merge(split, replies))
        self.context.spend("merge", time.monotonic() - started)

    def next_round(self, step: _Step) -> SplitRound:
        self.merge()
        started = time.monotonic()
        self._run(step.stage)
        split = self._fanout.split(step.lookups, self._known)
        self.context.spend("ids", time.monotonic() - started)
        return split

    def finish(self, dense: Stage | None) -> None:
        self.merge()
        started = time.monotonic()
        self._run(dense)
        self.context.spend("dense", time.monotonic() - started)

    def _run(self, stage: Stage | None) -> None:
        if stage is not None:
            values = stage(*(self._known[name] for name in stage.feeds))
            self._known.update(zip(stage.fetches, values, strict=True))


def _graph_of(cut: CutModel) -> tf.Graph:
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(cut.graph_def, name="")
    return graph


def _initialise(runner: TensorFlowRunner, cut: CutModel) -> None:
    """Restore the variables that stayed whole, straight from the checkpoint; then the init op."""
    try:
        with runner.graph.as_default():
            assigned = _assign_ops(runner.graph, cut)
        for operation in assigned:
            runner.session.run(operation)
        if cut.inlined.init_op is not None:
            runner.session.run(cut.inlined.init_op, feed_dict=dict(cut.inlined.assets))
    except tf.errors.OpError as error:
        # What follows the first line is where TensorFlow's Python made the node.
        reason = error.message.partition("\n")[0]
        raise error_of(error.error_code, f"{cut.inlined.directory}: {reason}") from None


def _assign_ops(graph: tf.Graph, cut: CutModel) -> list[tf.Operation]:
    if not cut.variables:
        return []
    prefix = checkpoint_prefix(cut.inlined.directory)
    if not prefix.with_name(prefix.name + ".index").exists():
        raise FailedPrecondition(f"{prefix}.index: no such file; the model has variables")
    values = tf.raw_ops.RestoreV2(
        prefix=str(prefix),
        tensor_names=[v.key for v in cut.variables],
        shape_and_slices=[v.slice_spec for v in cut.variables],
        dtypes=[tf.dtypes.as_dtype(v.dtype) for v in cut.variables],
    )
    operations = []
    for variable, value in zip(cut.variables, values, strict=True):
        target = graph.get_tensor_by_name(f"{variable.node}:0")
        if variable.is_ref:
            operations.append(tf.raw_ops.Assign(ref=target, value=value).op)
        else:
            operations.append(tf.raw_ops.AssignVariableOp(resource=target, value=value))
    return [tf.group(*operations)]
