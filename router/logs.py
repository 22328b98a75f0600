"""Structured logs, one JSON object a line, and the ids that tie a request's lines together."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import sys
import time
from typing import Any

import structlog
from structlog.typing import Processor

from shardserve.batching.errors import Code
from shardserve.router.lasting import Lasting

#: The header and the gRPC metadata key in which a client may send its own id.
REQUEST_ID = "x-request-id"

MAX_MESSAGE = 1024

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

_PROCESS = secrets.token_hex(4)

_NUMBERS = itertools.count(1)

#: Failures that are the server's rather than the request's.
_OURS = frozenset({Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS, Code.UNAVAILABLE})


#: Of the lines of one second, about failures that an overloaded server has by the thousand.
MAX_OVERLOAD_LINES = 10

_OVERLOAD = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED})


def configure(level: str = "info") -> None:
    """Write log lines of at least `level` to standard error, as JSON.

    Those of `logging` as well that are logged below the name `shardserve`, which its root logger is
    not given: whoever configures that one, such as a servable's own code, would write them again.
    """
    to_json = structlog.processors.JSONRenderer()
    fields: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*fields, to_json],
        wrapper_class=structlog.make_filtering_bound_logger(_level(level)),
        logger_factory=structlog.PrintLoggerFactory(_standard_error()),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_standard_error())
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(to_json, foreign_pre_chain=fields))
    ours = logging.getLogger("shardserve")
    ours.handlers = [handler]
    ours.setLevel(_level(level))
    ours.propagate = False


def _standard_error() -> Lasting:
    """Whatever `sys.stderr` is when a line is written: it may have been replaced, and closed."""
    return Lasting(lambda: sys.stderr)


def logger(**bound: Any) -> Any:
    """A logger whose every line carries `bound`. Never bind a secret."""
    return structlog.get_logger(**bound)


def request_id(given: str | None) -> str:
    """The client's id if it is fit for a log line and a header, else one of our own."""
    if given is not None and _SANE_ID.fullmatch(given):
        return given
    return f"{_PROCESS}-{next(_NUMBERS):x}"


def request_failed(
    log: Any, request: str, model: str, api: str, code: Code, message: str, seconds: float
) -> None:
    """The one line about a request that failed; one that succeeds leaves none.

    Of those that an overloaded server refuses, or answers too late, there are no more than
    `MAX_OVERLOAD_LINES` a second; the next says how many were `left_out`.
    """
    left_out = {}
    if code in _OVERLOAD:
        if not _LINES.may_write(time.monotonic()):
            return
        left_out = _LINES.take_left_out()
    write = log.warning if code in _OURS else log.info
    write(
        "request failed",
        request_id=request,
        model=model,
        api=api,
        code=code.name,
        message=message[:MAX_MESSAGE],
        seconds=round(seconds, 6),
        **left_out,
    )


class LineLimit:
    """Lets so many lines a second be written, and counts the others. Pure."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._second = -1
        self._written = 0
        self._left_out = 0

    def may_write(self, now: float) -> bool:
        """Whether one more line may be written at `now`, in seconds."""
        second = int(now)
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        if self._written <= self._most:
            return True
        self._left_out += 1
        return False

    def take_left_out(self) -> dict[str, int]:
        """What a line says of those left out before it."""
        count, self._left_out = self._left_out, 0
        return {"left_out": count} if count else {}


_LINES = LineLimit(MAX_OVERLOAD_LINES)


def _level(name: str) -> int:
    number = logging.getLevelNamesMapping().get(name.upper())
    if number is None:
        raise ValueError(f"log level {name!r} is not one of debug, info, warning, error, critical")
    return number
