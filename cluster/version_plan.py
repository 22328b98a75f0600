"""Plans a version of whatever kind. Loads TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shardserve.cluster.configured import Wanted
from shardserve.router import kinds
from shardserve.router.session import StageThreads
from shardserve.shards.cut.cut import CutModel
from shardserve.shards.cut.planning import cut_and_plan
from shardserve.shards.layout import Layout
from shardserve.shards.model import TENSORFLOW, ModelPlan
from shardserve.shards.stages_file import stages_of


def plan_version(
    wanted: Wanted, verified: Callable[[int, int], None]
) -> tuple[CutModel | None, ModelPlan]:
    """The plan of a version, and the cut that it is of, if it can be cut.

    Raises as `cut_and_plan` does, and `stages_of`. What is of another kind than TensorFlow's is not
    looked into: see `check_kind`.
    """
    name, version, directory = wanted.id.model, wanted.id.version, wanted.directory
    options = wanted.options.plan
    if wanted.platform == TENSORFLOW:
        return cut_and_plan(name, version, directory, options, verified)
    stages = stages_of(directory, options.batching)
    nothing = Layout(1, 1, {})
    plan = ModelPlan(
        name,
        version,
        str(directory),
        (),
        nothing,
        {},
        "",
        stages,
        platform=wanted.platform,
        allow_pickle=options.allow_pickle,
        trusted_types=options.trusted_types,
    )
    return None, plan


def version_of(plan: ModelPlan) -> kinds.Version:
    """What a kind is asked to load."""
    return kinds.Version(
        plan.name, plan.version, Path(plan.directory), plan.allow_pickle, plan.trusted_types
    )


def check_kind(plan: ModelPlan) -> None:
    """Load a version that is not TensorFlow's, as every router will. Raises as its kind does."""
    kinds.load_planned(plan.platform, version_of(plan), StageThreads(1), plan.stages)
