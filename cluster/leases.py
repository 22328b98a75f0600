"""Which routers there are, and what each of them has loaded, as they last said. Pure.

A router says it again with every question for the next table, so a controller that is made anew
learns it all; who has asked nothing for a lease's time is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shardserve.cluster.progress import Failure
from shardserve.cluster.versions import VersionId

#: Longer than a router's longest question, and some misfortune besides.
LEASE_SECONDS = 15.0


@dataclass(frozen=True)
class RouterReport:
    """All that a router has to say. What it does not name it does not have.

    `number` rises with each. `applied` is the number of the table that it follows. `loaded` and
    `refused` name deployments; `held` has every version that takes anything of the router, loading
    ones included.
    """

    number: int = 0
    applied: int = -1
    loaded: Mapping[VersionId, str] = field(default_factory=dict)
    refused: Mapping[str, Failure] = field(default_factory=dict)
    held: frozenset[VersionId] = frozenset()


class Leases:
    """The routers, by their ids."""

    def __init__(self, seconds: float = LEASE_SECONDS) -> None:
        self._seconds = seconds
        self._until: dict[str, float] = {}
        self._reports: dict[str, RouterReport] = {}

    @property
    def reports(self) -> Mapping[str, RouterReport]:
        """The last word of each router there is."""
        return dict(self._reports)

    def heard(self, router: str, report: RouterReport, now: float) -> None:
        """A router has said this. A report that another one overtook does not count."""
        known = self._reports.get(router)
        self._until[router] = now + self._seconds
        if known is None or report.number >= known.number:
            self._reports[router] = report

    def left(self, router: str) -> None:
        """A router says that it goes."""
        self._until.pop(router, None)
        self._reports.pop(router, None)

    def renew(self, now: float) -> None:
        """Begin the leases of all routers there are anew."""
        self._until = dict.fromkeys(self._until, now + self._seconds)

    def expire(self, now: float) -> frozenset[str]:
        """Forget the routers whose leases are over; who they were."""
        gone = frozenset(router for router, until in self._until.items() if until <= now)
        for router in gone:
            self.left(router)
        return gone


def all_have_loaded(
    reports: Iterable[RouterReport], version: VersionId, deployment: str, at_least: int = 0
) -> bool:
    """Whether every router, and there are so many, has loaded that deployment of a version."""
    found = list(reports)
    return len(found) >= at_least and all(one.loaded.get(version) == deployment for one in found)


def refusal_of(reports: Iterable[RouterReport], deployment: str) -> Failure | None:
    """Why some router cannot load a deployment; None if none has said so."""
    refusals = (one.refused.get(deployment) for one in reports)
    return next((one for one in refusals if one is not None), None)


def all_follow(reports: Iterable[RouterReport], number: int) -> bool:
    """Whether every router has applied the table of this number, or a later one."""
    return all(one.applied >= number for one in reports)


def all_have_dropped(reports: Iterable[RouterReport], version: VersionId, number: int) -> bool:
    """Whether no router has anything of a version any more, that it dropped with that table."""
    return all(one.applied >= number and version not in one.held for one in reports)
