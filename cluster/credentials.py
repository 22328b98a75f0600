"""What proves to a shard that a router is of the same cluster, and means the same shard."""

from __future__ import annotations

from shardserve.shards.handshake import Credentials
from shardserve.shards.model import ModelPlan


def shard_credentials(secret: bytes, plan: ModelPlan, shard: int) -> Credentials:
    """Equal on a router and a shard that were given the same plan, and differing by shard."""
    return Credentials(secret, f"{plan.fingerprint}/{shard}")
