"""What a router has to do when a table comes, so that it serves what the table says. Pure."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from shardserve.cluster.catalog_table import CatalogTable, ModelEntry, Serving
from shardserve.cluster.versions import VersionId
from shardserve.router.catalog import State

_ON_ITS_WAY = (State.START, State.LOADING)


class Has(enum.Enum):
    """How far a router is with a version."""

    LOADING = enum.auto()
    LOADED = enum.auto()
    REFUSED = enum.auto()


@dataclass(frozen=True)
class Held:
    """What a router has of a version: of which deployment, and with which fingerprint."""

    deployment: str
    fingerprint: str
    has: Has


@dataclass(frozen=True)
class TakeUp:
    """Begin to load it. What there is of the same version serves until this does."""

    version: VersionId
    serving: Serving


@dataclass(frozen=True)
class Follow:
    """It is the model that is there already; its actors may be elsewhere."""

    version: VersionId
    serving: Serving


@dataclass(frozen=True)
class Drop:
    """Send no more requests there, and free it when those under way have ended."""

    version: VersionId


Step = TakeUp | Follow | Drop


def steps(
    table: CatalogTable, held: Mapping[VersionId, Held], offered: Collection[VersionId]
) -> list[Step]:
    """What to do; nothing where that is done or under way. `offered` are asked by requests now."""
    servings = table.servings()
    found: list[Step] = []
    for version, serving in servings.items():
        mine = held.get(version)
        if mine is None or not _is_same(mine, serving):
            found.append(TakeUp(version, serving))
        elif mine.has is not Has.REFUSED:
            found.append(Follow(version, serving))
    gone = [version for version in held if version not in servings]
    return found + [
        Drop(version) for version in gone if not (version in offered and _may_come(table, version))
    ]


def shown_after(shown: Mapping[str, ModelEntry], table: CatalogTable) -> dict[str, ModelEntry]:
    """The models as requests find them.

    Of a model that has not settled stays what was known of it, but for versions that are further
    than loading: a controller that was made anew has yet to come to the others.
    """
    return {
        name: entry if entry.is_settled or name not in shown else _updated(shown[name], entry)
        for name, entry in table.models.items()
    }


def _updated(before: ModelEntry, entry: ModelEntry) -> ModelEntry:
    news = {
        version: one
        for version, one in entry.versions.items()
        if version not in before.versions or one.state not in _ON_ITS_WAY
    }
    return replace(before, versions={**before.versions, **news})


def _is_same(mine: Held, serving: Serving) -> bool:
    if mine.has is Has.REFUSED:
        return mine.deployment == serving.deployment
    return mine.fingerprint == serving.fingerprint


def _may_come(table: CatalogTable, version: VersionId) -> bool:
    """Whether a controller that was made anew may not have come to a version yet."""
    model = table.models.get(version.model)
    if model is None:
        return False
    entry = model.versions.get(version.version)
    if entry is None:
        return not model.is_settled
    return entry.state in _ON_ITS_WAY
