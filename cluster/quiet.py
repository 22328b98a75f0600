"""Keeps what TensorFlow says of the hardware, while it starts, off a person's screen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_STDERR = 2
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
#: Nothing but what ends the process.
_QUIET = "3"


def be_quiet() -> None:
    """Ask TensorFlow for silence, unless the user has set its variable: 0 is all that it says."""
    os.environ.setdefault(_LEVEL, _QUIET)


@contextmanager
def quiet_tensorflow(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Discard what the block writes to standard error, by whatever way. What it raises comes out.

    TensorFlow's C++ code writes before it looks at any setting, and not through `sys.stderr`.
    Nothing is discarded if the user has asked to see more than `be_quiet` does.
    """
    if environ.get(_LEVEL, _QUIET) != _QUIET:
        yield
        return
    kept = os.dup(_STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(nowhere)
        os.close(kept)
