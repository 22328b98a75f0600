"""The request that a model brings along, to show how it is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardserve.batching.errors import NotFound

REQUEST_FILE = Path("assets.extra") / "predict_request.json"
REPLY_FILE = "predict_reply.json"


@dataclass(frozen=True)
class Example:
    """The file of a REST request's body, and the reply to expect, if it is known."""

    request: Path
    reply: str | None

    def command(self, url: str) -> str:
        """What to type to send it."""
        return f"curl -d @{_shortest(self.request)} {url}"


def find_example(directory: Path, given: Path | None) -> Example | None:
    """The example `given`, or the one in a version directory's `assets.extra`, if there is one.

    The reply is `predict_reply.json` beside the request. Raises NotFound if what is given is
    missing.
    """
    request = given or directory / REQUEST_FILE
    if not request.is_file():
        if given is not None:
            raise NotFound(f"--print_example={given}: no such file")
        return None
    reply = request.with_name(REPLY_FILE)
    return Example(request, reply.read_text().strip() if reply.is_file() else None)


def _shortest(path: Path) -> str:
    absolute = path.resolve()
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
