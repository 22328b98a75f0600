"""The key `actors` of the stages file: which Ray actors run a stage instead of the routers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shardserve.shards.forms import Strict
from shardserve.shards.regions import ActorOptions

#: What a region, or a group of actors, may be called.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9.][A-Za-z0-9_.\-/]*$", max_length=256)]


class ActorsEntry(Strict):
    """The Ray actors that run a region, a sequence or a signature's loops; see `ActorOptions`.

    Those that name the same group share its actors, one device each.
    """

    count: Annotated[int, Field(ge=1)] = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    group: Name | None = None

    def options(self) -> ActorOptions:
        """As plain data."""
        return ActorOptions(self.count, self.num_cpus, self.num_gpus, self.group or "")
