"""What a run of the server on Ray is told when it is made. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.options import Application, ManagerOptions, Models


@dataclass(frozen=True)
class Run:
    """One run of the server.

    Where the cluster `can_grow`, room for actors is waited for. Without an `application` there are
    no routers of ours.
    """

    name: str
    models: Models
    can_grow: bool
    defaults: ModelOptions = ModelOptions()  # noqa: RUF009 (frozen)
    manager: ManagerOptions = field(default_factory=ManagerOptions)
    application: Application | None = None

    @property
    def routers(self) -> int:
        """How many routers there are to be."""
        return self.application.ray.routers if self.application is not None else 0
