"""Counters and histograms of one process, bounded in series. Cheap for each request."""

from __future__ import annotations

from collections.abc import Mapping

from shardserve.batching.errors import Code
from shardserve.batching.tallies import Distribution, Tally
from shardserve.router.metric_families import Family, Labels

#: Series kept of one metric. Clients choose the model names of requests that are not found.
MAX_SERIES = 4096

#: Of these, those of requests that were the client's fault: models that are served have the rest.
MAX_FAULTS = MAX_SERIES // 2

#: As what the requests fail whose model names clients made up.
CLIENTS_FAULTS = frozenset({Code.NOT_FOUND, Code.INVALID_ARGUMENT})

_FAULTS = frozenset(code.name for code in CLIENTS_FAULTS)

_MICROSECONDS = 1e6


class Counter:
    """A count for each combination of a family's labels."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._counts: dict[Labels, int] = {}
        self._room = _Room()

    def add(self, values: Labels, count: int = 1) -> None:
        """So many more. Past `MAX_SERIES` combinations the first label is left empty.

        Past `MAX_FAULTS` of the client's faults as well, where the labels have a code.
        """
        counts = self._counts
        try:
            counts[values] += count
        except KeyError:
            values = self._room.for_series(values)
            counts[values] = counts.get(values, 0) + count

    def total(self) -> int:
        """Over all labels."""
        return sum(self._counts.values())

    def series(self) -> Mapping[Labels, int]:
        """The counts as they are now, by the labels' values."""
        return dict(self._counts)


class Histogram:
    """Values for each combination of a family's labels, by the family's bounds."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._tallies: dict[Labels, Tally] = {}
        self._room = _Room()

    def tally(self, values: Labels) -> Tally:
        """Of these labels, to add to. Past `MAX_SERIES` the first label is left empty."""
        try:
            return self._tallies[values]
        except KeyError:
            values = self._room.for_series(values)
            return self._tallies.setdefault(values, Tally(self.family.bounds))

    def observe(self, values: Labels, seconds: float) -> None:
        """Add a duration, in a histogram of microseconds."""
        tally = self._tallies.get(values)
        (self.tally(values) if tally is None else tally).add(seconds * _MICROSECONDS)

    def series(self) -> Mapping[Labels, Distribution]:
        """The distributions as they are now, by the labels' values."""
        return {values: tally.distribution() for values, tally in self._tallies.items()}


class _Room:
    """How many series have names of their own."""

    __slots__ = ("_faults", "_named")

    def __init__(self) -> None:
        self._named = 0
        self._faults = 0

    def for_series(self, values: Labels) -> Labels:
        """The labels that what is new under `values` gets."""
        is_fault = not _FAULTS.isdisjoint(values[1:])
        if self._named >= MAX_SERIES or (is_fault and self._faults >= MAX_FAULTS):
            return ("", *values[1:])
        self._named += 1
        self._faults += is_fault
        return values
