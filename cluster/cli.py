"""The commands. Flags are spelled as TensorFlow Serving spells them, where it has them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from shutil import get_terminal_size
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from shardserve.batching.errors import ServingError
from shardserve.cluster.flags.group import flags_of
from shardserve.cluster.flags.offline import InspectFlags, PlanFlags
from shardserve.cluster.flags.serve import VERSION_HELP, ServeFlags
from shardserve.cluster.flags.words import respelled, stray_truth
from shardserve.cluster.front import SHARDSERVE, TENSORFLOW_MODEL_SERVER, Front
from shardserve.cluster.offline_commands import inspect, plan
from shardserve.cluster.quiet import be_quiet
from shardserve.cluster.serve_command import context_settings, serve_command, version_lines

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


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo("\n".join(version_lines()))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help=VERSION_HELP, callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


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
    command = words[0] if words and words[0] in _FLAGS else ""
    _run(SHARDSERVE, app, words or ("--help",), command)


def tensorflow_model_server(arguments: Sequence[str] | None = None) -> None:
    """The command of that name: `shardserve serve` for who has the original's command line."""
    _run(TENSORFLOW_MODEL_SERVER, server, sys.argv[1:] if arguments is None else arguments)


def _run(front: Front, program: typer.Typer, words: Sequence[str], command: str = "") -> None:
    be_quiet()
    # The help cuts names off that have no room.
    os.environ.setdefault("TERMINAL_WIDTH", str(max(_WIDTH, get_terminal_size().columns)))
    try:
        spelled = _spelled(front, words, command)
        status = program(spelled, prog_name=front.program, standalone_mode=False)
    except ServingError as error:
        front.say_failure(error)
        sys.exit(front.failed)
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    except TyperException as error:
        front.say_wrong_flags(error.format_message(), command)
        sys.exit(front.wrong_flags)
    sys.exit(status or 0)


def _spelled(front: Front, words: Sequence[str], command: str) -> Sequence[str]:
    """The words as typer takes them. Raises TyperException for one that is no flag's value."""
    if front is TENSORFLOW_MODEL_SERVER:
        return respelled(words, flags_of(ServeFlags))
    if not command:
        return words
    flags = tuple(flags_of(_FLAGS[command]))
    stray = stray_truth(words, flags)
    if stray is not None:
        raise TyperException(stray)
    return respelled(words, flags)
