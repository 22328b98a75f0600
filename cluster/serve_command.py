"""The command that serves, under either of its names."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import typer
from rich.console import Console

from shardserve import __version__
from shardserve.cluster.console import say, standard_error
from shardserve.cluster.flags.group import given, takes
from shardserve.cluster.flags.serve import ServeFlags, options_of
from shardserve.cluster.front import Front
from shardserve.cluster.options import Engine, ServeOptions
from shardserve.cluster.quiet import quiet_tensorflow


def serve_command(front: Front) -> Callable[..., int]:
    """The function of typer's command, with all flags of the server."""

    @takes(ServeFlags)
    def serve(context: typer.Context, flags: ServeFlags) -> int:
        """Serve models until Ctrl-C."""
        if flags.other.version:
            typer.echo("\n".join(version_lines()))
            return 0
        console = standard_error()
        for argument in context.args:
            say(console, f"unknown argument: {argument}")
        options, warnings = options_of(flags, given(context), front)
        for warning in warnings:
            say(console, f"warning: {warning}")
        return _run(options, console)

    command: Callable[..., int] = serve
    return command


def context_settings(front: Front) -> dict[str, Any]:
    """For typer: what of a command line may be unknown."""
    unknown = front.ignores_unknown
    return {"ignore_unknown_options": unknown, "allow_extra_args": unknown}


def version_lines() -> tuple[str, str]:
    """The original's two lines. Its version is the one whose API is served."""
    return (
        f"TensorFlow ModelServer: {version('tensorflow-serving-api')}+shardserve.{__version__}",
        f"TensorFlow Library: {version('tensorflow')}",
    )


def _run(options: ServeOptions, console: Console) -> int:
    if options.engine is Engine.LOCAL:
        with quiet_tensorflow():
            from shardserve.cluster import local_engine  # noqa: PLC0415

        return local_engine.serve(options, console)
    from shardserve.cluster import ray_engine  # noqa: PLC0415 (sets Ray's environment first)

    return ray_engine.serve(options, console)
