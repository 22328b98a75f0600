"""Which stage actors a model has: how many, what each reserves, and what it runs. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageGroup:
    """Stage actors that are alike; each of them runs all of `regions`, on one device.

    `nbytes` is what an actor keeps of the model: its graph, and the variables that the regions
    read. `fingerprint` is equal for equal regions of equal SavedModels; a router and a stage actor
    of different ones refuse each other.
    """

    name: str
    regions: tuple[str, ...]
    count: int
    num_cpus: float
    num_gpus: float
    nbytes: int
    fingerprint: str


def stage_name(model: str, version: int, region: str) -> str:
    """By what requests name a region: an actor may run those of many models and versions."""
    return f"{model}/{version}/{region}"
