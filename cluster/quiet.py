"""Keeps what TensorFlow says of the hardware, while it is imported, off a person's screen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2


@contextmanager
def quiet_import() -> Iterator[None]:
    """Discard what the block writes to standard error, by whatever way. What it raises comes out.

    TensorFlow's C++ code writes before it looks at any setting, and not through `sys.stderr`.
    """
    kept = os.dup(_STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(nowhere)
        os.close(kept)
