"""What a manager says of each model, and what follows from that. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shardserve.batching.errors import Code, ServingError, Unknown
from shardserve.cluster.lifecycle import Life, VersionStatus
from shardserve.cluster.versions import VersionId
from shardserve.router.experiments import Experiment
from shardserve.router.request_logging import RequestLogging

_ON_ITS_WAY = (Life.NEW, Life.LOADING)


@dataclass(frozen=True)
class ModelView:
    """One model as it is now.

    `is_settled` once a version has answered, or all have failed, and its labels have been
    assigned. `problems` are what was last found wrong with its base path.
    """

    versions: Mapping[int, VersionStatus]
    labels: Mapping[str, int] = field(default_factory=dict)
    experiment: Experiment = Experiment()  # noqa: RUF009 (frozen)
    logging: RequestLogging | None = None
    is_configured: bool = True
    is_settled: bool = False
    problems: tuple[str, ...] = ()

    @property
    def available(self) -> frozenset[int]:
        return frozenset(v for v, one in self.versions.items() if one.phase is Life.READY)

    def can_settle(self, labels: Mapping[str, int]) -> bool:
        """Whether a version answers, or all have failed; and no version that `labels` name loads.

        A base path that is not there yet, or is empty, is waited for by a model that is new.
        """
        wanted = [one for one in self.versions.values() if one.is_wanted]
        failed = wanted and all(one.phase is Life.ENDED for one in wanted)
        if not (self.is_settled or self.available or failed):
            return False
        named = set(labels.values())
        return not any(one.phase in _ON_ITS_WAY and one.version in named for one in wanted)

    def failures(self) -> dict[int, ServingError]:
        """Why none of its versions answers, by version; empty if one does."""
        if self.available:
            return {}
        return {
            version: one.error
            for version, one in self.versions.items()
            if one.is_wanted and one.error is not None
        }


class NotAvailable(Unknown):
    """Models of which all versions failed. In TensorFlow Serving's words."""

    def __init__(self, failures: Mapping[VersionId, ServingError]) -> None:
        texts = [
            f"{{name: {one.model} version: {one.version}}} due to error: "
            f"{Code(error.code).name}: {error.message}"
            for one, error in failures.items()
        ]
        listed = "".join(f"{{{text}}}, " for text in texts)
        super().__init__(f"{len(texts)} model(s) did not become available: {{{listed}}}")
        self.failures = dict(failures)


def failures_of(views: Mapping[str, ModelView]) -> dict[VersionId, ServingError]:
    """Why models have no version that answers, by version."""
    return {
        VersionId(name, version): error
        for name, view in views.items()
        for version, error in view.failures().items()
    }


def start_error(error: Exception) -> Exception:
    """What to say of a start that failed: of a single version, its own error."""
    if isinstance(error, NotAvailable) and len(error.failures) == 1:
        return next(iter(error.failures.values()))
    return error


def warnings_of(views: Mapping[str, ModelView]) -> tuple[str, ...]:
    """What a person who waits for these models should know."""
    retried = [
        f"{VersionId(name, version)} cannot be loaded, and will be tried again: {one.error.message}"
        for name, view in views.items()
        for version, one in view.versions.items()
        if one.phase is Life.RETRYING and one.error is not None
    ]
    return (*problems_of(views), *retried)


def problems_of(views: Mapping[str, ModelView]) -> tuple[str, ...]:
    """What is wrong with base paths."""
    return tuple(problem for view in views.values() for problem in view.problems)
