"""What routers are to serve, and where its actors are: one table of it all, replaced whole. Pure.

The controller makes it of what its manager and its deployments say; a router follows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from shardserve.batching.errors import Code
from shardserve.cluster.lifecycle import Life, VersionStatus
from shardserve.cluster.model_views import ModelView
from shardserve.cluster.table import RoutingTable, changes
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import Model, State, Version
from shardserve.router.experiments import Experiment
from shardserve.router.request_logging import RequestLogging
from shardserve.router.servable import Servable

_STATES = {
    Life.NEW: State.START,
    Life.LOADING: State.LOADING,
    Life.RETRYING: State.LOADING,
    Life.READY: State.AVAILABLE,
    Life.UNLOADING: State.UNLOADING,
    Life.ENDED: State.END,
}


@dataclass(frozen=True)
class Serving:
    """A version that routers are to have loaded.

    `deployment` is another each time it is deployed, `fingerprint` only if it is not the same model
    any more. Requests go there while it `is_active`.
    """

    deployment: str
    fingerprint: str
    routing: RoutingTable
    is_active: bool = False


@dataclass(frozen=True)
class VersionEntry:
    """A version's state as GetModelStatus has it, and where it is served, if routers have it."""

    state: State
    code: Code = Code.OK
    message: str = ""
    serving: Serving | None = None


@dataclass(frozen=True)
class ModelEntry:
    """A model. Until it `is_settled` after a controller's start, not all is known of it."""

    versions: Mapping[int, VersionEntry] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    experiment: Experiment = Experiment()  # noqa: RUF009 (frozen)
    logging: RequestLogging | None = None
    is_settled: bool = False
    is_configured: bool = True


@dataclass(frozen=True)
class CatalogTable:
    """Every model that is or was configured. The number rises with every change.

    `opens` once the models of the start are served, so that doors may open. All routers are asked
    for their metrics by a new number in `collect`, to show new certificates by one in `renewed`,
    and to be ready no more, before they end, when it is `draining`. `problems` are for whoever
    watches: what is wrong with the configuration file and with base paths.
    """

    number: int
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    opens: bool = False
    collect: int = 0
    renewed: int = 0
    draining: bool = False
    problems: tuple[str, ...] = ()

    def servings(self) -> dict[VersionId, Serving]:
        """The versions that routers are to have."""
        return {
            VersionId(name, version): entry.serving
            for name, model in self.models.items()
            for version, entry in model.versions.items()
            if entry.serving is not None
        }


def entries(
    views: Mapping[str, ModelView], servings: Mapping[VersionId, Serving]
) -> dict[str, ModelEntry]:
    """The models as a manager sees them, and what has been deployed of them."""
    return {name: _entry(name, view, servings) for name, view in views.items()}


def following(
    table: CatalogTable,
    models: Mapping[str, ModelEntry],
    *,
    problems: tuple[str, ...] = (),
    **changed: object,
) -> CatalogTable:
    """The next table; the same one if nothing has changed. What is not said stays as it is."""
    after = replace(table, models=models, problems=problems, **changed)  # type: ignore[arg-type]
    return table if after == table else replace(after, number=table.number + 1)


def catalog_of(
    models: Mapping[str, ModelEntry], servables: Mapping[VersionId, Servable]
) -> dict[str, Model]:
    """What requests find: every model, and those of its versions that may be asked."""
    return {
        name: Model(
            {
                version: Version(
                    entry.state, servables.get(VersionId(name, version)), entry.code, entry.message
                )
                for version, entry in model.versions.items()
            },
            model.labels,
            model.experiment,
            model.logging,
            model.is_configured,
        )
        for name, model in models.items()
    }


def table_changes(before: CatalogTable, after: CatalogTable) -> list[str]:
    """What became of versions and their actors between two tables, and what new problems are."""
    lines = [f"problem: {one}" for one in after.problems if one not in before.problems]
    for name, model in after.models.items():
        known = before.models.get(name, ModelEntry())
        for version, entry in model.versions.items():
            of = VersionId(name, version)
            lines += [f"{of}: {line}" for line in _changes(known.versions.get(version), entry)]
    return lines


def _entry(name: str, view: ModelView, servings: Mapping[VersionId, Serving]) -> ModelEntry:
    versions = {
        version: _version_entry(status, servings.get(VersionId(name, version)))
        for version, status in view.versions.items()
    }
    # What is no longer configured has settled: whoever serves it is to end that.
    settled = view.is_settled or not view.is_configured
    return ModelEntry(
        versions, view.labels, view.experiment, view.logging, settled, view.is_configured
    )


def _version_entry(status: VersionStatus, serving: Serving | None) -> VersionEntry:
    # Routers keep what is on its way: what is cancelled is not.
    state = State.UNLOADING if status.cancelled else _STATES[status.phase]
    if status.error is None:
        return VersionEntry(state, serving=serving)
    return VersionEntry(state, status.error.code, status.error.message, serving)


def _changes(before: VersionEntry | None, after: VersionEntry) -> Iterable[str]:
    if before is None or before.state is not after.state:
        yield " ".join(filter(None, (after.state.name, after.message)))
    old = before.serving if before is not None else None
    if old is not None and after.serving is not None:
        yield from changes(old.routing, after.serving.routing)
