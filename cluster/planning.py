"""Plans a model in a process of its own, which ends and takes TensorFlow's memory with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ray

from shardserve.batching.errors import ServingError
from shardserve.cluster.progress import Failure, failure_of
from shardserve.cluster.shard_actor import NAMESPACE
from shardserve.shards.model import ModelPlan, PlanOptions


@dataclass(frozen=True)
class Wanted:
    """One version of one model, and how to cut it."""

    name: str
    version: int
    directory: Path
    options: PlanOptions


@ray.remote(num_cpus=0, max_calls=1)
def plan_remotely(wanted: Wanted, controller: str) -> ModelPlan | Failure:
    """See `plan_model`; what it raises comes back as data.

    The controller of that name is told how far the verification of checksums has come.
    """
    from shardserve.shards.cut.planning import plan_model  # noqa: PLC0415 (imports TensorFlow)

    told = ray.get_actor(controller, NAMESPACE).verified.remote
    try:
        return plan_model(wanted.name, wanted.version, wanted.directory, wanted.options, told)
    except ServingError as error:
        return failure_of(error)
