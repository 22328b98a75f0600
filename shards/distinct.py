"""Which ids of an array are different, and where each of them stands. Pure.

A hash table filled in one pass takes 3 to 10 ns an id, a sort (`numpy.unique`) 20 to 45 (2 cores of
a Xeon, 1,000 to 200,000 ids, uniform and Zipf).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shardserve.shards.kernels import address_of
from shardserve.shards.native import Kernel, library

Array = npt.NDArray[Any]

#: Part of the ids that is looked at before the others are, and at least so many.
SAMPLED = 8
LEAST_SAMPLE = 512
#: Slots of the hash table for each id, at least; it is a power of two.
ROOM = 2
#: Slots that may be looked at in vain for each id. Usually it is less than one.
PROBES = 8

_GAVE_UP = -1


@dataclass(frozen=True, slots=True)
class Distinct:
    """`values` [m], int64, all different, in the order of their first appearance among some ids.

    Id i is `values[places[i]]`; `places` is int32 [n].
    """

    values: Array
    places: Array


class DistinctFinder:
    """Finds the different ids of arrays. Safe for many threads at once.

    Ids are scattered with a factor that nobody outside this process knows, so that no client can
    choose ids that fall to one slot; it changes how long the answer takes, never the answer.
    """

    def __init__(self) -> None:
        self._kernel: Kernel = library().kernels["distinct"]
        self._multiplier = _odd_factor()

    def find(self, ids: Array, least_repeats: float) -> Distinct | None:
        """The different ones of ids (int64 [n], contiguous), or None where too few are repeated.

        That is if of the first eighth of them (`SAMPLED`) less than the part `least_repeats` are
        repeats of one before: an eighth of the work is lost then. More of all ids are repeats than
        of the first, so what is found is worth at least what was asked for. None also if the hash
        table degenerates, which costs `PROBES` looks for each id at most.
        """
        n = len(ids)
        sample = min(n, max(LEAST_SAMPLE, n // SAMPLED))
        bits = max(4, (ROOM * n - 1).bit_length())
        slots = np.zeros(1 << bits, np.int32)
        values, places = np.empty(n, np.int64), np.empty(n, np.int32)

        def number(start: int, stop: int, known: int) -> int:
            return self._kernel(
                address_of(ids),
                start,
                stop,
                address_of(slots),
                64 - bits,
                self._multiplier,
                known,
                PROBES * (stop - start),
                address_of(values),
                address_of(places),
            )

        known = number(0, sample, 0)
        if known == _GAVE_UP or sample - known < least_repeats * sample:
            return None
        known = number(sample, n, known)
        return None if known == _GAVE_UP else Distinct(values[:known], places)


def _odd_factor() -> int:
    """A random odd number, as a kernel's int64."""
    return (secrets.randbits(62) << 1) | 1
