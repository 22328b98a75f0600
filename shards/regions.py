"""Regions: closed parts of a model's graph that are batched on their own. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardserve.batching.errors import InvalidArgument
from shardserve.batching.parameters import BatchingParameters


@dataclass(frozen=True)
class ActorOptions:
    """The Ray actors that run a stage, instead of the routers; what each of them reserves.

    Stages that name the same `group` run on the same actors, in turns; "" is a group of its own.
    """

    count: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    group: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidArgument(f"actors: count must be at least 1, not {self.count}")
        if min(self.num_cpus, self.num_gpus) < 0:
            raise InvalidArgument("actors: num_cpus and num_gpus must not be negative")


@dataclass(frozen=True)
class Region:
    """A part of the graph between tensors, run as a stage of its own.

    `inputs` and `outputs` are tensors ("op:0") of the inlined graph. All of them have the batch's
    rows as dimension 0. What a region needs besides follows from no input of a signature, but for
    the tensors `captured`: these are fed as they are, and only what agrees in them shares a batch.
    `actors` None: the router runs it.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batching: BatchingParameters = field(default_factory=BatchingParameters)
    actors: ActorOptions | None = None
    captured: tuple[str, ...] = ()


@dataclass(frozen=True)
class RegionPlan:
    """What an actor must know to run a region: the SavedModel, and which part of its graph.

    The graph is that of the MetaGraph with `tags` after inlining; `region.inputs` are fed and
    `region.outputs` fetched.
    """

    directory: str
    tags: tuple[str, ...]
    region: Region
