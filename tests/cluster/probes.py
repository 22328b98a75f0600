"""Probes of a server over TLS, as of a client that trusts one authority."""

from __future__ import annotations

import asyncio
import http.client
import ssl
from pathlib import Path

from tests.router.certificates import Authority, client_context


async def probed(port: int, authority: Authority, directory: Path) -> int | None:
    """The status of /health/ready; None if the server's certificate is of somebody else."""
    context = client_context(authority.cert, None, directory)

    def ask() -> int | None:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status
        except ssl.SSLCertVerificationError:
            return None
        finally:
            connection.close()

    return await asyncio.to_thread(ask)
