"""What a shard tells of itself in numbers: counts since its process began, and how things are.

Whoever has such a number makes `Measure`s of it; from there to a router's metrics page they are
passed on, each with the labels of those who know more, and nobody on the way knows one by its name.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from shardserve.shards.mapped import MappedStore
from shardserve.shards.memory import current_rss_bytes, peak_rss_bytes
from shardserve.shards.store import SliceStore


class MeasureKind(enum.StrEnum):
    """The value is Prometheus' word for it. A counter only rises, until its process ends."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True)
class Measure:
    """One number. `name` has only letters and underscores; `labels` are (name, value) pairs.

    Measures of one name have one kind, and labels of the same names in the same order; no two of
    them have the same labels.
    """

    name: str
    kind: MeasureKind
    value: float
    labels: tuple[tuple[str, str], ...] = ()

    def labelled(self, **labels: object) -> Measure:
        """The same with more labels, which come first."""
        more = tuple((name, str(value)) for name, value in labels.items())
        return replace(self, labels=(*more, *self.labels))


class RowTally:
    """Counts row numbers that were looked up, by slice. Safe for many threads at once."""

    def __init__(self, slices: int) -> None:
        self._rows = [0] * slices
        self._lock = threading.Lock()

    def add(self, asked: Iterable[tuple[int, int]]) -> None:
        """(slice, row numbers) of each part of a request."""
        with self._lock:
            for slice_id, rows in asked:
                self._rows[slice_id] += rows

    @property
    def rows(self) -> tuple[int, ...]:
        """By slice."""
        with self._lock:
            return tuple(self._rows)


def store_measures(
    tables: Sequence[str], stores: Sequence[SliceStore], looked_up: Sequence[int]
) -> list[Measure]:
    """What the slices of one shard tell, together by table: `tables`, `stores` and rows looked up.

    `resident_bytes` (gauge) by `table` and `tier`: what rows take where they are kept, a mapped
    table's only what its cache holds; `looked_up_row_count` (counter) by `table`;
    `row_cache_hit_count` and `row_cache_miss_count` (counters) and `row_cache_bytes` (gauge: the
    cached rows') by `table`, of mapped tables.
    """
    sums: dict[Measure, float] = {}
    for table, store, rows in zip(tables, stores, looked_up, strict=True):
        for measure in _of_store(table, store, rows):
            key = replace(measure, value=0)
            sums[key] = sums.get(key, 0) + measure.value
    return [replace(key, value=value) for key, value in sums.items()]


def process_measures() -> list[Measure]:
    """What this process' memory is: `process_resident_bytes`, `process_peak_resident_bytes`."""
    return [
        Measure("process_resident_bytes", MeasureKind.GAUGE, current_rss_bytes()),
        Measure("process_peak_resident_bytes", MeasureKind.GAUGE, peak_rss_bytes()),
    ]


def _of_store(table: str, store: SliceStore, looked_up: int) -> Iterator[Measure]:
    labels = (("table", table),)
    tier = (*labels, ("tier", store.tier.value))
    yield Measure("resident_bytes", MeasureKind.GAUGE, store.resident_bytes, tier)
    yield Measure("looked_up_row_count", MeasureKind.COUNTER, looked_up, labels)
    if isinstance(store, MappedStore):
        counts = store.cache_counts
        yield Measure("row_cache_hit_count", MeasureKind.COUNTER, counts.hits, labels)
        yield Measure("row_cache_miss_count", MeasureKind.COUNTER, counts.misses, labels)
        yield Measure("row_cache_bytes", MeasureKind.GAUGE, store.resident_bytes, labels)
