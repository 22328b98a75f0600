"""The routing table of one version: where each of its actors listens. Replaced whole, numbered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from shardserve.cluster.placement import Seat, seats
from shardserve.cluster.stage_placement import AnySeat, StageSeat
from shardserve.shards.address import Address
from shardserve.shards.model import ModelPlan


@dataclass(frozen=True)
class RoutingTable:
    """Where the actors of one plan are.

    `addresses[shard][replica]` is None while that replica is not there; a model with nothing to
    cut has no shards. `stages[group][replica]` is the same of stage actors. The number rises by
    one with every change.
    """

    number: int
    addresses: tuple[tuple[Address | None, ...], ...]
    stages: Mapping[str, tuple[Address | None, ...]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every replica is there."""
        return all(address is not None for _, address in self.by_seat())

    def of_shard(self, shard: int) -> tuple[Address, ...]:
        """The addresses there are of one shard."""
        return _known(self.addresses[shard])

    def of_group(self, group: str) -> tuple[Address, ...]:
        """The addresses there are of one group of stage actors."""
        return _known(self.stages[group])

    def at(self, seat: AnySeat) -> Address | None:
        """The address of a seat."""
        if isinstance(seat, StageSeat):
            return self.stages[seat.group][seat.replica]
        return self.addresses[seat.shard][seat.replica]

    def by_seat(self) -> Iterator[tuple[AnySeat, Address | None]]:
        """Every seat, and its address or None."""
        for shard, replicas in enumerate(self.addresses):
            for replica, address in enumerate(replicas):
                yield Seat(shard, replica), address
        for group, actors in self.stages.items():
            for replica, address in enumerate(actors):
                yield StageSeat(group, replica), address


def empty_table(plan: ModelPlan, number: int) -> RoutingTable:
    """Nobody has registered yet."""
    shards = max((seat.shard for seat in seats(plan.layout)), default=-1) + 1
    nobody = ((None,) * plan.layout.replicas,) * shards
    stages = {group.name: (None,) * group.count for group in plan.stage_groups}
    return RoutingTable(number, nobody, stages)


def registered(table: RoutingTable, seat: AnySeat, address: Address) -> RoutingTable:
    """An actor listens at `address`. Whoever had the seat before is gone."""
    if table.at(seat) == address:
        return table
    return _with(table, seat, address)


def lost(table: RoutingTable, seat: AnySeat, instance: str) -> RoutingTable:
    """The actor process that registered as `instance` is gone.

    Where another instance has the seat already, that one stays: news of a death can arrive after
    the successor's registration.
    """
    address = table.at(seat)
    if address is None or address.instance != instance:
        return table
    return _with(table, seat, None)


def _with(table: RoutingTable, seat: AnySeat, address: Address | None) -> RoutingTable:
    number = table.number + 1
    if isinstance(seat, StageSeat):
        actors = _replaced(table.stages[seat.group], seat.replica, address)
        return replace(table, number=number, stages={**table.stages, seat.group: actors})
    shards = list(table.addresses)
    shards[seat.shard] = _replaced(shards[seat.shard], seat.replica, address)
    return replace(table, number=number, addresses=tuple(shards))


def _replaced(
    replicas: tuple[Address | None, ...], place: int, address: Address | None
) -> tuple[Address | None, ...]:
    return (*replicas[:place], address, *replicas[place + 1 :])


def _known(replicas: Iterable[Address | None]) -> tuple[Address, ...]:
    return tuple(address for address in replicas if address is not None)


def changes(before: RoutingTable, after: RoutingTable) -> list[str]:
    """What became of the seats between two tables, a line for each that changed."""
    lines = []
    old = dict(before.by_seat())
    for seat, address in after.by_seat():
        if address != old.get(seat):
            lines.append(f"{seat} is gone" if address is None else f"{seat} is at {address}")
    return lines
