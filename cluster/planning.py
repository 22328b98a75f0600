"""Plans versions in processes of their own, which end and take TensorFlow's memory with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import ray
from ray.exceptions import RayError, RayTaskError

from shardserve.batching.errors import ServingError, Unavailable
from shardserve.cluster.configured import Wanted
from shardserve.cluster.progress import Failure, failure_of
from shardserve.cluster.stream_actor import NAMESPACE, Post
from shardserve.cluster.versions import VersionId
from shardserve.shards.model import TENSORFLOW, ModelPlan

logger = logging.getLogger(__name__)

#: Each is a process that loads TensorFlow.
_AT_A_TIME = 4


class Planner:
    """Plans a few versions at a time. Belongs to one event loop."""

    def __init__(self, at_a_time: int = _AT_A_TIME) -> None:
        self._turns = asyncio.Semaphore(at_a_time)

    async def plan(self, wanted: Wanted, post: Post) -> ModelPlan:
        """The plan of a version. Raises as `plan_version` does; a cancelled one ends at once."""
        async with self._turns:
            planning = plan_remotely.remote(wanted, post)
            try:
                planned: ModelPlan | Failure = await planning
            except asyncio.CancelledError:
                ray.cancel(planning, force=True)
                raise
            except RayError as error:
                logger.exception("%s is not planned", wanted.id)
                raise lost_plan(wanted.id, error) from error
        if isinstance(planned, Failure):
            raise planned.error()
        return planned


def lost_plan(version: VersionId, error: RayError) -> ServingError:
    """Why there is no plan, where Ray did not come to its end with it; in one line."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    first, *_ = str(cause).splitlines() or [""]
    return Unavailable(f"{version} is not planned: {type(cause).__name__}: {first}".rstrip(": "))


@ray.remote(num_cpus=0, max_calls=1)
def plan_remotely(wanted: Wanted, post: Post) -> ModelPlan | Failure:
    """See `planned`. The controller is told how far the verification of checksums has come."""
    controller = ray.get_actor(post.controller, NAMESPACE)

    def verified(nbytes: int, total: int) -> None:
        controller.verified.remote(post.deployment, nbytes, total)

    return planned(wanted, verified)


def planned(wanted: Wanted, verified: Callable[[int, int], None]) -> ModelPlan | Failure:
    """See `plan_version`; what it raises comes back as data, without a trace of Ray's."""
    from shardserve.cluster.version_plan import check_kind, plan_version  # noqa: PLC0415

    try:
        plan = plan_version(wanted, verified)[1]
        if plan.platform != TENSORFLOW:
            check_kind(plan)
        return plan
    except Exception as error:
        if not isinstance(error, ServingError):
            logger.exception("%s cannot be planned", wanted.id)
        return failure_of(error)
