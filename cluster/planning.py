"""Plans a version in a process of its own, which ends and takes TensorFlow's memory with it."""

from __future__ import annotations

import ray

from shardserve.batching.errors import ServingError
from shardserve.cluster.configured import Wanted
from shardserve.cluster.progress import Failure, failure_of
from shardserve.cluster.stream_actor import NAMESPACE, Post
from shardserve.shards.model import TENSORFLOW, ModelPlan


@ray.remote(num_cpus=0, max_calls=1)
def plan_remotely(wanted: Wanted, post: Post) -> ModelPlan | Failure:
    """See `plan_version`; what it raises comes back as data.

    The controller is told how far the verification of checksums has come.
    """
    from shardserve.cluster.version_plan import check_kind, plan_version  # noqa: PLC0415

    controller = ray.get_actor(post.controller, NAMESPACE)

    def verified(nbytes: int, total: int) -> None:
        controller.verified.remote(post.deployment, nbytes, total)

    try:
        plan = plan_version(wanted, verified)[1]
        if plan.platform != TENSORFLOW:
            check_kind(plan)
        return plan
    except ServingError as error:
        return failure_of(error)
