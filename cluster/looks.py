"""Looks at base paths, each by itself: a disk that hangs stalls no model but its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shardserve.cluster.base_paths import Found
from shardserve.cluster.configured import ConfiguredModel
from shardserve.cluster.model_config import ModelConfig

#: Base paths that are looked at at the same time, those on disks that hang among them.
_AT_ONCE = 8


@dataclass
class _Look:
    """Of a model as it was configured when this began. `again` asks for another one after it."""

    model: ConfiguredModel
    task: asyncio.Task[None]
    again: bool = False


class Looks:
    """The latest look for each model. Belongs to the running event loop.

    `look` blocks a thread of ours. What it finds goes to `found`; `ended` is called after that.
    """

    def __init__(
        self,
        look: Callable[[ModelConfig], Found],
        found: Callable[[ConfiguredModel, Found], None],
        ended: Callable[[], None],
    ) -> None:
        self._look = look
        self._found = found
        self._ended = ended
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="base-path")
        self._latest: dict[str, _Look] = {}

    def begin(
        self, models: Iterable[ConfiguredModel], *, again: bool = False
    ) -> list[asyncio.Task[None]]:
        """Look at these models' base paths; the looks that begin here.

        One that is under way stands for it, or is asked to look `again`, for what it may have
        missed. A model that is configured otherwise is looked at anew.
        """
        begun = []
        for model in models:
            look = self._latest.get(model.name)
            if look is None or look.task.done() or look.model != model:
                begun.append(self._begin(model))
            else:
                look.again = look.again or again
        return begun

    def are_over(self, model: str) -> bool:
        """Whether nobody looks for the model. Raises what the latest look raised."""
        task = self._latest[model].task
        if not task.done() or task.cancelled():
            return False
        task.result()
        return True

    def forget(self, model: str) -> None:
        """It is configured no more."""
        self._latest.pop(model, None)

    async def abandon(self) -> None:
        """Await no more of them. A thread that hangs stays."""
        tasks = [look.task for look in self._latest.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, model: ConfiguredModel) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._run(model))
        task.add_done_callback(lambda _: self._ended())
        self._latest[model.name] = _Look(model, task)
        return task

    async def _run(self, model: ConfiguredModel) -> None:
        await self._run_once(model)
        while self._is_asked_again(model):
            await self._run_once(model)

    def _is_asked_again(self, model: ConfiguredModel) -> bool:
        """Whether a look of the model as it is configured here is asked for, and none besides."""
        look = self._latest.get(model.name)
        if look is None or look.model is not model or not look.again:
            return False
        look.again = False
        return True

    async def _run_once(self, model: ConfiguredModel) -> None:
        loop = asyncio.get_running_loop()
        self._found(model, await loop.run_in_executor(self._threads, self._look, model.config))
