"""Which stage actors a cut model asks for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.call_outs import REQUEST
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.graph import Graph, may_write
from shardserve.shards.cut.needs import nodes_run, read_by, regions_run, stages_run
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.cut.staged import Staged, staged, stepping_for_actors
from shardserve.shards.cut.step_loops import LOOPS
from shardserve.shards.regions import ActorOptions
from shardserve.shards.stage_groups import StageGroup, stage_of_loop, stage_of_sequence
from shardserve.shards.stages import Stages


def stage_groups(cut: CutModel, stages: Stages, plan_fingerprint: str) -> tuple[StageGroup, ...]:
    """The groups of actors that the model's regions, sequences and loops name, by name.

    Raises InvalidArgument naming the entry for one that writes to what others read, or looks up
    in a loop or a branch, which has its place in the routers; for entries of one group that ask
    for different actors, or of one name; for a region that has a sequence's or a loop's name,
    whether they have actors or not; and as `staged` does.
    """
    _check_regions(cut, stages)
    cut = stepping_for_actors(cut, stages)
    groups: dict[str, list[Staged]] = {}
    for one in staged(cut, stages):
        groups.setdefault(one.group, []).append(one)
    if not groups:
        return ()
    graph, digest = Graph(cut.graph_def), _digest(cut, plan_fingerprint)
    found = tuple(_group(cut, graph, digest, name, one) for name, one in sorted(groups.items()))
    _check_names(found)
    return found


def _group(
    cut: CutModel, graph: Graph, digest: str, name: str, members: Sequence[Staged]
) -> StageGroup:
    options = _options(name, members)
    for one in members:
        _check(cut, graph, one)
    parts = reduce(or_, [one.parts for one in members])
    nodes = nodes_run(graph, stages_run(cut, parts))
    weights = sum(variable.nbytes for variable in read_by(nodes, cut.variables))
    regions = [one.region for one in regions_run(cut, parts).values()]
    asked = sorted((r.name, r.inputs, r.captured, r.outputs) for r in regions)
    meanings = sorted(repr(one.meaning) for one in members)
    return StageGroup(
        name=name,
        regions=_sorted(region for one in members for region in one.regions),
        count=options.count,
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
        nbytes=cut.graph_def.ByteSize() + weights,
        fingerprint=hashlib.sha256(repr((digest, name, asked, meanings)).encode()).hexdigest(),
        sequences=_sorted(sequence for one in members for sequence in one.sequences),
        loops=_sorted(loop for one in members for loop in one.loops),
    )


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _options(name: str, members: Sequence[Staged]) -> ActorOptions:
    first = members[0]
    for other in members[1:]:
        if other.actors != first.actors:
            raise InvalidArgument(
                f"{first.where} and {other.where} are of group {name!r}, whose actors are alike: "
                f"{first.actors} and {other.actors}"
            )
    return first.actors


def _check(cut: CutModel, graph: Graph, one: Staged) -> None:
    """That asking an actor, and a second one after the first was lost, changes nothing."""
    stages = stages_run(cut, one.parts)
    writers = sorted(
        n for n in nodes_run(graph, stages) if may_write(graph.nodes[n], graph.library)
    )
    if writers:
        raise InvalidArgument(
            f"{one.where}: {writers[0]} may write what others read, so it has to run in the router"
        )
    if any(REQUEST in stage.feeds for stage in stages):
        raise InvalidArgument(
            f"{one.where} looks up in a table in a loop or a branch, so it has to run in the router"
        )


def _check_regions(cut: CutModel, stages: Stages) -> None:
    """Routers know who runs a region, a sequence or a loop by one name."""
    if not cut.regions:
        return
    taken = {stage_of_sequence(name) for name in stages.sequences}
    if stages.loops:
        loops = [node.name for node in cut.graph_def.node if node.op in LOOPS]
        taken.update(loops, map(stage_of_loop, loops))
    for name in sorted(taken & cut.regions.keys()):
        raise InvalidArgument(f"region {name!r}: a sequence or a loop of the model has that name")


def _check_names(groups: Iterable[StageGroup]) -> None:
    names = Counter(stage for group in groups for stage in group.stages)
    for name, count in names.items():
        if count > 1:
            raise InvalidArgument(f"there are {count} stages of the name {name!r} with actors")


def _digest(cut: CutModel, plan_fingerprint: str) -> str:
    """Equal for equal SavedModels that are cut alike."""
    directory = cut.inlined.directory
    digest = hashlib.sha256(plan_fingerprint.encode())
    prefix = checkpoint_prefix(directory)
    for path in (directory / "saved_model.pb", prefix.with_name(prefix.name + ".index")):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()
