from __future__ import annotations

import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from shardserve.cluster.console import (
    MAX_BARS,
    Bar,
    Line,
    Served,
    announcement,
    bars_of,
    lines_of,
    say,
    standard_error,
    start_bars,
    start_display,
)
from shardserve.cluster.door_config import DEFAULT_METRICS_PATH
from shardserve.cluster.example import Example
from shardserve.cluster.model_config import ModelConfig
from shardserve.cluster.options import DoorOptions, Engine, Models, ServeOptions
from shardserve.cluster.placement import Seat
from shardserve.cluster.progress import Phase, Progress, Start, verified
from shardserve.cluster.serve_ingress import ServeIngress
from shardserve.cluster.stage_placement import StageSeat
from shardserve.cluster.versions import VersionId
from shardserve.router.rest import MONITORING_PATH

OPTIONS = ServeOptions(
    Models((ModelConfig("dlrm", Path("/models/dlrm")),)), doors=DoorOptions(rest_port=8501)
)
SERVED = [Served("dlrm", (7,))]
INGRESS = ServeIngress("127.0.0.1", 8000, 9000)


def test_each_seat_has_a_bar() -> None:
    seats = {Seat(0, 0): 100, Seat(1, 0): 50}

    progress = Progress(Phase.LOADING, totals=seats, loaded={Seat(1, 0): 20})
    assert bars_of(progress) == [
        Bar("shard 0 replica 0", 0, 100),
        Bar("shard 1 replica 0", 20, 50),
    ]


def test_many_seats_share_one_bar() -> None:
    seats = {Seat(shard, 0): 10 for shard in range(MAX_BARS + 1)}
    loaded = {Seat(0, 0): 10, Seat(3, 0): 5}

    assert bars_of(Progress(Phase.LOADING, totals=seats, loaded=loaded)) == [
        Bar(f"{MAX_BARS + 1} shard actors", 15, 10 * (MAX_BARS + 1))
    ]


def test_stage_actors_have_bars_after_the_shards() -> None:
    totals = {StageSeat("tower", 0): 40, Seat(0, 0): 100, StageSeat("clean", 0): 0}

    assert [bar.text for bar in bars_of(Progress(Phase.LOADING, totals=totals))] == [
        "shard 0 replica 0",
        "stage actor clean 0",
        "stage actor tower 0",
    ]


def test_the_verification_of_checksums_has_a_bar() -> None:
    progress = verified(verified(Progress(), 10, 100), 20, 100)
    assert bars_of(progress) == [Bar("checksums", 30, 100)]


def test_the_announcement_names_every_port_and_the_example() -> None:
    text = "\n".join(
        announcement(OPTIONS, SERVED, Example(Path("/tmp/ask.json"), '{"outputs": 1}'), INGRESS)
    )

    assert "dlrm version 7" in text
    for shown in (
        "http://127.0.0.1:8501/v1/models/dlrm",
        "127.0.0.1:8500",
        "http://127.0.0.1:8000/v1/models/dlrm, gRPC 127.0.0.1:9000",
        "curl -d @/tmp/ask.json http://127.0.0.1:8501/v1/models/dlrm:predict",
        '{"outputs": 1}',
    ):
        assert shown in text


def test_a_door_that_is_shut_is_not_announced() -> None:
    shut = replace(OPTIONS, engine=Engine.LOCAL, doors=DoorOptions(grpc_port=0, rest_port=8501))
    assert not any("gRPC" in line for line in announcement(shut, SERVED, None))

    shut = replace(OPTIONS, engine=Engine.LOCAL, doors=DoorOptions())
    assert not any("REST" in line for line in announcement(shut, SERVED, None))


def test_the_ingress_is_announced_where_it_is_if_it_is() -> None:
    (line,) = (
        line
        for line in announcement(OPTIONS, SERVED, None, ServeIngress("0.0.0.0", 8123))
        if "Ray Serve" in line
    )
    assert line == "  Ray Serve  http://localhost:8123/v1/models/dlrm"
    assert not any("Ray Serve" in line for line in announcement(OPTIONS, SERVED, None))


def test_all_interfaces_are_shown_as_an_address_that_works() -> None:
    lines = announcement(
        replace(OPTIONS, doors=DoorOptions("0.0.0.0", rest_port=8501)), SERVED, None
    )

    assert any("http://localhost:8501/v1/models/dlrm" in line for line in lines)


def test_the_metrics_are_where_the_door_has_them() -> None:
    assert DEFAULT_METRICS_PATH == MONITORING_PATH


def test_several_versions_are_shown_by_name_and_a_single_one_without() -> None:
    loading = Progress(Phase.LOADING, totals={Seat(0, 0): 10})
    one = Start(1, {VersionId("a", 1): loading})
    assert [bar.text for bar in start_bars(one)] == ["shard 0 replica 0"]
    assert not any("version" in line.text for line in lines_of(one, Engine.RAY))

    two = Start(1, {VersionId("a", 1): loading, VersionId("b", 3): Progress(Phase.PLANNING)})
    assert [bar.text for bar in start_bars(two)] == ["a version 1: shard 0 replica 0"]
    assert [line.text.partition(":")[0] for line in lines_of(two, Engine.RAY)] == [
        "a version 1",
        "b version 3",
    ]


def test_what_the_models_wait_for_is_said() -> None:
    settled = Start(1, is_settled=True)
    assert lines_of(settled, Engine.RAY) == [Line("the models are ready; the routers are starting")]


def test_the_announcement_of_several_models_lists_them() -> None:
    served = [Served("a", (1,)), Served("b", (3, 4))]
    text = "\n".join(announcement(OPTIONS, served, None))

    assert "2 models are served, until Ctrl-C:" in text
    assert "  a version 1\n  b versions 3, 4\n" in text
    assert "http://127.0.0.1:8501/v1/models/NAME" in text


def test_texts_that_look_like_markup_are_shown_as_they_are() -> None:
    said = io.StringIO()
    loading = Progress(Phase.LOADING, "[/note]", totals={Seat(0, 0): 10})
    versions = {VersionId("[/job:x]", 1): loading, VersionId("[red]", 2): loading}

    with start_display(Console(file=said, width=200), Engine.RAY) as display:
        display.step("joining [/ray]")
        display.show(Start(1, versions, warnings=("no kernel at [/job:localhost/cpu:0]",)))

    for shown in ("[/ray]", "[/job:x] version 1", "[red] version 2: shard 0", "[/note]"):
        assert shown in said.getvalue()
    assert "warning: no kernel at [/job:localhost/cpu:0]" in said.getvalue()


@pytest.mark.parametrize("phase", list(Phase))
def test_a_server_of_one_process_speaks_of_neither_actors_nor_routers(phase: Phase) -> None:
    start = Start(1, {VersionId("a", 1): Progress(phase)})

    (line,) = lines_of(start, Engine.LOCAL)

    assert line.text
    assert not re.search("actor|router", line.text)


def test_a_step_is_one_line_however_narrow_what_reads_it() -> None:
    said = io.StringIO()
    with start_display(Console(file=said, width=20), Engine.LOCAL) as display:
        display.warn("no versions of model m found under base path /models/m")

    assert "warning: no versions of model m found under base path /models/m\n" in said.getvalue()


def test_logs_keep_their_lines_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    line = json.dumps({"event": "no controller [red]", "error": "x" * 100})

    console = Console(file=drawn, force_terminal=True, width=20, highlight=False)
    with start_display(console, Engine.RAY) as display:
        display.show(Start(1, {VersionId("a", 1): Progress(Phase.PLANNING)}))
        sys.stderr.write(line)
        sys.stderr.write("\n")

    assert f"{line}\n" in drawn.getvalue()
    assert isinstance(sys.stderr, io.StringIO)
    assert sys.stderr.getvalue() == ""


def test_a_terminal_that_goes_away_is_nobodys_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        console = standard_error()
        assert console.is_terminal
        with start_display(console, Engine.LOCAL) as display:
            display.step("loading")
            os.close(ours)
            display.step("the model is loaded")
        say(console, "stopping")


def test_a_warning_is_said_once_however_often_it_is_shown() -> None:
    said = io.StringIO()
    with start_display(Console(file=said, width=200), Engine.LOCAL) as display:
        for number in (1, 2):
            display.show(Start(number, warnings=("one", "two")))

    assert said.getvalue().count("warning: one") == 1
    assert said.getvalue().count("warning: two") == 1
