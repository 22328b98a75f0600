"""Makes versions able to answer in this process, and ends them. Implements `Deployer`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from shardserve.cluster.configured import Wanted
from shardserve.cluster.local_version import LocalVersion
from shardserve.cluster.progress import Progress
from shardserve.cluster.serving import Runtime
from shardserve.cluster.shard_measures import labelled
from shardserve.cluster.versions import VersionId
from shardserve.router.servable import Servable
from shardserve.shards.measures import Measure


class LocalDeployer:
    """The versions of a process. Others say in the runtime's catalog which of them are asked.

    `changed` is called when the progress of a version has changed.
    """

    def __init__(self, runtime: Runtime, changed: Callable[[], None] = lambda: None) -> None:
        self._runtime = runtime
        self._changed = changed
        self._lookups = ThreadPoolExecutor(thread_name_prefix="lookup")
        self._versions: dict[VersionId, LocalVersion] = {}
        self._loaded: dict[VersionId, LocalVersion] = {}

    @property
    def progress(self) -> dict[VersionId, Progress]:
        """How far each version is."""
        return {version: one.progress for version, one in self._versions.items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is done otherwise than it was asked for."""
        return tuple(text for one in self._versions.values() for text in one.warnings)

    def servables(self, available: Collection[VersionId]) -> dict[VersionId, Servable]:
        """What answers, of the versions that are to."""
        return {v: one.servable for v, one in self._loaded.items() if v in available}

    async def load(self, wanted: Wanted) -> None:
        """See `Deployer.load`."""
        one = LocalVersion(wanted, self._runtime, self._lookups, self._changed)
        self._versions[wanted.id] = one
        try:
            await one.load()
        except BaseException:
            del self._versions[wanted.id]
            raise
        self._loaded[wanted.id] = one

    async def unload(self, version: VersionId) -> None:
        """See `Deployer.unload`. The catalog does not have it any more when this is called."""
        await self._runtime.catalog.quiesce()
        one = self._loaded.pop(version)
        del self._versions[version]
        await one.close()

    async def measures(self) -> list[Measure]:
        """What the shards tell of themselves, as the Ray engine's page has it."""
        return [
            measure
            for version, one in self._loaded.items()
            for measure in labelled(version.model, version.version, one.measures())
        ]
