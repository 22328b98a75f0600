"""The metrics page: Prometheus' text form, with names written as TensorFlow Serving writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardserve.batching.tallies import Distribution
from shardserve.router.metric_families import FAMILIES, Family, Labels
from shardserve.router.metric_snapshot import Series, Snapshot
from shardserve.router.process_figures import process_page
from shardserve.shards.measures import Measure

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def page(snapshot: Snapshot, measures: Iterable[Measure] = ()) -> bytes:
    """Everything of a snapshot. Families without series are left out.

    Measures of the shards stand there under ":shardserve:" and their names.
    """
    lines = [
        line
        for name, family in FAMILIES.items()
        if snapshot.series.get(name)
        for line in _family_lines(family, snapshot.series[name])
    ]
    lines += _measure_lines(measures)
    return "\n".join([*lines, ""]).encode() + process_page(snapshot.processes)


def _family_lines(family: Family, series: Series) -> Iterator[str]:
    yield f"# TYPE {family.name} {family.kind}"
    for values, value in series.items():
        if isinstance(value, Distribution):
            yield from _distribution_lines(family, values, value)
        else:
            yield f"{family.name}{_labelled(family.labels, values)} {_number(value)}"


def _distribution_lines(family: Family, values: Labels, found: Distribution) -> Iterator[str]:
    reached = 0
    bounds = (*(f"{bound:g}" for bound in family.bounds), "+Inf")
    for bound, count in zip(bounds, found.counts, strict=True):
        reached += count
        yield f"{family.name}_bucket{_labelled((*family.labels, 'le'), (*values, bound))} {reached}"
    labels = _labelled(family.labels, values)
    yield f"{family.name}_sum{labels} {_number(found.total)}"
    yield f"{family.name}_count{labels} {reached}"


def _measure_lines(measures: Iterable[Measure]) -> Iterator[str]:
    by_name: dict[str, list[Measure]] = {}
    for measure in measures:
        by_name.setdefault(measure.name, []).append(measure)
    for name, family in by_name.items():
        yield f"# TYPE :shardserve:{name} {family[0].kind}"
        for one in family:
            names, values = tuple(zip(*one.labels, strict=True)) or ((), ())
            yield f":shardserve:{name}{_labelled(names, values)} {_number(one.value)}"


def _number(value: float) -> str:
    """All digits of it: a sum that lost some would seem to stand still."""
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _labelled(names: Labels, values: Labels) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
