"""A stream that people read, and that the server outlives."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

#: The terminal has gone away, or whoever read the pipe.
_GONE = frozenset({errno.EIO, errno.EPIPE})


class Lasting(io.TextIOBase):
    """Writes to the stream of the moment; what it does not take is lost, and nobody's error.

    One that nobody will ever read again is led to nowhere, for whoever else writes there: what is
    left in its buffer would be an error at the process's end.
    """

    def __init__(self, stream: Callable[[], TextIO]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """All of it, in any case."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As far as it goes."""
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return self._stream().isatty()

    def fileno(self) -> int:
        """Raises OSError, as any stream without one."""
        return self._stream().fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return self._stream().encoding

    def _try(self, use: Callable[[TextIO], object]) -> None:
        stream = self._stream()
        try:
            use(stream)
        except OSError as error:
            if error.errno in _GONE:
                _lead_nowhere(stream)


def _lead_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
