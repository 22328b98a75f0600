"""Certificates of the doors. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from shardserve.batching.errors import FailedPrecondition


@dataclass(frozen=True)
class Tls:
    """Certificates in PEM. With `client_verify` a client must show one that `custom_ca` signed.

    The key is a secret: it is in no representation of this.
    """

    server_key: bytes = field(repr=False)
    server_cert: bytes
    custom_ca: bytes = b""
    client_verify: bool = False


def check_renewal(before: Tls, after: Tls) -> None:
    """Raise FailedPrecondition where doors that are open cannot change so."""
    if before.client_verify != after.client_verify:
        raise FailedPrecondition("client_verify is as it was at the start until the next start")
