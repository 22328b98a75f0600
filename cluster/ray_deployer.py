"""Makes versions able to answer on a Ray cluster, and ends them. Implements `Deployer`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shardserve.batching.errors import NotFound
from shardserve.cluster.catalog_table import Serving
from shardserve.cluster.configured import Wanted
from shardserve.cluster.deployment import Deployment
from shardserve.cluster.progress import Progress
from shardserve.cluster.router_watch import RouterWatch
from shardserve.cluster.site import Site
from shardserve.cluster.versions import VersionId
from shardserve.shards.measures import Measure


class RayDeployer:
    """The deployments of a run, at most one of each version.

    `publish` tells routers and whoever watches what has changed; it returns the number of the table
    that says so. `progressed` is called when the progress of a version has changed.
    """

    def __init__(
        self,
        site: Site,
        routers: RouterWatch,
        publish: Callable[[], int],
        progressed: Callable[[], None] = lambda: None,
    ) -> None:
        self._progressed = progressed
        self._routers = routers
        self._publish = publish
        self._deployments: dict[VersionId, Deployment] = {}
        self._site = site

    @property
    def servings(self) -> dict[VersionId, Serving]:
        """What routers are to have."""
        found = {version: one.serving for version, one in self._deployments.items()}
        return {version: serving for version, serving in found.items() if serving is not None}

    @property
    def progress(self) -> dict[VersionId, Progress]:
        """How far each version is."""
        return {version: one.progress for version, one in self._deployments.items()}

    def deployment(self, token: str) -> Deployment:
        """The deployment of this token. Raises NotFound for one that has ended."""
        for one in self._deployments.values():
            if one.token == token:
                return one
        raise NotFound(f"there is no deployment {token} any more")

    def of_version(self, version: VersionId) -> Deployment:
        """The deployment of a version. Raises NotFound."""
        if version not in self._deployments:
            raise NotFound(f"{version} is not deployed")
        return self._deployments[version]

    async def load(self, wanted: Wanted) -> None:
        """See `Deployer.load`."""
        deployment = Deployment(self._site, wanted, self._tell, self._progressed)
        self._deployments[wanted.id] = deployment
        try:
            await deployment.bring_up()
            deployment.offer()
            await self._routers.loaded(wanted.id, deployment.token)
            deployment.activate()
            await self._routers.follow(self._publish())
        except asyncio.CancelledError:
            await self._take_back(deployment, self._routers.dropped)
            raise
        except BaseException:
            # Routers may have an earlier deployment of the version, and keep it for the next.
            await self._take_back(deployment, lambda _, number: self._routers.follow(number))
            raise

    async def unload(self, version: VersionId) -> None:
        """See `Deployer.unload`."""
        await self._take_back(self._deployments[version], self._routers.dropped)

    async def measures(self) -> list[Measure]:
        """What all actors tell of themselves, by model, shard or group, and replica."""
        deployments = list(self._deployments.values())
        told = await asyncio.gather(*(one.measures() for one in deployments))
        return [measure for measures in told for measure in measures]

    async def stop(self) -> None:
        """Let all actors answer what has come in, and serve no more."""
        await asyncio.gather(*(one.stop() for one in self._deployments.values()))

    async def _take_back(
        self, deployment: Deployment, routed: Callable[[VersionId, int], Awaitable[None]]
    ) -> None:
        """End a deployment when `routed` says that no router asks it any more."""
        version = deployment.wanted.id
        was_offered = deployment.serving is not None
        deployment.withdraw()
        try:
            if was_offered:
                await routed(version, self._publish())
        finally:
            try:
                await deployment.end()
            finally:
                del self._deployments[version]

    def _tell(self) -> None:
        self._publish()
