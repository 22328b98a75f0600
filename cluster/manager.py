"""Keeps what is served as the configuration and the base paths say: drives the lifecycles.

The decisions are `Lifecycle`'s, what they take is the deployer's (shards to place, routers to
tell); this is between them. One for all models, on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from shardserve.batching.errors import Aborted, ServingError
from shardserve.cluster.base_paths import Found, look
from shardserve.cluster.broadcast import Broadcast
from shardserve.cluster.configured import ConfiguredModel
from shardserve.cluster.labels import check_labels
from shardserve.cluster.lifecycle import Lifecycle
from shardserve.cluster.looks import Looks
from shardserve.cluster.managed_model import Deployer, ManagedModel, Surroundings
from shardserve.cluster.model_config import ModelConfig, check_platforms
from shardserve.cluster.model_views import ModelView, NotAvailable, failures_of
from shardserve.cluster.options import ManagerOptions

__all__ = ["Deployer", "Manager"]

logger = logging.getLogger(__name__)

#: Models that are configured no more, the last of them, of which it is still told what became.
KEPT_MODELS = 64


class Manager:
    """Makes so what is configured. `changed` is called after anything has become different.

    Versions that lie outside of all `roots` are not loaded, if there are any. `look` blocks a
    thread of the manager's own.
    """

    def __init__(
        self,
        deployer: Deployer,
        options: ManagerOptions,
        changed: Callable[[Mapping[str, ModelView]], None] = lambda _: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        roots: Sequence[Path] = (),
        look: Callable[[ModelConfig], Found] = look,
    ) -> None:
        self._options = options
        self._changed = changed
        self._pause = pause
        self._progressed = Broadcast()
        self._looks = Looks(look, self._found, self._progressed.send)
        self._models: dict[str, ManagedModel] = {}
        self._configured: tuple[ConfiguredModel, ...] = ()
        self._loads = asyncio.Semaphore(max(1, options.initial_loads))
        self._surroundings = Surroundings(deployer, lambda: self._loads, roots, self._tell)
        self._settling: dict[int, asyncio.Task[list[ServingError]]] = {}
        self._generation = 0

    @property
    def models(self) -> dict[str, ModelView]:
        """The models that are configured, and the last that were, by name."""
        return {name: one.view() for name, one in self._models.items()}

    async def configure(
        self,
        models: Sequence[ConfiguredModel],
        adopted: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Serve exactly these from now on; what is not among them goes.

        Returns when each model that is new has a version that answers, and labels are assigned.
        Raises InvalidArgument, and changes nothing, for a platform that changes; otherwise
        `adopted` is awaited once nothing is refused any more. Raises `NotAvailable` when a model's
        versions all failed, FailedPrecondition for a label whose version does not answer; the other
        models and labels stand then. Aborted if another configuration comes before all that.
        Who is cancelled only waits no more: the configuration stands, labels too.
        """
        check_platforms(
            [model.config for model in self._configured], [model.config for model in models]
        )
        self._adopt(tuple(models))
        mine = self._configured
        new = [model.name for model in mine if not self._models[model.name].is_settled]
        is_waited_for = self._generation in self._settling
        settling = self._settling_of(mine)
        if is_waited_for:
            self._looks.begin(mine, again=True)
        if adopted is not None:
            await asyncio.shield(asyncio.ensure_future(adopted()))
        refusals = await asyncio.shield(settling)
        views = self.models
        failures = failures_of({name: views[name] for name in new if name in views})
        if failures:
            raise NotAvailable(failures)
        if refusals:
            raise refusals[0]

    async def poll(self) -> None:
        """Look at the base paths once, and begin what that asks for.

        One that is being looked at already, as on a disk that hangs, is left to that.
        """
        await asyncio.gather(*self._looks.begin(self._configured))

    async def run(self) -> None:
        """Poll for ever. With `poll_seconds` of 0 or less nothing is polled."""
        async with asyncio.TaskGroup() as polls:
            while self._options.poll_seconds > 0:
                await self._pause(self._options.poll_seconds)
                polls.create_task(self._poll_or_tell())

    async def _poll_or_tell(self) -> None:
        try:
            await self.poll()
        except Exception:
            logger.exception("base paths were not looked at this time")

    def started(self) -> None:
        """From now on, loading is not to disturb what is served: fewer versions load at once."""
        self._loads = asyncio.Semaphore(max(1, self._options.loads))

    async def abandon(self) -> None:
        """Begin nothing more, and end what is under way. What is loaded stays."""
        await self._looks.abandon()
        for settling in list(self._settling.values()):
            settling.cancel()
        await asyncio.gather(*(one.abandon() for one in self._models.values()))

    def _found(self, model: ConfiguredModel, found: Found) -> None:
        managed = self._models.get(model.name)
        # It may have been configured anew meanwhile, or no more.
        if managed is not None and managed.is_configured and managed.model == model:
            managed.want(found)

    def _adopt(self, models: tuple[ConfiguredModel, ...]) -> None:
        wanted = {model.name: model for model in models}
        for name, managed in list(self._models.items()):
            if managed.is_configured and name not in wanted:
                managed.end()
                # The last that ended is the last to be forgotten.
                self._models[name] = self._models.pop(name)
        for name, model in wanted.items():
            if name not in self._models:
                self._models[name] = self._new_model(model)
            managed = self._models[name]
            managed.model, managed.is_configured = model, True
        if models != self._configured:
            self._configured = models
            self._generation += 1
        self._forget()
        self._tell()

    def _forget(self) -> None:
        gone = [name for name, managed in self._models.items() if managed.has_gone]
        for name in gone[: max(0, len(gone) - KEPT_MODELS)]:
            del self._models[name]
            self._looks.forget(name)

    def _new_model(self, model: ConfiguredModel) -> ManagedModel:
        options = self._options
        # All that may load at once may be versions of one model.
        most = max(1, options.loads, options.initial_loads)
        lifecycle = Lifecycle(options.policy, options.retries, most)
        return ManagedModel(model, lifecycle, self._surroundings)

    def _settling_of(self, models: tuple[ConfiguredModel, ...]) -> asyncio.Task[list[ServingError]]:
        """One task for each configuration, however many wait for it, and however long."""
        generation = self._generation
        if generation not in self._settling:
            settling = asyncio.ensure_future(self._settle(models, generation))
            self._settling[generation] = settling
            settling.add_done_callback(partial(self._has_settled, generation))
        return self._settling[generation]

    def _has_settled(self, generation: int, settling: asyncio.Task[list[ServingError]]) -> None:
        del self._settling[generation]
        if not settling.cancelled():
            settling.exception()  # Perhaps nobody waits for it any more.

    async def _settle(
        self, models: tuple[ConfiguredModel, ...], generation: int
    ) -> list[ServingError]:
        """Wait for each of these models, and assign its labels; what was refused of them."""
        self._looks.begin(models, again=True)
        refusals: list[ServingError] = []
        waiting = list(models)
        while waiting:
            if self._generation != generation:
                raise Aborted("another configuration came before this one was served")
            for model in [model for model in waiting if self._can_settle(model)]:
                waiting.remove(model)
                refusals += self._assign_labels(self._models[model.name])
            if waiting:
                await self._progressed.wait()
        return refusals

    def _can_settle(self, model: ConfiguredModel) -> bool:
        if not self._looks.are_over(model.name):
            return False
        return self._models[model.name].view().can_settle(model.config.labels)

    def _assign_labels(self, managed: ManagedModel) -> Iterable[ServingError]:
        """All of the model's labels, or none of them, with the error."""
        config = managed.model.config
        refused: tuple[ServingError, ...] = ()
        try:
            check_labels(
                config.name,
                config.labels,
                managed.view().available,
                managed.labels,
                allow_unavailable=self._options.allow_labels_for_unavailable,
            )
            managed.labels = dict(config.labels)
        except ServingError as error:
            refused = (error,)
        managed.is_settled = True
        self._tell()
        return refused

    def _tell(self) -> None:
        # Who waits goes on whatever becomes of those who are told.
        self._progressed.send()
        self._changed(self.models)
