"""Where the configuration comes from: the start, the file when it is read again, a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from shardserve.batching.errors import Aborted, ServingError
from shardserve.batching.text_messages import read_text
from shardserve.cluster.configured import ConfiguredModel, configured
from shardserve.cluster.model_config import ModelConfig, parse_model_config, parse_reload
from shardserve.cluster.model_options import ModelOptions, read_model_options
from shardserve.cluster.options import Models
from shardserve.cluster.permitted import permitted
from shardserve.cluster.progress import failure_of

logger = logging.getLogger(__name__)

#: Between two attempts to learn what was configured before.
_RETRY_SECONDS = 5.0

Configure = Callable[[Sequence[ConfiguredModel]], Awaitable[None]]


class ModelSource:
    """Reads configurations. Its calls block while files are read; each raises a `ServingError`."""

    def __init__(self, models: Models, defaults: ModelOptions) -> None:
        self._models = models
        self._defaults = defaults
        #: Models of the options file that are not configured.
        self._strangers: set[str] = set()
        #: What is wrong with the file, "" if nothing is.
        self.problem = ""
        #: What the file said when it was last read again.
        self.text = ""

    @property
    def poll_seconds(self) -> float:
        return self._models.poll_seconds

    @property
    def is_polled(self) -> bool:
        """Whether there is a file that is to be read again."""
        return self._models.config_file is not None and self._models.poll_seconds > 0

    def at_start(self) -> tuple[ConfiguredModel, ...]:
        """What the command line says."""
        return self._with_options(self._models.configs)

    def read_again(self) -> tuple[ConfiguredModel, ...]:
        """What the file says now."""
        assert self._models.config_file is not None
        self.text = read_text(self._models.config_file)
        return self.said(self.text)

    def said(self, text: str) -> tuple[ConfiguredModel, ...]:
        """What a file of this text says."""
        return self._with_options(parse_model_config(text, str(self._models.config_file)))

    def requested(self, config: bytes) -> tuple[ConfiguredModel, ...]:
        """What a reload request asks for, a serialised `ModelServerConfig`."""
        return self._with_options(parse_reload(config))

    def note(self, problem: str) -> bool:
        """Whether this is news of the file; it is logged then."""
        if problem == self.problem:
            return False
        self.problem = problem
        if problem:
            logger.error("configuration file: %s", problem)
        return True

    def _note_strangers(self, names: set[str]) -> None:
        """Log, once, the models that only the options file knows."""
        if names != self._strangers:
            self._strangers = names
            for name in sorted(names):
                logger.warning(
                    "%s has options of model %r, which is not configured",
                    self._models.options_file,
                    name,
                )

    def _with_options(self, configs: Sequence[ModelConfig]) -> tuple[ConfiguredModel, ...]:
        configs = permitted(configs, self._models)
        file = self._models.options_file
        own = {} if file is None else read_model_options(file, self._defaults)
        self._note_strangers(set(own) - {config.name for config in configs})
        return configured(configs, own, self._defaults)


async def first_models(
    source: ModelSource,
    reloaded: bytes | None,
    followed: str | None,
    *,
    was_open: bool,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> tuple[ConfiguredModel, ...]:
    """What was last configured, as far as is known: by a reload, by the file, at the start.

    A file that is wrong counts as it was `followed` last. At a first start it raises as
    `ModelSource` does. Where the doors `was_open` before, what is wrong otherwise is logged and
    waited out: routers serve on with what they have.
    """
    while True:
        try:
            return await asyncio.to_thread(_first, source, reloaded, followed, was_open)
        except ServingError as error:
            if not was_open:
                raise
            logger.error("not configured again: %s", error.message)
        await pause(_RETRY_SECONDS)


def _first(
    source: ModelSource, reloaded: bytes | None, followed: str | None, was_open: bool
) -> tuple[ConfiguredModel, ...]:
    if reloaded is not None:
        return source.requested(reloaded)
    if not (was_open and source.is_polled):
        return source.at_start()
    try:
        return source.read_again()
    except ServingError as error:
        source.note(error.message)
    return source.at_start() if followed is None else source.said(followed)


async def follow_file(
    source: ModelSource,
    configure: Configure,
    changed: Callable[[], None] = lambda: None,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Read the file every so often, for ever, and configure what it says.

    What is wrong, whatever error it is, is logged, and is the source's `problem` until it is put
    right; `changed` is called then. What was served goes on meanwhile. With no file, or none that
    is to be polled, it does nothing.
    """

    def note(problem: str) -> None:
        if source.note(problem):
            changed()

    if not source.is_polled:
        return
    async with asyncio.TaskGroup() as group:
        before: tuple[tuple[ConfiguredModel, ...], asyncio.Task[None]] | None = None
        while True:
            await pause(source.poll_seconds)
            try:
                found = await asyncio.to_thread(source.read_again)
            except Exception as error:  # noqa: BLE001 (it is told; the next round may go well)
                note(_problem_of(error))
                continue
            if before is None or before[1].done() or before[0] != found:
                before = found, group.create_task(_configure(configure, found, note))


async def _configure(
    configure: Configure, models: Sequence[ConfiguredModel], note: Callable[[str], None]
) -> None:
    try:
        await configure(models)
    except Aborted:
        return  # What came instead has its own word.
    except Exception as error:  # noqa: BLE001 (it is told; other configurations may go well)
        note(_problem_of(error))
    else:
        note("")


def _problem_of(error: Exception) -> str:
    if not isinstance(error, ServingError):
        logger.error("the configuration file is not followed this time", exc_info=error)
    return failure_of(error).message
