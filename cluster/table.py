"""The routing table: where each replica of each shard listens. Replaced whole, and numbered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shardserve.cluster.placement import Seat, seats
from shardserve.shards.address import Address
from shardserve.shards.model import ModelPlan


@dataclass(frozen=True)
class RoutingTable:
    """What a router must know to serve `plan`.

    `addresses[shard][replica]` is None while that replica is not there; a model with nothing to
    cut has no shards. The number rises by one with every change.
    """

    number: int
    plan: ModelPlan
    addresses: tuple[tuple[Address | None, ...], ...]

    @property
    def model(self) -> str:
        return self.plan.name

    @property
    def version(self) -> int:
        return self.plan.version

    @property
    def is_servable(self) -> bool:
        """Whether every shard has a replica."""
        return all(any(replicas) for replicas in self.addresses)

    @property
    def is_complete(self) -> bool:
        """Whether every replica is there."""
        return all(all(replicas) for replicas in self.addresses)

    def of_shard(self, shard: int) -> tuple[Address, ...]:
        """The addresses there are of one shard."""
        return tuple(address for address in self.addresses[shard] if address is not None)

    def missing(self) -> frozenset[Seat]:
        """The seats without an address."""
        return frozenset(seat for seat, address in self.by_seat() if address is None)

    def by_seat(self) -> Iterator[tuple[Seat, Address | None]]:
        """Every seat, and its address or None."""
        for shard, replicas in enumerate(self.addresses):
            for replica, address in enumerate(replicas):
                yield Seat(shard, replica), address


def empty_table(plan: ModelPlan, number: int) -> RoutingTable:
    """Nobody has registered yet. A restarted controller starts from a number not used before."""
    shards = max((seat.shard for seat in seats(plan.layout)), default=-1) + 1
    return RoutingTable(number, plan, ((None,) * plan.layout.replicas,) * shards)


def registered(table: RoutingTable, seat: Seat, address: Address) -> RoutingTable:
    """A shard actor listens at `address`. Whoever had the seat before is gone."""
    if table.addresses[seat.shard][seat.replica] == address:
        return table
    return _with(table, seat, address)


def lost(table: RoutingTable, seat: Seat, instance: str) -> RoutingTable:
    """The actor process that registered as `instance` is gone.

    Where another instance has the seat already, that one stays: news of a death can arrive after
    the successor's registration.
    """
    address = table.addresses[seat.shard][seat.replica]
    if address is None or address.instance != instance:
        return table
    return _with(table, seat, None)


def _with(table: RoutingTable, seat: Seat, address: Address | None) -> RoutingTable:
    shards = [list(replicas) for replicas in table.addresses]
    shards[seat.shard][seat.replica] = address
    return replace(table, number=table.number + 1, addresses=tuple(map(tuple, shards)))


def changes(before: RoutingTable, after: RoutingTable) -> list[str]:
    """What became of the seats between two tables, a line for each that changed."""
    lines = []
    old = dict(before.by_seat())
    for seat, address in after.by_seat():
        if address != old.get(seat):
            lines.append(f"{seat} is gone" if address is None else f"{seat} is at {address}")
    return lines
