"""What proves to an actor that a router is of the same cluster, and means the same thing."""

from __future__ import annotations

from shardserve.shards.handshake import Credentials
from shardserve.shards.model import ModelPlan
from shardserve.shards.stage_groups import StageGroup


def shard_credentials(secret: bytes, plan: ModelPlan, shard: int) -> Credentials:
    """Equal on a router and a shard that were given the same plan, and differing by shard."""
    return Credentials(secret, f"{plan.fingerprint}/{shard}")


def stage_credentials(secret: bytes, group: StageGroup) -> Credentials:
    """Equal on a router and a stage actor that run equal regions, and differing by group."""
    return Credentials(secret, f"{group.fingerprint}/stages")
