"""What to do about a model's versions, so that those that are wanted are ready. Pure.

Level-triggered, as TensorFlow Serving's manager: `want` says which versions there shall be, and
what is not named shall not. Each event returns what is to be done, in order; whoever does it tells
how it ended. The rules are `AvailabilityPreserving`'s and `ResourcePreserving`'s.

Only what may pass by itself is tried again, at intervals; a version that failed for good is tried
again when its files change. TensorFlow Serving does the first for every error, the second never.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shardserve.batching.errors import Cancelled, Code, ServingError

CANCELLED = "Loading of servable cancelled"

#: Errors that may be gone at the next attempt, though nobody has changed anything.
PASSING = frozenset(
    {
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.ABORTED,
        Code.INTERNAL,
        Code.UNKNOWN,
        Code.CANCELLED,
    }
)


#: Versions of a model that have gone, the newest of them, of which it is still told that they had
#: been there. Whoever keeps all of them grows with every version that there ever was.
KEPT_ENDED = 32


class Life(enum.StrEnum):
    """Where a version is in its life. One that is RETRYING waits for its next attempt to load."""

    NEW = "new"
    LOADING = "loading"
    RETRYING = "retrying"
    READY = "ready"
    UNLOADING = "unloading"
    ENDED = "ended"


@dataclass(frozen=True)
class VersionStatus:
    """One version. `files` tells apart different contents of its directory; "" when it has gone.

    `error` says why it ENDED, or what the last attempt to load failed with. `cancelled` while it
    is LOADING in vain.
    """

    version: int
    files: str
    phase: Life = Life.NEW
    is_wanted: bool = True
    failures: int = 0
    retry_at: float = math.inf
    error: ServingError | None = None
    cancelled: bool = False

    @property
    def has_gone(self) -> bool:
        return self.phase is Life.ENDED and not self.is_wanted

    @property
    def holds_resources(self) -> bool:
        return self.phase in (Life.LOADING, Life.READY, Life.UNLOADING)


@dataclass(frozen=True)
class Load:
    """Begin to load it, and say `loaded` or `failed`."""

    version: int


@dataclass(frozen=True)
class CancelLoad:
    """Nobody wants what is loading: end it soon, and say `loaded` or `failed` all the same."""

    version: int


@dataclass(frozen=True)
class Unload:
    """Send no new requests there, let the others finish, free it, and say `unloaded`."""

    version: int


@dataclass(frozen=True)
class WakeAt:
    """Call `tick` at `time`."""

    time: float


Action = Load | CancelLoad | Unload | WakeAt


@dataclass(frozen=True)
class Retries:
    """A version is loaded at most 1 + `most` times, `interval` seconds after each failure.

    And but once, if its error is none of `PASSING`.
    """

    most: int = 5
    interval: float = 60.0


#: From the versions (by number) to the next one to unload or to load, or None.
Policy = Callable[[Sequence[VersionStatus]], Load | Unload | None]


def availability_preserving(versions: Sequence[VersionStatus]) -> Load | Unload | None:
    """Never without an answer, if it can be had: a version goes when its successor is ready.

    An unwanted version is unloaded once a wanted one is ready, or none is wanted, or it is not the
    only unwanted one that is ready.
    """
    unwanted = [v for v in versions if not v.is_wanted and v.phase is Life.READY]
    wanted = [v for v in versions if v.is_wanted]
    succeeded = any(v.phase is Life.READY for v in wanted)
    if unwanted and (succeeded or not wanted or len(unwanted) > 1):
        return Unload(unwanted[0].version)
    return _newest(versions)


def resource_preserving(versions: Sequence[VersionStatus]) -> Load | Unload | None:
    """Never two versions where one is wanted: what goes is gone before its successor loads."""
    unwanted = [v for v in versions if not v.is_wanted]
    for version in unwanted:
        if version.phase is Life.READY:
            return Unload(version.version)
    if any(version.holds_resources for version in unwanted):
        return None
    return _newest(versions)


def _newest(versions: Sequence[VersionStatus]) -> Load | None:
    new = [v.version for v in versions if v.is_wanted and v.phase is Life.NEW]
    return Load(max(new)) if new else None


class Lifecycle:
    """One model's versions. At most `parallel` of them load at the same time.

    Of those that have gone, the `kept` newest are remembered.
    """

    def __init__(
        self,
        policy: Policy = availability_preserving,
        retries: Retries = Retries(),
        parallel: int = 1,
        kept: int = KEPT_ENDED,
    ) -> None:
        self._policy = policy
        self._retries = retries
        self._parallel = parallel
        self._kept = kept
        self._versions: dict[int, VersionStatus] = {}

    @property
    def versions(self) -> Mapping[int, VersionStatus]:
        """Every version that is remembered, by number."""
        return dict(sorted(self._versions.items()))

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way, and nothing will be before the next `want`."""
        return all(v.phase in (Life.READY, Life.ENDED) for v in self._versions.values())

    def want(self, files: Mapping[int, str], now: float) -> list[Action]:
        """From now on, these versions are wanted, and no others; each with what its files are."""
        for version, contents in files.items():
            self._versions[version] = self._wanted(version, contents)
        for version in self._versions.keys() - files.keys():
            self._set(version, is_wanted=False)
        return self._advance(now)

    def loaded(self, version: int, now: float) -> list[Action]:
        """It has been loaded; requests may go there."""
        self._set(version, phase=Life.READY, error=None, cancelled=False)
        return self._advance(now)

    def failed(self, version: int, error: ServingError, now: float) -> list[Action]:
        """An attempt to load it has failed, and holds nothing any more."""
        status = self._versions[version]
        failures = status.failures + 1
        if status.cancelled and status.is_wanted:
            self._versions[version] = VersionStatus(version, status.files)
        elif status.cancelled:
            self._set(version, phase=Life.ENDED, error=Cancelled(CANCELLED), cancelled=False)
        elif failures > self._retries.most or error.code not in PASSING:
            self._set(version, phase=Life.ENDED, error=error, failures=failures)
        else:
            retry_at = now + self._retries.interval
            self._set(
                version,
                phase=Life.RETRYING,
                error=error,
                failures=failures,
                retry_at=retry_at,
            )
        return self._advance(now)

    def unloaded(self, version: int, now: float) -> list[Action]:
        """It is gone, and all that it held is free."""
        self._set(version, phase=Life.ENDED, error=None)
        if self._versions[version].is_wanted:
            self._versions[version] = VersionStatus(version, self._versions[version].files)
        return self._advance(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        return self._advance(now)

    def _wanted(self, version: int, files: str) -> VersionStatus:
        status = self._versions.get(version)
        if status is None:
            return VersionStatus(version, files)
        changed = status.files != files
        failed = status.phase in (Life.ENDED, Life.RETRYING) and changed
        if status.has_gone or failed:
            return VersionStatus(version, files)
        # What is loaded or loading is of the files that were there then.
        return replace(status, is_wanted=True)

    def _advance(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for status in list(self._versions.values()):
            actions += self._without_demand(status) if not status.is_wanted else ()
            if status.phase is Life.RETRYING and status.is_wanted and status.retry_at <= now:
                self._set(status.version, phase=Life.NEW, retry_at=math.inf)
        while (action := self._policy(list(self.versions.values()))) is not None:
            if isinstance(action, Unload):
                self._set(action.version, phase=Life.UNLOADING)
            elif self._loading < self._parallel:
                self._set(action.version, phase=Life.LOADING)
            else:
                break
            actions.append(action)
        self._forget()
        return [*actions, *self._wake()]

    def _forget(self) -> None:
        gone = [version for version, status in self.versions.items() if status.has_gone]
        for version in gone:
            self._set(version, files="")
        for version in gone[: max(0, len(gone) - self._kept)]:
            del self._versions[version]

    @property
    def _loading(self) -> int:
        return sum(status.phase is Life.LOADING for status in self._versions.values())

    def _without_demand(self, status: VersionStatus) -> Iterable[Action]:
        """What has not begun to load never will; what is loading is told to end."""
        if status.phase in (Life.NEW, Life.RETRYING):
            self._set(status.version, phase=Life.ENDED, error=Cancelled(CANCELLED))
        elif status.phase is Life.LOADING and not status.cancelled:
            self._set(status.version, cancelled=True)
            return (CancelLoad(status.version),)
        return ()

    def _wake(self) -> list[Action]:
        times = [v.retry_at for v in self._versions.values() if v.phase is Life.RETRYING]
        return [WakeAt(min(times))] if times else []

    def _set(self, version: int, **changes: object) -> None:
        self._versions[version] = replace(self._versions[version], **changes)  # type: ignore[arg-type]
