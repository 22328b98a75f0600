"""What `shardserve inspect --stages` reports: the stages of each signature and region, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardserve.batching.parameters import Auto, BatchingParameters
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.joining import why_at_front, why_not_ids
from shardserve.shards.cut.marks import batched_by_tensorflow
from shardserve.shards.cut.planning import cut_and_layout
from shardserve.shards.cut.program import Program, Round
from shardserve.shards.cut.regions import RegionCall
from shardserve.shards.cut.scorings import AnyLookup, outputs_of
from shardserve.shards.cut.stage_grouping import stage_groups
from shardserve.shards.model import PlanOptions
from shardserve.shards.regions import ActorOptions, Region
from shardserve.shards.sequences_form import LoopEntry, SequenceEntry
from shardserve.shards.stages import LookupBatching, Stages
from shardserve.shards.stages_file import stages_of

UNBATCHED = "as it comes"


@dataclass(frozen=True)
class StageReport:
    """One stage: tensors in, tensors out, and how requests are joined for it, or why they are not.

    Stages of one `step` run beside each other.
    """

    step: int
    name: str
    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    batching: str


@dataclass(frozen=True)
class ProgramReport:
    """The stages of a signature, or of a region; `note` says what holds of all of them."""

    name: str
    stages: tuple[StageReport, ...]
    note: str = ""


@dataclass(frozen=True)
class LoopReport:
    """A loop, by its node: who steps it, and `where`; who might; or why it stays whole.

    Who that is are signatures.
    """

    node: str
    stepped_by: tuple[str, ...] = ()
    might_be_by: tuple[str, ...] = ()
    whole: str = ""
    where: str = ""


@dataclass(frozen=True)
class StageGraph:
    """A model's stages, and its loops. TensorFlow batches at the nodes `by_tensorflow` by itself.

    `sequences` are the signatures made of steps, and how these are batched.
    """

    directory: Path
    signatures: tuple[ProgramReport, ...]
    regions: tuple[ProgramReport, ...]
    by_tensorflow: tuple[str, ...]
    loops: tuple[LoopReport, ...] = ()
    sequences: tuple[tuple[str, str], ...] = ()


def stage_graph(directory: Path, options: PlanOptions) -> StageGraph:
    """Cut the SavedModel in `directory` and report; raises as `plan_model` does."""
    stages = stages_of(directory, options.batching)
    cut, _ = cut_and_layout(directory, options, stages.regions)
    stage_groups(cut, stages, "")  # For what it refuses.
    loops = tuple(_loops(cut, stages.loops))
    cut = cut.stepping(stages.loops)
    reporter = _Reporter(cut, stages)
    return StageGraph(
        directory,
        tuple(reporter.signature(name) for name in sorted(cut.programs)),
        tuple(reporter.region(name) for name in sorted(cut.regions)),
        batched_by_tensorflow(cut.graph_def),
        loops,
        tuple((name, _sequence(entry)) for name, entry in stages.sequences.items()),
    )


def _loops(cut: CutModel, stepped: Mapping[str, LoopEntry]) -> Iterator[LoopReport]:
    """Every loop of the signatures."""
    names = sorted(cut.inlined.signatures)
    every = cut.stepping(names)
    by_node: dict[str, list[str]] = {}
    for name in names:
        for call in every.loop_calls(name):
            by_node.setdefault(call.region, []).append(name)
    for node, signatures in by_node.items():
        might = tuple(name for name in signatures if name not in stepped)
        stepping = tuple(name for name in signatures if name in stepped)
        where = _where(_actors(stepped[stepping[0]])) if stepping else ""
        yield LoopReport(node, stepping, might, where=where)
    for node, reason in every.loops.whole.items():
        yield LoopReport(node, whole=reason)


def _sequence(entry: SequenceEntry) -> str:
    how = _rows(entry.batching.parameters())
    return f"steps of {entry.step!r}, {how}, {_where(_actors(entry))}"


def _actors(entry: LoopEntry | SequenceEntry) -> ActorOptions | None:
    return None if entry.actors is None else entry.actors.options()


class _Reporter:
    def __init__(self, cut: CutModel, stages: Stages) -> None:
        self._cut = cut
        self._stages = stages
        #: Where each loop that is stepped runs, by its node.
        self._loops = {
            loop.node: _where(_actors(stages.loops[name])) for name, loop in cut.stepped_loops()
        }

    def signature(self, name: str) -> ProgramReport:
        program = self._cut.program_for(name, self._cut.inlined.signatures[name].outputs)
        if self._stages.requests is not None:
            note = f"whole requests are joined ({_parameters(self._stages.requests)})"
            return ProgramReport(name, tuple(self._of(program, self._stages)), note)
        dense = self._stages.dense
        reasons = () if dense is None else why_at_front(self._cut, program, dense)
        if dense is None or not reasons or name in self._cut.stepped:
            return ProgramReport(name, tuple(self._of(program, self._stages)))
        note = (
            f"requests are joined before the first stage ({_parameters(dense)}), not before the "
            f"last: {'; '.join(reasons)}"
        )
        front = Stages(lookups=self._stages.lookups)
        return ProgramReport(name, tuple(self._of(program, front)), note)

    def region(self, name: str) -> ProgramReport:
        one = self._cut.regions[name]
        alone = Stages(lookups=self._stages.lookups)
        return ProgramReport(name, tuple(self._of(one.program, alone)), _of_region(one.region))

    def _of(self, program: Program, stages: Stages) -> Iterator[StageReport]:
        step = 0
        for part in program.rounds:
            if part.stage.fetches:
                step += 1
                feeds, fetches = part.stage.feeds, part.stage.fetches
                yield StageReport(step, "ids", feeds, fetches, self._ids(part, stages))
            step += 1
            yield from self._calls(step, part, stages.lookups)
        if program.dense.fetches:
            how = UNBATCHED if stages.dense is None else _parameters(stages.dense)
            dense = program.dense
            yield StageReport(step + 1, "dense", dense.feeds, dense.fetches, how)

    def _ids(self, part: Round, stages: Stages) -> str:
        if stages.ids is None:
            return UNBATCHED
        reasons = why_not_ids(self._cut, part.stage, stages.ids)
        if reasons:
            return f"{UNBATCHED}: {'; '.join(reasons)}"
        return _parameters(stages.ids)

    def _calls(
        self, step: int, part: Round, lookups: LookupBatching | None
    ) -> Iterator[StageReport]:
        if part.lookups:
            how = UNBATCHED if lookups is None else _merged(lookups)
            feeds = dict.fromkeys(t for one in part.lookups for t in one.operands)
            fetches = tuple(t for one in part.lookups for t in outputs_of(one))
            yield StageReport(step, _tables(part.lookups), tuple(feeds), fetches, how)
        for call in part.regions:
            yield self._call(step, call)

    def _call(self, step: int, call: RegionCall) -> StageReport:
        if call.region in self._cut.loops.loops:
            how = f"stepped for all requests together, {self._loops[call.region]}"
            return StageReport(step, f"loop {call.region}", call.operands, call.outputs, how)
        region = self._cut.regions[call.region].region
        name = f"region {region.name}"
        return StageReport(step, name, call.operands, call.outputs, _of_region(region))


def _tables(lookups: Sequence[AnyLookup]) -> str:
    tables = list(dict.fromkeys(one.table for one in lookups))
    return f"lookups in {', '.join(tables[:3])}{', ...' if len(tables) > 3 else ''}"


def _of_region(region: Region) -> str:
    where = _where(region.actors)
    same = f", where {', '.join(region.captured)} agree" if region.captured else ""
    return f"{_parameters(region.batching)}, {where}{same}"


def _where(actors: ActorOptions | None) -> str:
    if actors is None:
        return "in the router"
    where = f"on {actors.count} actors of {actors.num_cpus:g} CPUs"
    where += f" and {actors.num_gpus:g} GPUs" if actors.num_gpus else ""
    return where + (f", group {actors.group}" if actors.group else "")


def _parameters(batching: BatchingParameters) -> str:
    timeout = batching.batch_timeout_micros
    if isinstance(timeout, Auto):
        waits = f"a size and timeout that hold a p99 of {timeout.p99_target_micros} us"
    else:
        waits = f"a timeout of {timeout} us"
    sizes = f"batches of up to {batching.execution_size} rows, {waits}"
    if batching.allowed_batch_sizes:
        sizes += f", padded to {', '.join(map(str, batching.allowed_batch_sizes))}"
    return sizes


def _rows(batching: BatchingParameters) -> str:
    return f"in a running batch of up to {batching.max_batch_size} rows"


def _merged(lookups: LookupBatching) -> str:
    return (
        f"{lookups.max_in_flight_batches} messages to a shard at once, each of up to "
        f"{lookups.max_batch_size} rows"
    )
