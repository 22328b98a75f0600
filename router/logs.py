"""Structured logs, one JSON object a line, and the ids that tie a request's lines together."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import sys
from typing import Any

import structlog

from shardserve.batching.errors import Code

#: The header and the gRPC metadata key in which a client may send its own id.
REQUEST_ID = "x-request-id"

MAX_MESSAGE = 1024

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

_PROCESS = secrets.token_hex(4)

_NUMBERS = itertools.count(1)

#: Failures that are the server's rather than the request's.
_OURS = frozenset({Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS, Code.UNAVAILABLE})


def configure(level: str = "info") -> None:
    """Write log lines of at least `level` to standard error, as JSON."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level(level)),
        logger_factory=structlog.PrintLoggerFactory(_StandardError()),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


class _StandardError:
    """Whatever `sys.stderr` is when a line is written: it may have been replaced, and closed."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


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
    """The one line about a request that failed; one that succeeds leaves none."""
    write = log.warning if code in _OURS else log.info
    write(
        "request failed",
        request_id=request,
        model=model,
        api=api,
        code=code.name,
        message=message[:MAX_MESSAGE],
        seconds=round(seconds, 6),
    )


def _level(name: str) -> int:
    number = logging.getLevelNamesMapping().get(name.upper())
    if number is None:
        raise ValueError(f"log level {name!r} is not one of debug, info, warning, error, critical")
    return number
