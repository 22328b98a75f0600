"""The stages file: YAML that says how each stage is batched, and which regions there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import (
    Auto,
    BatchingParameters,
    BatchPaddingPolicy,
    MixedPriorityPolicy,
    read_batching_parameters,
)
from shardserve.shards.actors_form import ActorsEntry, Name
from shardserve.shards.forms import Strict, read_form
from shardserve.shards.regions import Region
from shardserve.shards.sequences_form import LoopEntry, SequenceEntry
from shardserve.shards.stage_groups import is_of_steps
from shardserve.shards.stages import BatchingOptions, LookupBatching, Stages

#: TensorFlow Serving's name for a model's own parameters, beside its `saved_model.pb`.
PER_MODEL_FILE = "batching_params.pbtxt"

_Count = Annotated[int, Field(ge=1)]
_Number = Annotated[int, Field(ge=0)]
_SignatureName = Annotated[str, Field(min_length=1, max_length=128)]
_Tensors = Annotated[list[str], Field(min_length=1)]


class BatchingEntry(Strict):
    """A stage's parameters, by TensorFlow Serving's names. What is left out is the server's.

    With `batch_timeout_micros: auto` timeout and size are found that hold `p99_target_micros`.
    """

    max_batch_size: _Count | None = None
    batch_timeout_micros: _Number | Literal["auto"] | None = None
    p99_target_micros: _Count | None = None
    max_enqueued_batches: _Number | None = None
    num_batch_threads: _Count | None = None
    allowed_batch_sizes: list[_Count] | None = None
    pad_variable_length_inputs: bool | None = None
    enable_large_batch_splitting: bool | None = None
    max_execution_batch_size: _Number | None = None
    batch_padding_policy: BatchPaddingPolicy | None = None
    low_priority_max_batch_size: _Number | None = None
    low_priority_batch_timeout_micros: _Number | None = None
    low_priority_max_enqueued_batches: _Number | None = None
    low_priority_allowed_batch_sizes: list[_Count] | None = None
    mixed_priority_policy: MixedPriorityPolicy | None = None

    @model_validator(mode="after")
    def _has_a_target(self) -> BatchingEntry:
        if (self.batch_timeout_micros == "auto") != (self.p99_target_micros is not None):
            raise ValueError("batch_timeout_micros: auto and p99_target_micros go together")
        return self

    def parameters(self, where: str, server: BatchingParameters) -> BatchingParameters:
        """The parameters; `where` is named in errors. Raises InvalidArgument."""
        values: dict[str, Any] = {k: v for k, v in self if v is not None}
        target = values.pop("p99_target_micros", None)
        if target is not None:
            values["batch_timeout_micros"] = Auto(target)
        for name in ("allowed_batch_sizes", "low_priority_allowed_batch_sizes"):
            if name in values:
                values[name] = tuple(values[name])
        try:
            return replace(server, **values)
        except InvalidArgument as error:
            raise InvalidArgument(f"{where}: {error.message}") from None


class LookupsEntry(Strict):
    """When lookups of different requests go to a shard as one message; see `LookupBatching`."""

    max_batch_size: _Count | None = None
    max_batch_bytes: _Count | None = None
    max_in_flight_batches: _Count | None = None
    max_enqueued_batches: _Count | None = None

    def parameters(self) -> LookupBatching:
        """As plain data."""
        return LookupBatching(**{k: v for k, v in self if v is not None})


class StageEntries(Strict):
    """The stages that every model has; one that is not named is as the server's flags say.

    Where `requests` is named, whole requests are joined, and of the other stages only those that
    are named besides.
    """

    requests: BatchingEntry | None = None
    ids: BatchingEntry | None = None
    lookups: LookupsEntry | None = None
    dense: BatchingEntry | None = None


class RegionEntry(Strict):
    """A part of the graph, from its input tensors to its output tensors.

    Tensors are named as `saved_model_cli` and `shardserve inspect --stages` show them, or by a
    signature's aliases. A region that the model marks is named without them, to give it actors; it
    is batched as the model says.
    """

    inputs: _Tensors | None = None
    outputs: _Tensors | None = None
    batching: BatchingEntry = BatchingEntry()
    actors: ActorsEntry | None = None

    @model_validator(mode="after")
    def _is_marked_or_has_ends(self) -> RegionEntry:
        if (self.inputs is None) != (self.outputs is None):
            raise ValueError("inputs and outputs go together")
        if self.inputs is None and self.batching != BatchingEntry():
            raise ValueError("a region without inputs and outputs is batched as the model says")
        return self


class StagesFile(Strict):
    """The whole file."""

    version: Literal[1] = 1
    stages: StageEntries = StageEntries()
    regions: dict[Name, RegionEntry] = Field(default_factory=dict)
    sequences: dict[_SignatureName, SequenceEntry] = Field(default_factory=dict)
    loops: dict[_SignatureName, LoopEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_regions_of_their_own_names(self) -> StagesFile:
        for name, entry in self.regions.items():
            if entry.inputs is not None and is_of_steps(name):
                raise ValueError(f"regions.{name}: sequences and loops are named so; take another")
        return self


def read_stages_file(path: Path) -> StagesFile:
    """Parse and validate the form. Raises NotFound or InvalidArgument naming the file and field."""
    return read_form(StagesFile, path)


def stages_of(directory: Path, options: BatchingOptions) -> Stages:
    """The batching of the model version in `directory`.

    Raises NotFound or InvalidArgument naming the file, and the place in it.
    """
    dense = _of_model(directory, options)
    stages = Stages(lookups=None if dense is None else LookupBatching(), dense=dense)
    if options.stages_file is None:
        return stages
    server = stages.dense or options.parameters or BatchingParameters()
    return _with_file(stages, read_stages_file(options.stages_file), server)


def _of_model(directory: Path, options: BatchingOptions) -> BatchingParameters | None:
    if not options.per_model or options.parameters is None:
        return options.parameters
    path = directory / PER_MODEL_FILE
    if not path.exists():
        return None
    # The threads are all models'.
    return replace(
        read_batching_parameters(path),
        num_batch_threads=options.parameters.num_batch_threads,
        thread_pool_name=options.parameters.thread_pool_name,
    )


def _with_file(stages: Stages, file: StagesFile, server: BatchingParameters) -> Stages:
    said = file.stages
    if said.requests is not None:
        stages = Stages(requests=said.requests.parameters("stages.requests", server))
    return Stages(
        requests=stages.requests,
        ids=said.ids.parameters("stages.ids", server) if said.ids else stages.ids,
        lookups=said.lookups.parameters() if said.lookups else stages.lookups,
        dense=said.dense.parameters("stages.dense", server) if said.dense else stages.dense,
        regions=tuple(_region(name, entry, server) for name, entry in file.regions.items()),
        sequences=file.sequences,
        loops=file.loops,
    )


def _region(name: str, entry: RegionEntry, server: BatchingParameters) -> Region:
    return Region(
        name=name,
        inputs=tuple(entry.inputs or ()),
        outputs=tuple(entry.outputs or ()),
        batching=entry.batching.parameters(f"regions.{name}.batching", server),
        actors=entry.actors.options() if entry.actors else None,
    )
