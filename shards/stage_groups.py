"""Which stage actors a model has: how many, what each reserves, and what it runs. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StageGroup:
    """Stage actors that are alike; each of them runs all that is named here, on one device.

    That are `regions`, `sequences` by their signatures' names, and `loops` by their nodes. `nbytes`
    is what an actor keeps of the model: its graph, and the variables that these read. `fingerprint`
    is equal for equal stages of equal SavedModels; a router and a stage actor of different ones
    refuse each other.
    """

    name: str
    regions: tuple[str, ...]
    count: int
    num_cpus: float
    num_gpus: float
    nbytes: int
    fingerprint: str
    sequences: tuple[str, ...] = ()
    loops: tuple[str, ...] = ()

    @property
    def by_kind(self) -> Mapping[str, tuple[str, ...]]:
        """What it runs, by what a person calls it."""
        kinds = {"region": self.regions, "sequence": self.sequences, "loop": self.loops}
        return {kind: names for kind, names in kinds.items() if names}

    @property
    def stages(self) -> tuple[str, ...]:
        """What it runs, by the names that these have as stages of their model."""
        return (
            *self.regions,
            *map(stage_of_sequence, self.sequences),
            *map(stage_of_loop, self.loops),
        )


_OF_SEQUENCES, _OF_LOOPS = "sequences/", "loops/"


def is_of_steps(stage: str) -> bool:
    """Whether that is how sequences and loops are named among their model's stages."""
    return stage.startswith((_OF_SEQUENCES, _OF_LOOPS))


def stage_of_sequence(signature: str) -> str:
    """The name of a sequence among its model's stages."""
    return f"{_OF_SEQUENCES}{signature}"


def stage_of_loop(node: str) -> str:
    """The name of a loop among its model's stages."""
    return f"{_OF_LOOPS}{node}"


def stage_name(model: str, version: int, stage: str) -> str:
    """By what requests name a stage: an actor may run those of many models and versions."""
    return f"{model}/{version}/{stage}"
