"""Sends requests of a model on trial to its versions, and copies of some to one that is silent.

A shadow runs once the request has been answered, or has failed, of the arrays that it was decoded
to; a request that was refused casts none, as who has too much to do needs no more of it. It has a
deadline of its own, nobody waits for it, and few are under way at the same time: beyond that they
are dropped, and counted, rather than let wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shardserve.batching.errors import Code, InvalidArgument, ServingError
from shardserve.batching.stage import StageCounts
from shardserve.router import logs
from shardserve.router.catalog import Catalog, Snapshot, Trial
from shardserve.router.experiments import Experiment, Route, route, stickiness
from shardserve.router.metrics import Metrics
from shardserve.router.predict import signature_named
from shardserve.router.servable import Array, RequestContext, Servable, Signature, admit, nbytes_of
from shardserve.router.tensor_types import BY_NUMPY, name_of

#: What versions are in an experiment, as metrics call it.
BASELINE = "baseline"
CANARY = "canary"
SHADOW = "shadow"

#: Ends of a request that was not run to its end, or that nobody waits for.
_REFUSED = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.CANCELLED})


@dataclass(frozen=True)
class ShadowLimits:
    """Of all shadows of a process: how many are under way, the bytes of their inputs together, and
    the seconds that one may take.
    """

    under_way: int = 16
    nbytes: int = 64 << 20
    seconds: float = 30.0


class Trials:
    """Chooses who answers a request of a model on trial, and sends the shadows. One event loop."""

    def __init__(
        self,
        catalog: Catalog,
        metrics: Metrics | None = None,
        limits: ShadowLimits = ShadowLimits(),
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`draw` gives chances in [0, 1)."""
        self._catalog = catalog
        self._metrics = metrics
        self._limits = limits
        self._draw = draw
        self._shadows: set[asyncio.Task[None]] = set()
        self._nbytes = 0
        self._log = logs.logger(entrypoint=SHADOW)

    def choose(self, trial: Trial, context: RequestContext) -> Servable:
        """Who answers. The same for each call with the same context."""
        newest, before = trial.newest, trial.before
        chance = self._chance(trial.experiment, newest.name, context)
        found = route((before.version, newest.version), trial.experiment, chance)
        assert found is not None
        return Tried(self, trial, found)

    def count(self, servable: Servable, role: str, code: Code, seconds: float) -> None:
        """One run of a version in an experiment has ended."""
        if self._metrics is not None:
            self._metrics.experiment(servable.name, servable.version, role, code, seconds)

    def send(self, trial: Trial, shadow: _Shadow) -> None:
        """Begin a shadow soon, or drop it; neither takes long."""
        fits = (
            len(self._shadows) < self._limits.under_way
            and self._nbytes + shadow.nbytes <= self._limits.nbytes
            and self._catalog.is_current(trial)
        )
        if not fits:
            if self._metrics is not None:
                self._metrics.shadow_dropped(trial.newest.name, trial.newest.version)
            return
        self._nbytes += shadow.nbytes
        # Before its task first runs, the request may have left, and its version be freed.
        snapshot = self._catalog.enter()
        task = asyncio.create_task(self._run(trial.newest, shadow), name=SHADOW)
        self._shadows.add(task)
        task.add_done_callback(partial(self._ended, snapshot, shadow.nbytes))

    def _ended(self, snapshot: Snapshot, nbytes: int, task: asyncio.Task[None]) -> None:
        self._shadows.discard(task)
        self._nbytes -= nbytes
        self._catalog.leave(snapshot)

    async def _run(self, servable: Servable, shadow: _Shadow) -> None:
        started = time.perf_counter()
        code = Code.CANCELLED
        try:
            await shadow.run(servable, time.monotonic() + self._limits.seconds)
            code = Code.OK
        except ServingError as error:
            code = error.code
        except Exception:  # noqa: BLE001 (nobody waits for it; a defect of ours is logged)
            self._log.exception("defect", model=servable.name, version=servable.version)
            code = Code.INTERNAL
        finally:
            self.count(servable, SHADOW, code, time.perf_counter() - started)

    def _chance(self, experiment: Experiment, model: str, context: RequestContext) -> float:
        if context.chance is None:
            context.chance = self._drawn(experiment, model, context)
        return context.chance

    def _drawn(self, experiment: Experiment, model: str, context: RequestContext) -> float:
        key = None
        if experiment.key and context.headers is not None:
            key = context.headers.get(experiment.key.lower())
        if key is None:
            return self._draw()
        return stickiness(model, key if isinstance(key, bytes) else key.encode())


class Tried:
    """The version that answers one request of a model on trial, as a `Servable`.

    What it runs is counted. If the request has a shadow, that is sent when there is an answer, or
    an error that is not a refusal.
    """

    def __init__(self, trials: Trials, trial: Trial, found: Route) -> None:
        is_canary = found.answers == trial.newest.version
        self._servable = servable = trial.newest if is_canary else trial.before
        self._role = CANARY if is_canary else BASELINE
        self._trials = trials
        self._trial = trial
        self._has_shadow = found.shadow is not None
        self.name = servable.name
        self.version = servable.version
        self.signatures: Mapping[str, Signature] = servable.signatures
        self.signature_def_map = servable.signature_def_map
        run_tensors = getattr(servable, "run_tensors", None)
        if run_tensors is not None:
            self.run_tensors = run_tensors

    def admit(self, deadline: float) -> None:
        """See `Admitting.admit`."""
        admit(self._servable, deadline)

    async def run(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        context: RequestContext,
    ) -> dict[str, Array]:
        """See `Servable.run`."""
        started = time.perf_counter()
        code = Code.CANCELLED
        try:
            results = await self._servable.run(signature, inputs, outputs, context)
            code = Code.OK
        except ServingError as error:
            code = error.code
            raise
        except Exception:
            code = Code.INTERNAL
            raise
        finally:
            seconds = time.perf_counter() - started
            self._trials.count(self._servable, self._role, code, seconds)
            if self._has_shadow and code not in _REFUSED:
                shadow = _Shadow(signature, inputs, tuple(outputs), context.request_id)
                self._trials.send(self._trial, shadow)
        return results

    def stage_counts(self) -> Mapping[str, StageCounts]:
        """See `Servable.stage_counts`."""
        return self._servable.stage_counts()

    async def close(self) -> None:
        """See `Servable.close`: it holds nothing."""


class _Shadow:
    """What a version is asked that answers nobody."""

    __slots__ = ("_inputs", "_outputs", "_request_id", "_signature", "nbytes")

    def __init__(
        self,
        signature: str,
        inputs: Mapping[str, Array],
        outputs: tuple[str, ...],
        request_id: str,
    ) -> None:
        self._signature = signature
        self._inputs = inputs
        self._outputs = outputs
        self._request_id = request_id
        self.nbytes = nbytes_of(inputs.values())

    async def run(self, servable: Servable, deadline: float) -> None:
        """Raises as `Servable.run` does, and for what the version has no signature of."""
        signature = signature_named(servable, self._signature)
        inputs = _inputs_of(signature, self._inputs)
        missing = [alias for alias in self._outputs if alias not in signature.outputs]
        if missing:
            raise InvalidArgument(f"output tensor alias not found in signature: {missing[0]}")
        admit(servable, deadline)
        context = RequestContext(self._request_id, deadline)
        await servable.run(self._signature, inputs, self._outputs, context)


def _inputs_of(signature: Signature, given: Mapping[str, Array]) -> dict[str, Array]:
    """A request's inputs as another version takes them. Raises InvalidArgument, naming the one."""
    for alias in given:
        if alias not in signature.inputs:
            raise InvalidArgument(f"input alias not found in signature: {alias}")
    found: dict[str, Array] = {**signature.defaults, **given}
    for alias, info in signature.inputs.items():
        if alias not in found:
            raise InvalidArgument(f"Missing but required: {alias}")
        dtype: Any = BY_NUMPY[found[alias].dtype]
        if dtype.number != info.dtype:
            raise InvalidArgument(
                f"input {alias} is to be {name_of(info.dtype)}, and {dtype.name} is provided"
            )
    return found
