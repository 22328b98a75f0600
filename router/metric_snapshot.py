"""What routers have counted, as data: to be sent, added up, and made a page of. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgpack

from shardserve.batching.errors import DataLoss
from shardserve.batching.tallies import Distribution
from shardserve.router.metric_families import FAMILIES, Family, Fold, Kind, Labels
from shardserve.router.metric_series import CLIENTS_FAULTS, MAX_SERIES
from shardserve.router.process_figures import ProcessFigures

#: Bytes of a snapshot. One of as many series as there may be takes some 3 MB.
MAX_BYTES = 64 << 20

Value: TypeAlias = float | Distribution

#: By the values of a family's labels.
Series: TypeAlias = Mapping[Labels, Value]

_FORM = 1


@dataclass(frozen=True)
class Snapshot:
    """Of one router, or of several together.

    `series` are by their family's name; every family is one of `FAMILIES`. `processes` has what
    each router's process tells of itself, by the router's id: that is never added up.
    """

    series: Mapping[str, Series] = field(default_factory=dict)
    processes: Mapping[str, ProcessFigures] = field(default_factory=dict)

    def packed(self) -> bytes:
        """As msgpack. See `unpacked`."""
        series = {
            name: [[*labels, _plain(value)] for labels, value in found.items()]
            for name, found in self.series.items()
        }
        processes = {router: figures.plain() for router, figures in self.processes.items()}
        packed: bytes = msgpack.packb([_FORM, series, processes])
        return packed

    def past(self) -> Snapshot:
        """What still counts of routers that have gone: no gauges, and nothing of the processes."""
        return Snapshot(
            {
                name: series
                for name, series in self.series.items()
                if FAMILIES[name].kind is not Kind.GAUGE
            }
        )


def unpacked(raw: bytes) -> Snapshot:
    """The snapshot that `Snapshot.packed` made into `raw`, without families unknown here.

    Raises DataLoss for what is no such thing, or more than `MAX_BYTES`.
    """
    try:
        if len(raw) > MAX_BYTES:
            raise ValueError(f"{len(raw)} bytes")
        form, series, processes = msgpack.unpackb(raw, strict_map_key=True)
        if form != _FORM:
            raise ValueError(f"form {form}")
        return Snapshot(
            {name: _series(FAMILIES[name], rows) for name, rows in series.items() if _known(name)},
            {router: ProcessFigures.of_plain(plain) for router, plain in processes.items()},
        )
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise DataLoss(f"not a snapshot of metrics: {error}") from None


def summed(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Of all routers together. In which order, and in which groups, they are added is the same.

    Past `MAX_SERIES` of a family some are added up with their first label left empty: first of
    those that a client can make up, requests that failed for what was asked.
    """
    series: dict[str, dict[Labels, Value]] = {}
    processes: dict[str, ProcessFigures] = {}
    for snapshot in snapshots:
        processes |= snapshot.processes
        for name, more in snapshot.series.items():
            _add(FAMILIES[name], series.setdefault(name, {}), more)
    return Snapshot({name: _bounded(FAMILIES[name], s) for name, s in series.items()}, processes)


def _add(family: Family, to: dict[Labels, Value], more: Series) -> None:
    for labels, value in more.items():
        to[labels] = _folded(family, to[labels], value) if labels in to else value


def _folded(family: Family, one: Any, other: Any) -> Value:
    """`one` and `other` are both numbers, or both distributions."""
    folded: Value = max(one, other) if family.fold is Fold.MAX else one + other
    return folded


def _bounded(family: Family, series: dict[Labels, Value]) -> dict[Labels, Value]:
    """The first of them in an order that does not depend on who else is there; the rest as one."""
    named = [labels for labels in series if labels and labels[0]]
    if len(named) <= MAX_SERIES:
        return series
    kept = set(heapq.nsmallest(MAX_SERIES, named, key=_precedence))
    bounded: dict[Labels, Value] = {}
    for labels, value in series.items():
        within = labels if labels in kept else ("", *labels[1:])
        _add(family, bounded, {within: value})
    return bounded


def _precedence(labels: Labels) -> tuple[bool, Labels]:
    return not _CLIENTS_FAULTS.isdisjoint(labels), labels


_CLIENTS_FAULTS = frozenset(code.name for code in CLIENTS_FAULTS)


def _known(name: str) -> bool:
    return name in FAMILIES


def _plain(value: Value) -> Any:
    return [value.counts, value.total] if isinstance(value, Distribution) else value


def _series(family: Family, rows: Sequence[Sequence[Any]]) -> dict[Labels, Value]:
    return {_labels(family, row[:-1]): _value(family, row[-1]) for row in rows}


def _labels(family: Family, values: Sequence[Any]) -> Labels:
    if len(values) != len(family.labels) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"labels of {family.name}: {values}")
    return tuple(values)


def _value(family: Family, plain: Any) -> Value:
    if family.kind is not Kind.HISTOGRAM:
        return _number(plain)
    counts, total = plain
    if len(counts) != len(family.bounds) + 1:
        raise ValueError(f"{len(counts)} counts of {family.name}")
    return Distribution(tuple(_whole(count) for count in counts), _number(total))


def _number(plain: Any) -> float:
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise TypeError(f"not a number: {plain!r}")
    return plain


def _whole(plain: Any) -> int:
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise TypeError(f"not a count: {plain!r}")
    return plain
