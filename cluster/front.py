"""The two names of the server, and what differs between them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from shardserve.batching.errors import ServingError
from shardserve.cluster.options import DoorOptions, Engine

ALL_INTERFACES = ""


@dataclass(frozen=True)
class Front:
    """What a command line means where it says nothing, and how its failures are told.

    `engine` is for a command line that asks for neither shards nor Ray. Unknown flags are mistakes,
    or, where it `ignores_unknown` ones, said and left out. So is a base path that is not there,
    unless it `waits_for_models`. `wrong_flags` and `failed` are exit statuses. `failure` says in a
    line what keeps it from serving, on standard error, or on standard output where it
    `fails_on_output`. `opened_grpc` and `opened_rest` are said when the doors are open: tools wait
    for such lines.
    """

    program: str
    host: str
    engine: Engine
    ignores_unknown: bool
    waits_for_models: bool
    wrong_flags: int
    failed: int
    failure: str = "{program}: {message}"
    fails_on_output: bool = False
    opened_grpc: str = ""
    opened_rest: str = ""

    def opened(self, doors: DoorOptions) -> tuple[str, ...]:
        """What it says of the doors when they are open."""
        said = ((self.opened_grpc, doors.grpc_port), (self.opened_rest, doors.rest_port))
        return tuple(line.format(port=port) for line, port in said if line and port)

    def say_failure(self, error: ServingError) -> None:
        """In one line."""
        line = self.failure.format(
            program=self.program, code=error.code.name, message=error.message
        )
        (sys.stdout if self.fails_on_output else sys.stderr).write(f"{line}\n")

    def say_wrong_flags(self, message: str, command: str = "") -> None:
        """What no flag of the command can be, and where to look."""
        called = f"{self.program} {command}".rstrip()
        sys.stderr.write(f"{self.program}: {message.rstrip('.')}; see {called} --help\n")


SHARDSERVE = Front(
    program="shardserve",
    host="127.0.0.1",
    engine=Engine.RAY,
    ignores_unknown=False,
    waits_for_models=False,
    wrong_flags=2,
    failed=1,
)

#: As tools that start and watch the original expect it.
TENSORFLOW_MODEL_SERVER = Front(
    program="tensorflow_model_server",
    host=ALL_INTERFACES,
    engine=Engine.LOCAL,
    ignores_unknown=True,
    waits_for_models=True,
    wrong_flags=255,
    failed=255,
    failure="Failed to start server. Error: {code}: {message}",
    fails_on_output=True,
    opened_grpc="Running gRPC ModelServer at 0.0.0.0:{port} ...",
    opened_rest="Exporting HTTP/REST API at:localhost:{port} ...",
)
