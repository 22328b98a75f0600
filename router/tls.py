"""Certificates of the doors. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tls:
    """Certificates in PEM. With `client_verify` a client must show one that `custom_ca` signed.

    The key is a secret: it is in no representation of this.
    """

    server_key: bytes = field(repr=False)
    server_cert: bytes
    custom_ca: bytes = b""
    client_verify: bool = False
