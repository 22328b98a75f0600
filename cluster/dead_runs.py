"""Runs whose driver was killed in a Ray that it had joined: their routers are still there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from shardserve.cluster.run import is_name
from shardserve.cluster.stream_actor import NAMESPACE

logger = logging.getLogger(__name__)


def dead(applications: Iterable[str], has_controller: Callable[[str], bool]) -> list[str]:
    """Those of Serve's applications that are runs of ours without a controller."""
    return [name for name in applications if is_name(name) and not has_controller(name)]


def has_controller(run: str) -> bool:
    """Whether Ray has a controller of that run, or is to make it anew. It blocks."""
    try:
        ray.get_actor(run, NAMESPACE)
    except ValueError:
        return False
    except RayError:  # Ray itself does not answer, so nothing is known.
        return True
    return True


def delete_dead() -> None:
    """End the routers of dead runs, which hold ports and Serve's route. Blocks until they have."""
    for name in dead(serve.status().applications, has_controller):
        logger.warning("%s has no controller any more: its routers are ended", name)
        serve.delete(name)


def delete_soon(run: str) -> None:
    """Have Serve end the routers of a run that is dead, for one of them to call.

    Where Serve itself is gone there is nothing to be ended by it.
    """
    try:
        serve.delete(run, _blocking=False)
    except (RayServeException, RayError) as error:
        logger.warning("Serve does not end the routers of %s: %s", run, error)
