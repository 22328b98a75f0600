"""Loads what a router has of one version: a servable, in the way that its plan asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shardserve.cluster.serving import Runtime
from shardserve.cluster.version_plan import version_of
from shardserve.router import kinds
from shardserve.router.admitting import AdmittingServable
from shardserve.router.batched import BatchedServable
from shardserve.router.sequence_runners import Steppable
from shardserve.router.sequences import SequenceServable
from shardserve.router.servable import Servable
from shardserve.router.sharded import StageBatching, load_sharded
from shardserve.router.stage_runner import StageRunner
from shardserve.router.whole import load_whole
from shardserve.shards.batched_channel import BatchedChannel
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.messages import ShardChannel
from shardserve.shards.model import TENSORFLOW, ModelPlan
from shardserve.shards.replicas import ReplicatedChannel


def load_servable(
    plan: ModelPlan,
    channels: Sequence[ShardChannel],
    runtime: Runtime,
    remote: Mapping[str, StageRunner] | None = None,
    cut: CutModel | None = None,
) -> Servable:
    """Load the part of a plan's model that stays in the router: all of it, if nothing is cut.

    Its stages are batched as the plan says; those in `remote`, by name, are run there. `cut` is as
    for `load_sharded`. Blocks while TensorFlow loads. Raises as `load_sharded`, `load_whole` and
    the plan's kind do.
    """
    if plan.platform != TENSORFLOW:
        return kinds.load_planned(
            plan.platform, version_of(plan), runtime.threads, plan.stages, runtime.whole_requests
        )
    parallelism, dense = runtime.parallelism, plan.stages.dense
    remote = remote or {}
    if plan.is_whole and not plan.has_regions and not plan.stages.loops:
        directory = Path(plan.directory)
        whole = load_whole(
            plan.name, plan.version, directory, runtime.threads, plan.tags, parallelism
        )
        batched = whole if dense is None else BatchedServable(whole, dense, runtime.whole_requests)
        return _with_sequences(plan, _admitting(plan, batched), whole, runtime, remote)
    batching = StageBatching(runtime.device, remote)
    sharded = load_sharded(
        plan, _batched(plan, channels), runtime.threads, parallelism, batching, cut
    )
    return _with_sequences(plan, _admitting(plan, sharded), sharded, runtime, remote)


def _admitting(plan: ModelPlan, servable: Servable) -> Servable:
    """What batches refuses what would be late; what does not has no queue of its own to measure."""
    stages = plan.stages
    if stages.requests is not None:
        # On a device of its own: its batches wait for those of the stages.
        return AdmittingServable(BatchedServable(servable, stages.requests))
    return servable if stages.dense is None else AdmittingServable(servable)


def _with_sequences(
    plan: ModelPlan,
    servable: Servable,
    steps: Steppable,
    runtime: Runtime,
    remote: Mapping[str, StageRunner],
) -> Servable:
    sequences = plan.stages.sequences
    if not sequences:
        return servable
    return SequenceServable(servable, steps, sequences, runtime.threads, runtime.device, remote)


def _batched(plan: ModelPlan, channels: Sequence[ShardChannel]) -> Sequence[ShardChannel]:
    """The channels, those to other processes with queues; here there is nothing to send."""
    lookups = plan.stages.lookups
    if lookups is None:
        return channels
    return [
        BatchedChannel(one, lookups) if isinstance(one, ReplicatedChannel) else one
        for one in channels
    ]
