"""What a person sees while models start: one line for each step, one bar for each actor."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from shardserve.cluster.example import Example
from shardserve.cluster.options import Engine, ServeOptions
from shardserve.cluster.placement import Seat
from shardserve.cluster.progress import Phase, Progress, Start
from shardserve.cluster.serve_ingress import ServeIngress
from shardserve.cluster.stage_placement import AnySeat, StageSeat
from shardserve.cluster.versions import VersionId
from shardserve.router.lasting import Lasting

#: With more seats than this, one bar stands for all of them.
MAX_BARS = 16

_PLAN_WORDS = {
    Phase.PLANNING: "planning: reading the graph and the checkpoint's index",
    Phase.VERIFYING: "verifying checksums: reading the tables' bytes",
}
#: By engine: one process has neither actors nor routers to speak of.
_WORDS = {
    Engine.RAY: {
        **_PLAN_WORDS,
        Phase.PLACING: "placing the actors",
        Phase.LOADING: "loading the actors' parts of the model",
        Phase.READY: "the actors are ready; the routers load what is theirs",
    },
    Engine.LOCAL: {
        **_PLAN_WORDS,
        Phase.PLACING: "loading the model",
        Phase.LOADING: "loading the model",
        Phase.READY: "the model is loaded",
    },
}


def standard_error() -> Console:
    """The console of who starts a server, who may close the terminal before the server ends."""
    stream = sys.stderr
    return Console(file=cast("TextIO", Lasting(lambda: stream)))


def say(console: Console, line: str) -> None:
    """Write a line as it is, however wide."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def start_display(console: Console, engine: Engine) -> Iterator[StartDisplay]:
    """A display that is drawn until the block ends. On a terminal, logs are written above it.

    The console is to have a file of its own, as that of `standard_error`.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeElapsedColumn(),
    )
    bars = Bars(*columns, console=console, refresh_per_second=5, redirect_stderr=False)
    logs = redirect_stderr(_Above(console)) if console.is_terminal else nullcontext()
    with bars, logs:
        yield StartDisplay(bars, engine)


class _Above(io.TextIOBase):
    """Standard error while bars are drawn: whole lines, which Rich itself would wrap."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            say(self._console, line)
        return len(text)


class StartDisplay:
    """Draws steps and `Start` snapshots."""

    def __init__(self, bars: Bars, engine: Engine) -> None:
        self._bars = bars
        self._engine = engine
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}

    def step(self, text: str, of: str = "") -> None:
        """Say what begins now, unless it was the last thing said of the same."""
        if text != self._said.get(of):
            say(self._bars.console, text)
            self._said[of] = text

    def warn(self, text: str) -> None:
        """Say it, if it has not been said before."""
        self.step(f"warning: {text}", text)

    def show(self, start: Start) -> None:
        """Draw a snapshot. A failure is left to who raises it."""
        for warning in start.warnings:
            self.warn(warning)
        for line in lines_of(start, self._engine):
            self.step(line.text, line.of)
        for bar in start_bars(start):
            if bar.text not in self._tasks:
                self._tasks[bar.text] = self._bars.add_task(bar.text, total=bar.total)
            self._bars.update(self._tasks[bar.text], completed=bar.done)


@dataclass(frozen=True)
class Line:
    """What to say of a version, or of the whole start."""

    text: str
    of: str = ""


def lines_of(start: Start, engine: Engine) -> list[Line]:
    """What to say of a snapshot, in which version names stand where there are several."""
    lines = [
        Line(_named(version, start) + _step(progress, engine), str(version))
        for version, progress in start.versions.items()
    ]
    if start.is_settled and not start.is_routed:
        lines.append(Line("the models are ready; the routers are starting"))
    return lines


def start_bars(start: Start) -> list[Bar]:
    """What to draw for a snapshot."""
    return [
        Bar(_named(version, start) + bar.text, bar.done, bar.total)
        for version, progress in start.versions.items()
        for bar in bars_of(progress)
    ]


def _step(progress: Progress, engine: Engine) -> str:
    return ": ".join(filter(None, (_WORDS[engine][progress.phase], progress.note)))


def _named(version: VersionId, start: Start) -> str:
    return f"{version}: " if len(start.versions) > 1 else ""


@dataclass(frozen=True)
class Bar:
    """Bytes done of all bytes, of what `text` names: no two bars of one start have the same."""

    text: str
    done: int
    total: int


def bars_of(progress: Progress) -> list[Bar]:
    """What to draw for one version."""
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


@dataclass(frozen=True)
class Served:
    """A model that is served, and its versions that answer."""

    name: str
    versions: tuple[int, ...]

    def __str__(self) -> str:
        word = "version" if len(self.versions) == 1 else "versions"
        return f"{self.name} {word} {', '.join(map(str, self.versions))}"


def announce(
    console: Console,
    options: ServeOptions,
    served: Sequence[Served],
    example: Example | None,
    ingress: ServeIngress = ServeIngress(),  # noqa: B008 (frozen)
) -> None:
    """Say where the models are served now, and how to ask them."""
    for line in announcement(options, served, example, ingress):
        say(console, line)


def announcement(
    options: ServeOptions,
    served: Sequence[Served],
    example: Example | None,
    ingress: ServeIngress = ServeIngress(),  # noqa: B008 (frozen)
) -> list[str]:
    """The lines of `announce`. The example is of the only model there is."""
    doors = options.doors
    if len(served) == 1:
        path = f"/v1/models/{served[0].name}"
        lines = ["", f"{served[0]} is served, until Ctrl-C:"]
    else:
        path = "/v1/models/NAME"
        lines = ["", f"{len(served)} models are served, until Ctrl-C:"]
        lines += [f"  {one}" for one in served]
    if doors.rest_port:
        rest = _url(doors.host, doors.rest_port, is_secure=doors.tls is not None)
        lines.append(f"  REST       {rest}{path}")
        lines.append(f"  metrics    {rest}{doors.monitoring.path}")
    if doors.grpc_port:
        lines.append(f"  gRPC       {_shown(doors.host)}:{doors.grpc_port}")
    if doors.grpc_socket:
        lines.append(f"  gRPC       unix:{doors.grpc_socket}")
    lines += _ingress_lines(ingress, path)
    if example is not None and doors.rest_port:
        lines += ["", "Try:", f"  {example.command(f'{rest}{path}:predict')}"]
        if example.reply is not None:
            lines += ["The reply to expect:", f"  {example.reply}"]
    return [*options.opened, *lines, ""]


def _ingress_lines(ingress: ServeIngress, path: str) -> list[str]:
    if not ingress.http_port:
        return []
    host, grpc = ingress.host, ingress.grpc_port
    more = f", gRPC {_shown(host)}:{grpc}" if grpc else ""
    return [f"  Ray Serve  {_url(host, ingress.http_port)}{path}{more}"]


def _url(host: str, port: int, *, is_secure: bool = False) -> str:
    return f"{'https' if is_secure else 'http'}://{_shown(host)}:{port}"


def _shown(host: str) -> str:
    """A host that works on this machine, whatever interfaces are listened on."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104
        return "localhost"
    return f"[{host}]" if ":" in host else host
