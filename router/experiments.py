"""Which version answers a request that names none, and which hears of it besides. Pure.

A model's newest version may be on trial: as a canary it answers a share of the requests, and the
newest but one the others; as a shadow it gets a share of the requests, and answers nobody. Clients
that name a version or a label are in no experiment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from shardserve.batching.errors import InvalidArgument

_BUCKETS = 1 << 32


@dataclass(frozen=True)
class Experiment:
    """Shares, in [0, 1]. `key` names the request header that makes a client stick to a version."""

    canary: float = 0.0
    shadow: float = 0.0
    key: str = ""

    @property
    def is_on(self) -> bool:
        """Whether any request is in it."""
        return self.canary > 0.0 or self.shadow > 0.0


@dataclass(frozen=True)
class Route:
    """The version that answers, and the one that gets a copy of the request, if any does."""

    answers: int
    shadow: int | None = None


def parse_share(text: str) -> float:
    """A share such as "5%", "0.5%" or "0.05". Raises InvalidArgument, quoting what is none."""
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        share = -1.0
    if rest or not 0.0 <= share <= 1.0:
        raise InvalidArgument(f"a share is from 0% to 100%, not {text!r}")
    return share


def route(available: Collection[int], experiment: Experiment, chance: float) -> Route | None:
    """Where a request goes that names no version; None if no version is available.

    `chance` in [0, 1) is drawn for the request, or is `stickiness` of its key. A client whose
    chance is below the canary's share stays with the canary when the share grows.
    """
    if not available:
        return None
    *older, newest = sorted(available)
    if not older:
        return Route(newest)
    if chance < experiment.canary:
        return Route(newest)
    if not experiment.is_on:
        return Route(newest)
    # The shadow's requests are taken from the other end: a canary's client is not counted twice.
    return Route(older[-1], newest if chance >= 1.0 - experiment.shadow else None)


def stickiness(model: str, key: bytes) -> float:
    """A number in [0, 1) for a client's key, another for each model, the same in every router."""
    digest = hashlib.blake2b(key, digest_size=4, person=model.encode()[:16]).digest()
    return int.from_bytes(digest, "little") / _BUCKETS
