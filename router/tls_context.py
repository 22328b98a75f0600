"""What a TLS server needs, of certificates in memory."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shardserve.batching.errors import InvalidArgument
from shardserve.router.tls import Tls

_PROTOCOL = "http/1.1"


def server_context(tls: Tls) -> ssl.SSLContext:
    """For an HTTP server. Raises InvalidArgument, naming the part that is wrong, and no content."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([_PROTOCOL])
    _check_certificates(tls.server_cert, "server_cert")
    _load_key(context, tls)
    if tls.custom_ca:
        _check_certificates(tls.custom_ca, "custom_ca")
        context.load_verify_locations(cadata=tls.custom_ca.decode())
    if tls.client_verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class RenewableContext(ssl.SSLContext):
    """For a server whose certificates change while it listens: each handshake has the latest.

    Connections that are open stay as they are. Raises as `server_context`.
    """

    _latest: ssl.SSLContext

    def __new__(cls, tls: Tls) -> RenewableContext:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made._latest = server_context(tls)
        return made

    def renew(self, tls: Tls) -> None:
        """Use these from the next handshake on. Raises as `server_context`, and changes nothing."""
        self._latest = server_context(tls)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """What an event loop makes of each connection."""
        return self._latest.wrap_bio(*args, **kwargs)


def _check_certificates(pem: bytes, name: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise InvalidArgument(f"{name} is not a certificate in PEM") from None


def _load_key(context: ssl.SSLContext, tls: Tls) -> None:
    with _file_in_memory(tls.server_cert) as cert, _file_in_memory(tls.server_key) as key:
        try:
            context.load_cert_chain(cert, key, password=_no_password)
        except ssl.SSLError as error:
            raise InvalidArgument(_why(error)) from None


def _why(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "server_key is not the key of server_cert"
    if error.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        return f"server_cert is too weak for this machine's OpenSSL: {error.reason}"
    return "server_key is not a private key in PEM"


def _no_password() -> str:
    # Else OpenSSL would ask for it on the terminal.
    raise InvalidArgument("server_key is encrypted; it has to be in the clear")


@contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """A path for a library that reads nothing else: no secret gets to a disk."""
    file = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write(content)
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)
