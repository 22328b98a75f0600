"""The commands. Flags are spelled as TensorFlow Serving spells them, where it has them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from shutil import get_terminal_size
from typing import Any

import typer
from typer.exceptions import TyperException

from shardserve.batching.errors import ServingError
from shardserve.cluster.flags.group import flags_of
from shardserve.cluster.flags.offline import InspectFlags, PlanFlags
from shardserve.cluster.flags.serve import ServeFlags
from shardserve.cluster.flags.words import respelled
from shardserve.cluster.front import SHARDSERVE, TENSORFLOW_MODEL_SERVER, Front
from shardserve.cluster.offline_commands import inspect, plan
from shardserve.cluster.serve_command import context_settings, serve_command

_INTERRUPTED = 130
_WIDTH = 112
_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
}
_FLAGS = {"serve": ServeFlags, "inspect": InspectFlags, "plan": PlanFlags}

app = typer.Typer(
    help="Serve TensorFlow SavedModels that are too big for one machine.", **_SETTINGS
)
app.command("serve", context_settings=context_settings(SHARDSERVE))(serve_command(SHARDSERVE))
app.command("inspect")(inspect)
app.command("plan")(plan)

server = typer.Typer(**_SETTINGS)
server.command(context_settings=context_settings(TENSORFLOW_MODEL_SERVER))(
    serve_command(TENSORFLOW_MODEL_SERVER)
)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `shardserve`. Exits with 1 and one line for what the user can put right."""
    words = sys.argv[1:] if arguments is None else arguments
    command = words[0] if words else ""
    _run(SHARDSERVE, app, words or ("--help",), _FLAGS.get(command))


def tensorflow_model_server(arguments: Sequence[str] | None = None) -> None:
    """The command of that name: `shardserve serve` for who has the original's command line."""
    words = sys.argv[1:] if arguments is None else arguments
    _run(TENSORFLOW_MODEL_SERVER, server, words, ServeFlags)


def _run(front: Front, program: typer.Typer, words: Sequence[str], flags: type[Any] | None) -> None:
    # What goes wrong is raised to us; the rest of TensorFlow's log says what hardware it found.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # The help cuts names off that have no room.
    os.environ.setdefault("TERMINAL_WIDTH", str(max(_WIDTH, get_terminal_size().columns)))
    try:
        spelled = respelled(words, flags_of(flags)) if flags else words
        status = program(spelled, prog_name=front.program, standalone_mode=False)
    except ServingError as error:
        front.say_failure(error)
        sys.exit(front.failed)
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    except TyperException as error:
        front.say_wrong_flags(error.format_message())
        sys.exit(front.wrong_flags)
    sys.exit(status or 0)
