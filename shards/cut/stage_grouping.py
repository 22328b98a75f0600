"""Which stage actors a cut model's regions ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from shardserve.batching.errors import InvalidArgument
from shardserve.shards.cut.call_outs import REQUEST
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.graph import Graph, may_write
from shardserve.shards.cut.needs import nodes_run, read_by, with_called
from shardserve.shards.cut.regions import CutRegion
from shardserve.shards.cut.saved_model import checkpoint_prefix
from shardserve.shards.regions import ActorOptions, Region
from shardserve.shards.stage_groups import StageGroup


def stage_groups(cut: CutModel, plan_fingerprint: str) -> tuple[StageGroup, ...]:
    """The groups of actors that the model's regions name, by name.

    Raises InvalidArgument naming the region for one that writes to what others read, or looks up
    in a loop or a branch, which has its place in the routers; and for regions of one group that ask
    for different actors.
    """
    groups: dict[str, list[Region]] = {}
    for one in cut.regions.values():
        if one.region.actors is not None:
            groups.setdefault(one.region.actors.group or one.region.name, []).append(one.region)
    if not groups:
        return ()
    graph, digest = Graph(cut.graph_def), _digest(cut, plan_fingerprint)
    return tuple(
        _group(cut, graph, digest, name, regions) for name, regions in sorted(groups.items())
    )


def _group(
    cut: CutModel, graph: Graph, digest: str, name: str, regions: list[Region]
) -> StageGroup:
    options = _options(name, regions)
    called = with_called([region.name for region in regions], cut.regions)
    nodes = nodes_run(graph, [one.program for one in called.values()])
    _check_writes(graph, nodes, name)
    _check_call_outs(called)
    weights = sum(variable.nbytes for variable in read_by(nodes, cut.variables))
    parts = sorted((r.name, r.inputs, r.captured, r.outputs) for r in _regions(called))
    return StageGroup(
        name=name,
        regions=tuple(sorted(region.name for region in regions)),
        count=options.count,
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
        nbytes=cut.graph_def.ByteSize() + weights,
        fingerprint=hashlib.sha256(repr((digest, name, parts)).encode()).hexdigest(),
    )


def _regions(called: Mapping[str, CutRegion]) -> list[Region]:
    return [one.region for one in called.values()]


def _options(name: str, regions: Iterable[Region]) -> ActorOptions:
    found: Mapping[ActorOptions, str] = {
        region.actors: region.name for region in regions if region.actors is not None
    }
    options, *others = found
    if others:
        raise InvalidArgument(
            f"regions {found[options]!r} and {found[others[0]]!r} are of group {name!r}, whose "
            f"actors are alike: {options} and {others[0]}"
        )
    return options


def _check_writes(graph: Graph, nodes: Iterable[str], name: str) -> None:
    writers = sorted(n for n in nodes if may_write(graph.nodes[n], graph.library))
    if writers:
        raise InvalidArgument(
            f"stage actors {name!r}: {writers[0]} may write what others read, so its region has "
            "to run in the router"
        )


def _check_call_outs(called: Mapping[str, CutRegion]) -> None:
    for name, one in called.items():
        if any(REQUEST in stage.feeds for stage in one.program.stages):
            raise InvalidArgument(
                f"region {name!r} looks up in a table in a loop or a branch, so it has to run in "
                "the router"
            )


def _digest(cut: CutModel, plan_fingerprint: str) -> str:
    """Equal for equal SavedModels that are cut alike."""
    directory = cut.inlined.directory
    digest = hashlib.sha256(plan_fingerprint.encode())
    prefix = checkpoint_prefix(directory)
    for path in (directory / "saved_model.pb", prefix.with_name(prefix.name + ".index")):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()
