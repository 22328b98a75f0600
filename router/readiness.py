"""Whether a server answers for every model that it is configured to serve, as a probe asks."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from shardserve.router.catalog import Catalog, State

#: Not under /v1/, where TensorFlow Serving knows of no such thing.
READY_PATH = "/health/ready"


@dataclass(frozen=True)
class Readiness:
    """`missing` are the models that have no version to answer; `draining` before a server stops."""

    draining: bool
    missing: tuple[str, ...]

    @property
    def is_ready(self) -> bool:
        return not self.draining and not self.missing

    def as_json(self) -> bytes:
        return orjson.dumps(
            {"ready": self.is_ready, "draining": self.draining, "missing": self.missing}
        )


def readiness(catalog: Catalog, *, draining: bool) -> Readiness:
    """The readiness of what is served now; models that are configured no more do not count."""
    missing = [
        name
        for name, model in catalog.models.items()
        if model.is_configured
        and not any(one.state is State.AVAILABLE for one in model.versions.values())
    ]
    return Readiness(draining, tuple(sorted(missing)))
