"""The local engine: router and shards in this process, without Ray; the direct doors only."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import uvloop
from rich.console import Console

from shardserve.cluster import progress
from shardserve.cluster.console import StartDisplay, announce, start_display
from shardserve.cluster.example import find_example
from shardserve.cluster.options import ServeOptions, ports_by_flag
from shardserve.cluster.placement import Seat, seats
from shardserve.cluster.ports import check_free
from shardserve.cluster.progress import Progress
from shardserve.cluster.serving import Serving, load_servable, start_threads
from shardserve.cluster.shard_measures import labelled
from shardserve.cluster.stop_signals import SIGNALS, Stopped, StopSignals
from shardserve.cluster.versions import VersionDirectory, latest
from shardserve.router import logs
from shardserve.shards.cut.planning import cut_and_plan
from shardserve.shards.device_loss import DeviceLost, UntilLost
from shardserve.shards.local import LocalChannel
from shardserve.shards.measures import Measure
from shardserve.shards.model import ModelPlan
from shardserve.shards.shard import Shard

logger = logging.getLogger(__name__)


def serve(options: ServeOptions, console: Console) -> None:
    """Serve the latest version until a signal asks to stop.

    A layout's replicas are not made: here they would fail together. Raises a `ServingError` when
    the model cannot be served.
    """
    logs.configure()
    found = latest(options.models.configs[0].base_path)
    example = find_example(found.path, options.example)
    check_free(options.doors.host, ports_by_flag(options))
    stop = StopSignals()
    try:
        with start_display(console) as display:
            serving = _load(found, options, display, stop)
        uvloop.run(_serve(serving, lambda: announce(console, options, found, example)))
    except Stopped:
        pass
    console.print("stopped")


def _load(
    found: VersionDirectory, options: ServeOptions, display: StartDisplay, stop: StopSignals
) -> Serving:
    loading = _Loading(display, stop)
    threads = start_threads(options.doors)
    wanted = replace(options.defaults.plan, replicas=1)
    cut, plan = cut_and_plan(
        options.models.configs[0].name, found.version, found.path, wanted, loading.verified
    )
    stop.check()
    for warning in warnings_of(plan):
        display.step(warning)
    plan = replace(plan, stage_groups=())
    pool = ThreadPoolExecutor(thread_name_prefix="lookup")
    shards = loading.shards_of(plan)
    channels = [LocalChannel(UntilLost(shard, end_process), pool) for shard in shards.values()]
    servable = load_servable(plan, channels, threads, options.doors, cut=cut)
    stop.check()
    return Serving(servable, threads, options.doors, partial(_measures, plan.name, shards))


def end_process(error: DeviceLost) -> None:
    """End the process: whoever watches over it can start another, which may have a GPU again."""
    logger.critical("%s; the process ends", error.message)
    os._exit(1)


async def _measures(model: str, shards: Mapping[Seat, Shard]) -> Sequence[Measure]:
    """What the shards tell of themselves, as the Ray engine's page has it."""
    return labelled(model, {seat: shard.measures() for seat, shard in shards.items()})


def warnings_of(plan: ModelPlan) -> list[str]:
    """What this engine does otherwise than it was asked to."""
    return [
        f"warning: region {region} runs in this process: it has actors only with --engine=ray"
        for group in plan.stage_groups
        for region in group.regions
    ]


class _Loading:
    """Loads the shards one after the other (each reads in parallel), and shows how far it is."""

    def __init__(self, display: StartDisplay, stop: StopSignals) -> None:
        self._display = display
        self._stop = stop
        self._progress = Progress(0)
        display.show(self._progress)

    def verified(self, nbytes: int, total: int) -> None:
        """So many bytes more have the right checksum. A signal ends the planning here."""
        self._stop.check()
        self._progress = progress.verified(self._progress, nbytes, total)
        self._display.show(self._progress)

    def shards_of(self, plan: ModelPlan) -> dict[Seat, Shard]:
        self._progress = progress.loading(progress.placing(self._progress, plan, ""))
        return {seat: self._load(plan, seat) for seat in seats(plan.layout)}

    def _load(self, plan: ModelPlan, seat: Seat) -> Shard:
        slices = plan.slices_of_shard(seat.shard)
        cache = plan.layout.cache_of_shard(seat.shard)
        return Shard.load(plan.sources, slices, partial(self._came, seat), cache)

    def _came(self, seat: Seat, nbytes: int) -> None:
        """So many bytes more. A signal ends the loading here."""
        self._stop.check()
        so_far = self._progress.loaded.get(seat, 0)
        self._progress = progress.loaded(self._progress, seat, so_far + nbytes)
        self._display.show(self._progress)


async def _serve(serving: Serving, opened: Callable[[], None]) -> None:
    """Open the doors, say so, and close them when a signal comes."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    await serving.open()
    opened()
    await stopping.wait()
    await serving.close()
