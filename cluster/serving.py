"""A router in one process, whoever started it: a servable, its handlers, and the direct doors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shardserve.batching.driver import BatchDevice
from shardserve.batching.memory import settle_memory
from shardserve.cluster.doors import doors_of, handler_options
from shardserve.cluster.options import DoorOptions
from shardserve.router.admitting import AdmittingServable
from shardserve.router.batched import BatchedServable
from shardserve.router.catalog import Catalog, Model, State, Version
from shardserve.router.handlers import Handlers
from shardserve.router.metrics import Measured, Metrics, nothing_measured
from shardserve.router.prediction import PredictionHandlers
from shardserve.router.regions import RegionRunner
from shardserve.router.rest import Rest
from shardserve.router.sequences import SequenceServable, Steppable
from shardserve.router.servable import Servable
from shardserve.router.session import Parallelism, StageThreads, start_tensorflow
from shardserve.router.sharded import StageBatching, load_sharded
from shardserve.router.whole import load_whole
from shardserve.shards.batched_channel import BatchedChannel
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.messages import ShardChannel
from shardserve.shards.model import ModelPlan
from shardserve.shards.replicas import ReplicatedChannel


def start_threads(options: DoorOptions) -> StageThreads:
    """The threads that serve, TensorFlow's among them. Call it before TensorFlow is used."""
    start_tensorflow(_parallelism(options))
    return StageThreads()


def load_servable(
    plan: ModelPlan,
    channels: Sequence[ShardChannel],
    threads: StageThreads,
    options: DoorOptions,
    remote: Mapping[str, RegionRunner] | None = None,
    cut: CutModel | None = None,
) -> Servable:
    """Load the part of a plan's model that stays in the router: all of it, if nothing is cut.

    Its stages are batched as the plan says; regions in `remote` are run there. `cut` is as
    for `load_sharded`. Blocks while TensorFlow loads. Raises as `load_sharded` and `load_whole` do.
    """
    parallelism, dense = _parallelism(options), plan.stages.dense
    device = BatchDevice(threads.count if dense is None else dense.num_batch_threads)
    if plan.is_whole and not plan.has_regions and not plan.stages.loops:
        directory = Path(plan.directory)
        whole = load_whole(plan.name, plan.version, directory, threads, plan.tags, parallelism)
        batched = whole if dense is None else BatchedServable(whole, dense, device)
        return _with_sequences(plan, _admitting(plan, batched), whole, threads, device)
    batching = StageBatching(device, remote or {})
    sharded = load_sharded(plan, _batched(plan, channels), threads, parallelism, batching, cut)
    return _with_sequences(plan, _admitting(plan, sharded), sharded, threads, device)


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
    threads: StageThreads,
    device: BatchDevice,
) -> Servable:
    sequences = plan.stages.sequences
    return SequenceServable(servable, steps, sequences, threads, device) if sequences else servable


def _batched(plan: ModelPlan, channels: Sequence[ShardChannel]) -> Sequence[ShardChannel]:
    """The channels, those to other processes with queues; here there is nothing to send."""
    lookups = plan.stages.lookups
    if lookups is None:
        return channels
    return [
        BatchedChannel(one, lookups) if isinstance(one, ReplicatedChannel) else one
        for one in channels
    ]


def _parallelism(options: DoorOptions) -> Parallelism:
    return Parallelism(options.intra_op_threads, options.inter_op_threads, options.session_config)


class Serving:
    """One model's handlers, and the doors that lead to them.

    `measured` asks the shards, for the metrics page.
    """

    def __init__(
        self,
        servable: Servable,
        threads: StageThreads,
        options: DoorOptions,
        measured: Measured = nothing_measured,
    ) -> None:
        version = Version(State.AVAILABLE, servable)
        catalog = Catalog({servable.name: Model({servable.version: version})})
        handlers = Handlers(catalog, threads, handler_options(options))
        metrics = Metrics(stages=servable.stage_counts)
        self.rest = Rest(
            handlers,
            metrics,
            options.rest_timeout,
            options.monitoring.path,
            measured,
            cors=options.cors,
            compress_from=options.compress_from,
        )
        self.prediction = PredictionHandlers(handlers, metrics)
        self._doors = doors_of(options, self.rest, self.prediction)

    async def open(self) -> None:
        """Open the doors. Raises Unavailable, naming the address, for a port that is taken."""
        settle_memory()
        for door in self._doors:
            await door.start()

    async def close(self) -> None:
        """Refuse new requests, and answer those that came in, for a few seconds at most."""
        self.rest.drain()
        for door in self._doors:
            await door.stop()
