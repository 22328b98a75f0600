"""What a person sees while a model starts: one line for each step, one bar for each actor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from shardserve.cluster.door_config import DEFAULT_METRICS_PATH
from shardserve.cluster.example import Example
from shardserve.cluster.options import Engine, ServeOptions
from shardserve.cluster.placement import Seat
from shardserve.cluster.progress import Phase, Progress
from shardserve.cluster.stage_placement import AnySeat, StageSeat
from shardserve.cluster.versions import VersionDirectory

#: With more seats than this, one bar stands for all of them.
MAX_BARS = 16

_WORDS = {
    Phase.PLANNING: "planning: reading the graph and the checkpoint's index",
    Phase.VERIFYING: "verifying checksums: reading the tables' bytes",
    Phase.PLACING: "placing the actors",
    Phase.LOADING: "loading the actors' parts of the model",
    Phase.READY: "the actors are ready; starting the routers",
}


@contextmanager
def start_display(console: Console) -> Iterator[StartDisplay]:
    """A display that is drawn until the block ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, refresh_per_second=5) as bars:
        yield StartDisplay(bars)


class StartDisplay:
    """Draws steps and `Progress` snapshots."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._said = ""

    def step(self, text: str) -> None:
        """Say what begins now, unless it was the last thing said."""
        if text != self._said:
            self._bars.console.print(text, highlight=False)
            self._said = text

    def show(self, progress: Progress) -> None:
        """Draw a snapshot. A failure is left to who raises it."""
        if progress.phase is Phase.FAILED:
            return
        self.step(": ".join(filter(None, (_WORDS[progress.phase], progress.note))))
        for bar in bars_of(progress):
            if bar.text not in self._tasks:
                self._tasks[bar.text] = self._bars.add_task(bar.text, total=bar.total)
            self._bars.update(self._tasks[bar.text], completed=bar.done)


@dataclass(frozen=True)
class Bar:
    """Bytes done of all bytes, of what `text` names: no two bars of one start have the same."""

    text: str
    done: int
    total: int


def bars_of(progress: Progress) -> list[Bar]:
    """What to draw for a snapshot."""
    bars = []
    if progress.to_verify:
        bars.append(Bar("checksums", progress.verified, progress.to_verify))
    if progress.phase in (Phase.LOADING, Phase.READY):
        stages = sorted(seat for seat in progress.totals if isinstance(seat, StageSeat))
        shards = sorted(seat for seat in progress.totals if isinstance(seat, Seat))
        bars += _seat_bars("shard actors", shards, progress)
        bars += _seat_bars("stage actors", stages, progress)
    return bars


def _seat_bars(every: str, seats: Sequence[AnySeat], progress: Progress) -> list[Bar]:
    bars = [Bar(str(s), progress.loaded.get(s, 0), progress.totals[s]) for s in seats]
    if len(bars) <= MAX_BARS:
        return bars
    done, total = sum(bar.done for bar in bars), sum(bar.total for bar in bars)
    return [Bar(f"{len(bars)} {every}", done, total)]


def announce(
    console: Console, options: ServeOptions, found: VersionDirectory, example: Example | None
) -> None:
    """Say where the model is served now, and how to ask it."""
    for line in announcement(options, found, example):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def announcement(
    options: ServeOptions, found: VersionDirectory, example: Example | None
) -> list[str]:
    """The lines of `announce`."""
    name, doors = options.models.configs[0].name, options.doors
    path = f"/v1/models/{name}"
    lines = ["", f"{name} version {found.version} is served, until Ctrl-C:"]
    if doors.rest_port:
        lines.append(f"  REST       {_url(doors.host, doors.rest_port)}{path}")
        lines.append(f"  metrics    {_url(doors.host, doors.rest_port)}{DEFAULT_METRICS_PATH}")
    if doors.grpc_port:
        lines.append(f"  gRPC       {doors.host}:{doors.grpc_port}")
    lines += _ingress_lines(options, path)
    if example is not None and doors.rest_port:
        url = f"{_url(doors.host, doors.rest_port)}{path}:predict"
        lines += ["", "Try:", f"  {example.command(url)}"]
        if example.reply is not None:
            lines += ["The reply to expect:", f"  {example.reply}"]
    return [*lines, ""]


def _ingress_lines(options: ServeOptions, path: str) -> list[str]:
    if options.engine is not Engine.RAY:
        return []
    http, grpc = options.ray.serve_http_port, options.ray.serve_grpc_port
    return [
        f"  Ray Serve  {_url(options.doors.host, http)}{path}, gRPC {options.doors.host}:{grpc}"
    ]


def _url(host: str, port: int) -> str:
    """An address that works on this machine, whatever interfaces are listened on."""
    shown = "localhost" if host in ("0.0.0.0", "::") else host  # noqa: S104
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
