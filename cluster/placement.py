"""What each shard actor needs of a node, and which bundle of the placement group each one gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shardserve.shards.layout import Layout

#: A shard process is on a core while it answers; between requests it needs none. So little is
#: reserved that a laptop takes any number of shards; what limits a node is its memory.
SHARD_CPUS = 0.01
_PROCESS_BYTES = 150 << 20
#: What Ray takes a router to need of a node's cores, so that a laptop can run several.
ROUTER_CPUS = 0.1


@dataclass(frozen=True, order=True)
class Seat:
    """One replica of one shard."""

    shard: int
    replica: int

    def __str__(self) -> str:
        return f"shard {self.shard} replica {self.replica}"


@dataclass(frozen=True)
class Bundle:
    """What one actor reserves. `memory` is in bytes."""

    cpus: float
    memory: int
    gpus: float = 0

    def resources(self) -> dict[str, float]:
        """As Ray spells it, nothing that is not needed among it."""
        needs = {"CPU": self.cpus, "memory": self.memory, "GPU": self.gpus}
        return {name: need for name, need in needs.items() if need}

    def places_on(self, node: Mapping[str, float]) -> int:
        """How many such bundles a node with these resources has room for."""
        return min(int(node.get(name, 0) // need) for name, need in self.resources().items())


def seats(layout: Layout) -> tuple[Seat, ...]:
    """Every seat, replica by replica. A layout that cuts nothing needs no shards, so no seats."""
    if not layout.tables:
        return ()
    return tuple(
        Seat(shard, replica) for replica in range(layout.replicas) for shard in range(layout.shards)
    )


def bundle_for(shard_bytes: Sequence[int]) -> Bundle:
    """The bundle of every seat: room for the largest shard, so that any seat fits any bundle."""
    return Bundle(SHARD_CPUS, max(shard_bytes) * 21 // 20 + _PROCESS_BYTES)


def bundles_for(
    places: Sequence[Seat], shard_bytes: Sequence[int], gpus: Sequence[int]
) -> tuple[Bundle, ...]:
    """The bundle of each seat: `bundle_for` all, with the GPUs of the seat's shard (`gpus`).

    A shard has its GPU to itself.
    """
    bundle = bundle_for(shard_bytes)
    return tuple(replace(bundle, gpus=gpus[seat.shard]) for seat in places)


def shortage_of(bundles: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """As `shortage`, for bundles that differ in nothing but GPUs.

    All fit if they do without their GPUs, and those that have some do with them: others can lie
    wherever there is room left.
    """
    for gpus in sorted({bundle.gpus for bundle in bundles}):
        needing = [bundle for bundle in bundles if bundle.gpus >= gpus]
        lacking = shortage(replace(needing[0], gpus=gpus), len(needing), nodes)
        if lacking is not None:
            return lacking
    return None


def shortage(bundle: Bundle, count: int, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Why these nodes, were they idle, could not take `count` bundles; None if they could."""
    room = sum(bundle.places_on(node) for node in nodes)
    if room >= count:
        return None
    memory = ", ".join(f"{node.get('memory', 0) / 1e9:.2f}" for node in nodes)
    size, there = f"{bundle.memory / 1e9:.2f} GB", f"GB of memory by node: {memory}"
    if bundle.gpus:
        size += f" and {bundle.gpus:g} GPU"
        there += "; GPUs by node: " + ", ".join(f"{node.get('GPU', 0):.0f}" for node in nodes)
    return (
        f"{count} shard actors of {size} each do not fit: the cluster has room for {room} ({there})"
    )


def left_over(
    nodes: Mapping[str, Mapping[str, float]], taken: Iterable[tuple[str, Bundle]]
) -> list[dict[str, float]]:
    """What each node has besides the bundles that lie there; both name nodes by their ids."""
    left = {node: dict(resources) for node, resources in nodes.items()}
    for node, bundle in taken:
        for name, amount in bundle.resources().items():
            if node in left:
                left[node][name] = max(0.0, left[node].get(name, 0.0) - amount)
    return list(left.values())


def assign_alike(
    places: Sequence[Seat], bundles: Sequence[Bundle], bundle_nodes: Sequence[str]
) -> dict[Seat, int]:
    """As `assign`, for a group whose i-th bundle is what places[i] needs: each gets one like it.

    The seats of a shard all need the same, so what `assign` says of replicas holds.
    """
    found: dict[Seat, int] = {}
    for kind in set(bundles):
        alike = [i for i, bundle in enumerate(bundles) if bundle == kind]
        chosen = assign([places[i] for i in alike], [bundle_nodes[i] for i in alike])
        found |= {seat: alike[i] for seat, i in chosen.items()}
    return found


def assign(places: Sequence[Seat], bundle_nodes: Sequence[str]) -> dict[Seat, int]:
    """The bundle of each seat, `bundle_nodes` telling on which node each bundle lies.

    No two replicas of one shard share a node, unless some node has more bundles than there are
    shards, when this cannot be had. `places` must be as `seats` gives them: a node's bundles are
    taken in one run, and within a run as long as the shards no shard occurs twice.
    """
    crowd = Counter(bundle_nodes)
    by_node = sorted(
        range(len(bundle_nodes)), key=lambda i: (-crowd[bundle_nodes[i]], bundle_nodes[i], i)
    )
    return dict(zip(places, by_node, strict=True))
