"""What each stage actor needs of a node, and whether the cluster has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shardserve.cluster.placement import Bundle, Seat
from shardserve.shards.stage_groups import StageGroup

#: TensorFlow, its session, and the graph as it is while it is cut.
_PROCESS_BYTES = 800 << 20


@dataclass(frozen=True, order=True)
class StageSeat:
    """One of a group's actors."""

    group: str
    replica: int

    def __str__(self) -> str:
        return f"stage actor {self.group} {self.replica}"


AnySeat = Seat | StageSeat


def stage_seats(groups: Iterable[StageGroup]) -> tuple[StageSeat, ...]:
    """Every seat, group by group."""
    return tuple(StageSeat(group.name, number) for group in groups for number in range(group.count))


def stage_bundle(group: StageGroup) -> Bundle:
    """What each actor of the group reserves."""
    memory = group.nbytes * 21 // 20 + _PROCESS_BYTES
    return Bundle(group.num_cpus, memory, group.num_gpus)


def stage_bundles(groups: Iterable[StageGroup]) -> tuple[Bundle, ...]:
    """The bundle of each seat, as `stage_seats` has them."""
    return tuple(stage_bundle(group) for group in groups for _ in range(group.count))


def stage_shortage(
    groups: Sequence[StageGroup], others: Sequence[Bundle], nodes: Sequence[Mapping[str, float]]
) -> str | None:
    """Why these nodes, were they idle, could not take the groups' actors; None if they might.

    `others` is what runs there besides. Each group has to fit by itself, bundle by bundle, and all
    together by their sums: on one node that is exact, on several the last word is Ray's.
    """
    if not groups:
        return None
    for group in groups:
        bundle = stage_bundle(group)
        room = sum(bundle.places_on(node) for node in nodes)
        if room < group.count:
            need, there = _needs(bundle.resources()), _by_node(bundle.resources(), nodes)
            return (
                f"{group.count} stage actors of {need} each, for {_stages(group)}, do not fit: "
                f"the cluster has room for {room} ({there})"
            )
    needed = _sum(bundle.resources() for bundle in (*stage_bundles(groups), *others))
    lacking = {name for name, need in needed.items() if need > _sum(nodes).get(name, 0.0)}
    if lacking:
        short = {name: need for name, need in needed.items() if name in lacking}
        every = "; ".join(map(_stages, groups))
        return (
            f"the stage actors, for {every}, do not fit beside what runs with them: together they "
            f"need {_needs(short)} ({_by_node(short, nodes)})"
        )
    return None


def _stages(group: StageGroup) -> str:
    return " and ".join(
        f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names)}"
        for kind, names in group.by_kind.items()
    )


def _sum(resources: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in resources:
        for name, amount in one.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _needs(resources: Mapping[str, float]) -> str:
    return " and ".join(_amount(name, need) for name, need in sorted(resources.items()))


def _amount(name: str, amount: float) -> str:
    return f"{amount / 1e9:.2f} GB" if name == "memory" else f"{amount:.4g} {name}"


def _by_node(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    return "; ".join(
        f"{name} by node: {', '.join(_amount(name, node.get(name, 0.0)) for node in nodes)}"
        for name in sorted(resources)
    )
