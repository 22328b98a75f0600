"""Runs whose driver was killed in a Ray that it had joined: their routers are still there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from shardserve.cluster.kept import Kept, kept_runs
from shardserve.cluster.run import is_name
from shardserve.cluster.stream_actor import NAMESPACE

logger = logging.getLogger(__name__)


def dead(names: Iterable[str], has_controller: Callable[[str], bool]) -> list[str]:
    """Those that are runs of ours without a controller."""
    return [name for name in names if is_name(name) and not has_controller(name)]


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
    """End the routers of dead runs, which hold ports and Serve's route, and forget their notes.

    Blocks until routers have ended, or will not, as on a node that is lost: that stops nobody.
    """
    delete_each(dead(serve.status().applications, has_controller), serve.delete)
    for name in dead(kept_runs(), has_controller):
        Kept(name).forget_all()


def delete_each(runs: Iterable[str], delete: Callable[[str], None]) -> None:
    """End the routers of dead runs, of as many as can be."""
    for run in runs:
        logger.warning("%s has no controller any more: its routers are ended", run)
        try:
            delete(run)
        except (RayServeException, RayError, TimeoutError) as error:
            logger.warning("Serve does not end the routers of %s: %s", run, error)


def delete_soon(run: str) -> None:
    """Have Serve end the routers of a run that is dead, for one of them to call; forget its notes.

    Where Serve itself is gone there is nothing to be ended by it.
    """
    try:
        serve.delete(run, _blocking=False)
        Kept(run).forget_all()
    except (RayServeException, RayError) as error:
        logger.warning("Serve does not end the routers of %s: %s", run, error)
