"""What of a cut model has stage actors, as its stages file names it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.loops import StepLoop
from shardserve.shards.cut.needs import Parts
from shardserve.shards.cut.regions import CutRegion
from shardserve.shards.regions import ActorOptions
from shardserve.shards.sequences_form import LoopEntry, SequenceEntry
from shardserve.shards.stage_groups import stage_of_loop, stage_of_sequence
from shardserve.shards.stages import Stages


@dataclass(frozen=True)
class Staged:
    """One entry of a stages file with actors, and what of the model these run for it.

    `where` names it in errors. `regions`, `sequences` and `loops` are as a `StageGroup` has them.
    What `meaning` says the same of is asked and answered alike.
    """

    where: str
    group: str
    actors: ActorOptions
    parts: Parts
    meaning: tuple[object, ...]
    regions: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    loops: tuple[str, ...] = ()


def stepping_for_actors(cut: CutModel, stages: Stages) -> CutModel:
    """The model with its loops as steps, if some of them have actors. Raises as `stepping` does."""
    if any(entry.actors is not None for entry in stages.loops.values()):
        return cut.stepping(stages.loops)
    return cut


def staged(cut: CutModel, stages: Stages) -> Iterator[Staged]:
    """Every entry that has actors; of loops, as `stepping_for_actors` has the model.

    Raises InvalidArgument naming the entry for a signature that there is not, and for loops none of
    which is a step of that entry's.
    """
    for one in cut.regions.values():
        if one.region.actors is not None:
            yield _region(one, one.region.actors)
    for name, sequence in stages.sequences.items():
        if sequence.actors is not None:
            yield _sequence(cut, name, sequence, sequence.actors.options())
    for name, entry in stages.loops.items():
        if entry.actors is not None:
            yield _loops(cut, name, entry, entry.actors.options())


def _region(one: CutRegion, actors: ActorOptions) -> Staged:
    region = one.region
    return Staged(
        where=f"region {region.name!r}",
        group=actors.group or region.name,
        actors=actors,
        parts=Parts(regions=frozenset([region.name])),
        meaning=(),
        regions=(region.name,),
    )


def _sequence(cut: CutModel, name: str, entry: SequenceEntry, actors: ActorOptions) -> Staged:
    for field, signature in entry.signatures.items():
        if signature not in cut.inlined.signatures:
            known = ", ".join(sorted(cut.inlined.signatures)) or "none"
            raise InvalidArgument(
                f"sequences.{name}.{field}: the model has no signature {signature!r}; it has: "
                f"{known}"
            )
    return Staged(
        where=f"sequences.{name}",
        group=actors.group or stage_of_sequence(name),
        actors=actors,
        parts=Parts(signatures=frozenset(entry.signatures.values())),
        meaning=(name, entry.model_dump_json(exclude={"batching", "actors"})),
        sequences=(name,),
    )


def _loops(cut: CutModel, signature: str, entry: LoopEntry, actors: ActorOptions) -> Staged:
    stepped = {loop.node: loop for by, loop in cut.stepped_loops() if by == signature}
    if not stepped:
        raise InvalidArgument(f"loops.{signature}.actors: {_why_none(cut, signature)}")
    nodes = tuple(sorted(stepped))
    return Staged(
        where=f"loops.{signature}",
        group=actors.group or stage_of_loop(signature),
        actors=actors,
        parts=Parts(loops=frozenset(nodes)),
        # What has more rows is not asked: routers and actors have to agree on how many.
        meaning=(entry.batching.max_batch_size, *(_step(stepped[node]) for node in nodes)),
        loops=nodes,
    )


def _step(loop: StepLoop) -> tuple[object, ...]:
    return (loop.node, loop.call, loop.feeds, loop.fetches, [(n, k.value) for n, k in loop.kept])


def _why_none(cut: CutModel, signature: str) -> str:
    called = {call.region for call in cut.loop_calls(signature)}
    others = sorted({by for by, loop in cut.stepped_loops() if loop.node in called})
    if others:
        return f"its loops are those of {others[0]!r}, whose entry says who steps them"
    reasons = "; ".join(f"{node} stays whole: {why}" for node, why in cut.loops.whole.items())
    return f"none of its loops can be stepped{': ' if reasons else ''}{reasons}"
