"""The kernel that finds different ids. For numba; see `kernel_code` and `distinct`."""

from __future__ import annotations

from numba.core import types

from shardserve.shards.lanes import loader, store

GAVE_UP = -1

_MIXER = 0xBF58476D1CE4E5B9
_SECOND_MIXER = 0x94D049BB133111EB

_load_int32 = loader(types.int32)
_load_int64 = loader(types.int64)


def distinct(  # type: ignore[no-untyped-def]
    ids, start, stop, slots, shift, multiplier, known, probes, values, places
):
    """Number ids [start, stop) by first appearance, after the `known` numbers of those before.

    `slots` is a hash table of 1 << 64 - shift int32, zeros at first: a number plus one. Number v
    stands for the id `values[v]`, and `ids[i]` has number `places[i]`. Returns how many numbers
    there are, or GAVE_UP once `probes` slots were looked at in vain.
    """
    last = (1 << (64 - shift)) - 1
    for i in range(start, stop):
        found = _load_int64(ids + i * 8)
        # A product alone puts neighbours side by side for some multipliers; mixed twice more, as
        # SplitMix64 does (Steele, Lea and Flood, 2014), they are spread for all.
        mixed = types.uint64(found * multiplier)
        mixed = (mixed ^ (mixed >> types.uint64(30))) * types.uint64(_MIXER)
        mixed = (mixed ^ (mixed >> types.uint64(27))) * types.uint64(_SECOND_MIXER)
        slot = types.int64(mixed >> types.uint64(shift))
        while True:
            number = types.int64(_load_int32(slots + slot * 4)) - 1
            if number < 0:
                number = known
                known += 1
                store(slots + slot * 4, types.int32(known))
                store(values + number * 8, found)
                break
            if _load_int64(values + number * 8) == found:
                break
            slot = (slot + 1) & last
            probes -= 1
            if probes < 0:
                return GAVE_UP
        store(places + i * 4, types.int32(number))
    return known
