"""What is logged while a server starts, for who waits for it: each thing once, in plain words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from shardserve.batching.errors import ServingError

_OURS = logging.getLogger("shardserve")


@contextmanager
def start_log(say: Callable[[str], None]) -> Iterator[None]:
    """Give what is logged in the block to `say` instead of the log.

    Errors are kept to the block's end, and go to the log then, but for those that the error says
    which ends it: that one is told by who catches it. Tracebacks always go to the log, at once.
    """
    handlers = _OURS.handlers
    shown, said = _Shown(say, handlers), ""
    _OURS.handlers = [shown]
    try:
        yield
    except ServingError as error:
        said = error.message
        raise
    finally:
        _OURS.handlers = handlers
        for record in shown.kept:
            if not _is_in(record, said):
                _OURS.handle(record)


class _Shown(logging.Handler):
    def __init__(self, say: Callable[[str], None], log: Sequence[logging.Handler]) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[logging.LogRecord] = []
        self._say = say
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """See `start_log`."""
        if record.exc_info:
            for handler in self._log:
                handler.handle(record)
        elif record.levelno >= logging.ERROR:
            self.kept.append(record)
        else:
            self._say(record.getMessage())


def _is_in(record: logging.LogRecord, said: str) -> bool:
    """Whether an error's own words, which follow what they are of, have been said."""
    _, _, words = record.getMessage().partition(": ")
    return bool(words) and words in said
