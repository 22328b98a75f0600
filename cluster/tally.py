"""How much has been loaded so far, told now and then."""

from __future__ import annotations

import time
from collections.abc import Callable


class Tally:
    """Adds up what was loaded, and reports the sum, at most once in `seconds`."""

    def __init__(self, report: Callable[[int], object], seconds: float) -> None:
        self._report = report
        self._seconds = seconds
        self._due = 0.0
        self._total = 0

    def add(self, nbytes: int) -> None:
        """So many bytes more."""
        self._total += nbytes
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._seconds
            self._report(self._total)
