"""Certificates of authorities that tests make up."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

from shardserve.router.tls import Tls


@dataclass(frozen=True)
class Party:
    """A key and its certificate, in PEM."""

    key: bytes
    cert: bytes


class Authority:
    """Signs certificates for localhost."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.cert = self._ca.cert_pem.bytes()

    def party(self) -> Party:
        issued = self._ca.issue_cert("localhost", "127.0.0.1")
        return Party(issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())

    def server(self, *, clients: Authority | None = None) -> Tls:
        """A server's; with `clients` it asks for certificates that they have signed."""
        own = self.party()
        if clients is None:
            return Tls(own.key, own.cert)
        return Tls(own.key, own.cert, clients.cert, client_verify=True)


def client_context(trusted: bytes, shown: Party | None, directory: Path) -> ssl.SSLContext:
    """A client's, that trusts one authority and shows a certificate, or none."""
    context = ssl.create_default_context(cadata=trusted.decode())
    if shown is not None:
        file = directory / "client.pem"
        file.write_bytes(shown.key + shown.cert)
        context.load_cert_chain(file)
    return context
