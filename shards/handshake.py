"""Who are you: both ends prove that they know the cluster's secret, which never crosses the wire.

    client                                      server
    HELLO      client nonce, client's limit ->
               <- server nonce, server's limit  CHALLENGE
    PROOF      HMAC("client"), fingerprint  ->
               <- HMAC("server")                WELCOME    or REFUSAL code, message, at any point

The HMACs are SHA-256, over the role, the protocol version and every field above, so that neither
can be replayed, reflected or moved to another conversation. The client proves itself first: a
stranger gets no HMAC to work on from a shard. Frames after the handshake carry no HMAC; that the
network between the machines delivers what was sent is taken for granted.

The fingerprint says what is served (the plan, and which shard of it). It must be equal on both
ends. A limit is the longest frame that an end accepts. Pure: frames in, frames out, and the caller
draws the nonces (`NONCE_BYTES` fresh random bytes).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any, Final

from shardserve.batching.errors import (
    FailedPrecondition,
    InvalidArgument,
    ServingError,
    Unauthenticated,
    error_of,
)
from shardserve.shards.frames import (
    VERSION,
    Frame,
    Kind,
    ProtocolError,
    bare_fields,
    bare_frame,
    pack,
)

NONCE_BYTES: Final = 32
#: The longest frame that is read from a peer before it has proved itself.
HANDSHAKE_FRAME_BYTES: Final = 1024
FINGERPRINT_LIMIT: Final = 256
SECRET_BYTES_AT_LEAST: Final = 16
_LIMIT_AT_LEAST: Final = 1 << 12
_MESSAGE_CHARACTERS: Final = 200


@dataclass(frozen=True)
class Credentials:
    """The cluster's secret, at least 16 random bytes, and what this end serves or asks for.

    The secret is in no `repr` and no message.
    """

    secret: bytes = field(repr=False)
    fingerprint: str

    def __post_init__(self) -> None:
        if len(self.secret) < SECRET_BYTES_AT_LEAST:
            raise InvalidArgument(f"the secret needs at least {SECRET_BYTES_AT_LEAST} bytes")
        if len(self.fingerprint.encode()) > FINGERPRINT_LIMIT:
            raise InvalidArgument(f"a fingerprint has at most {FINGERPRINT_LIMIT} bytes")


@dataclass(frozen=True)
class _Transcript:
    """What both have said so far."""

    client_nonce: bytes
    client_limit: int
    server_nonce: bytes
    server_limit: int

    def proof(self, role: str, credentials: Credentials, fingerprint: str) -> bytes:
        said = pack(
            (
                *("shardserve", VERSION, role, fingerprint),
                *(self.client_nonce, self.client_limit, self.server_nonce, self.server_limit),
            )
        )
        return hmac.new(credentials.secret, said, hashlib.sha256).digest()


class ClientHandshake:
    """The client's side. Send `hello`, then what `receive` returns, until `peer_limit` is set."""

    def __init__(self, credentials: Credentials, limit: int, nonce: bytes) -> None:
        self._credentials = credentials
        self._limit = limit
        self._nonce = nonce
        self._transcript: _Transcript | None = None
        #: The longest frame the server accepts; None until it has proved itself.
        self.peer_limit: int | None = None

    def hello(self) -> bytes:
        """The first frame."""
        return bare_frame(Kind.HELLO, 0, self._nonce, self._limit)

    def receive(self, frame: Frame) -> bytes:
        """The answer to the server's frame, empty at the end.

        Raises the server's own refusal, Unauthenticated when the server cannot prove itself, or
        ProtocolError. Then close the connection.
        """
        if frame[0] is Kind.REFUSAL:
            raise _refused(frame)
        if self._transcript is None:
            server_nonce, server_limit = _nonce_and_limit(frame, Kind.CHALLENGE)
            self._transcript = _Transcript(self._nonce, self._limit, server_nonce, server_limit)
            fingerprint = self._credentials.fingerprint
            proof = self._transcript.proof("client", self._credentials, fingerprint)
            return bare_frame(Kind.PROOF, 0, proof, fingerprint)
        (proof,) = _fields(frame, Kind.WELCOME, bytes)
        wanted = self._transcript.proof("server", self._credentials, self._credentials.fingerprint)
        if not hmac.compare_digest(proof, wanted):
            raise Unauthenticated("the server could not prove that it knows the cluster's secret")
        self.peer_limit = self._transcript.server_limit
        return b""


class ServerHandshake:
    """The server's side. Send what `receive` returns, until `peer_limit` is set."""

    def __init__(self, credentials: Credentials, limit: int, nonce: bytes) -> None:
        self._credentials = credentials
        self._limit = limit
        self._nonce = nonce
        self._transcript: _Transcript | None = None
        #: The longest frame the client accepts; None until it has proved itself.
        self.peer_limit: int | None = None

    def receive(self, frame: Frame) -> bytes:
        """The answer to the client's frame.

        Raises Unauthenticated for a wrong proof, FailedPrecondition for another fingerprint, or
        ProtocolError. Then send `refusal(error)` and close the connection.
        """
        if self._transcript is None:
            client_nonce, client_limit = _nonce_and_limit(frame, Kind.HELLO)
            self._transcript = _Transcript(client_nonce, client_limit, self._nonce, self._limit)
            return bare_frame(Kind.CHALLENGE, 0, self._nonce, self._limit)
        proof, fingerprint = _fields(frame, Kind.PROOF, bytes, str)
        wanted = self._transcript.proof("client", self._credentials, fingerprint)
        if not hmac.compare_digest(proof, wanted):
            raise Unauthenticated("the router could not prove that it knows the cluster's secret")
        if fingerprint != self._credentials.fingerprint:
            raise FailedPrecondition(
                f"this server serves {self._credentials.fingerprint!r}, not {fingerprint!r}"
            )
        self.peer_limit = self._transcript.client_limit
        return bare_frame(
            Kind.WELCOME, 0, self._transcript.proof("server", self._credentials, fingerprint)
        )


def refusal(error: ServingError) -> bytes:
    """The frame that tells a peer why it is turned away."""
    return bare_frame(Kind.REFUSAL, 0, int(error.code), error.message[:_MESSAGE_CHARACTERS])


def _refused(frame: Frame) -> ServingError:
    code, message = _fields(frame, Kind.REFUSAL, int, str)
    return error_of(code, f"refused by the server: {message}")


def _fields(frame: Frame, kind: Kind, *types: type) -> tuple[Any, ...]:
    if frame[0] is not kind:
        raise ProtocolError(f"{frame[0].name} came where {kind.name} belongs")
    return bare_fields(frame, *types)


def _nonce_and_limit(frame: Frame, kind: Kind) -> tuple[bytes, int]:
    nonce, limit = _fields(frame, kind, bytes, int)
    if len(nonce) != NONCE_BYTES:
        raise ProtocolError(f"{kind.name} has a nonce of {len(nonce)} bytes, not {NONCE_BYTES}")
    if not _LIMIT_AT_LEAST <= limit < 1 << 63:
        raise ProtocolError(f"{kind.name} has a frame limit of {limit} bytes")
    return nonce, limit
