"""How a version is warmed up. Plain data, for whoever reads flags without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WarmUpOptions:
    """The requests of a version's warm-up file are replayed before it is available.

    Each of them `iterations` times, and as many as `threads` at the same time.
    """

    enabled: bool = True
    iterations: int = 1
    threads: int = 1
