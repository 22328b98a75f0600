"""What a run of the server on Ray is told when it is made. Plain data."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from shardserve.cluster.model_options import ModelOptions
from shardserve.cluster.options import Application, ManagerOptions, Models
from shardserve.cluster.sessions import Sessions

_NAME = re.compile("shardserve-[0-9a-f]{8}")


def new_name() -> str:
    """A name that no other run has: of its controller, and of its routers' application."""
    return f"shardserve-{secrets.token_hex(4)}"


def is_name(name: str) -> bool:
    """Whether a run may be called so."""
    return _NAME.fullmatch(name) is not None


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
    def sessions(self) -> Sessions:
        """How TensorFlow's sessions are made, on whatever actor."""
        return Sessions() if self.application is None else self.application.doors.sessions

    @property
    def routers(self) -> int:
        """How many routers there are to be."""
        return self.application.ray.routers if self.application is not None else 0
