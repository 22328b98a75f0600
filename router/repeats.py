"""Ids that a lookup names more than once: asked for once, where that pays. Pure.

Measured by `python -m benchmarks repeats`; `docs/design.md` has the figures. It pays where rows
come over a wire, since each costs far more on its way than looking for repeats does. It does not
where rows come from this process's own memory, and not for sums, whose rows stay where they are: a
row that was read a moment ago is in the processor's cache, and costs less than to know that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shardserve.router.lookups import Prepared
from shardserve.shards.distinct import DistinctFinder
from shardserve.shards.tables import Table

#: (ids, bytes of a row, whether rows come from several shards) -> the least part of the ids that
#: has to be repeats; NEVER where no part is enough.
Rule = Callable[[int, int, bool], float]

NEVER = 2.0
#: Bytes of rows up to which a round trip costs more than all that could be saved.
LEAST_BYTES = 1 << 19
#: Where rows come from several shards, each is also put in its place; those of one shard are not.
LEAST_OF_SEVERAL = 0.2
LEAST_OF_ONE = 0.45


def least_repeats(ids: int, row_bytes: int, scattered: bool) -> float:
    """The rule for shards behind a wire.

    What is saved and what it costs both grow with a row's bytes, so the part from which on it pays
    does not depend on them.
    """
    if ids * row_bytes < LEAST_BYTES:
        return NEVER
    return LEAST_OF_SEVERAL if scattered else LEAST_OF_ONE


class Repeats:
    """Takes repeated ids out of gathers before they are split. Safe for many threads at once."""

    def __init__(self, rule: Rule = least_repeats) -> None:
        self._rule = rule
        self._finder = DistinctFinder()

    def asked_once(self, prepared: Prepared, table: Table, scattered: bool) -> Prepared:
        """The lookup with each id once, if it gathers rows and the rule finds enough repeats.

        Its result is the same to the bit. `scattered` says whether rows come from several shards.
        """
        if prepared.bags is not None:
            return prepared
        least = self._rule(len(prepared.ids), table.row_bytes, scattered)
        found = None if least > 1.0 else self._finder.find(prepared.ids, least)
        if found is None:
            return prepared
        return replace(prepared, ids=found.values, count=len(found.values), places=found.places)
