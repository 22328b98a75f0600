"""What HTTP calls content codings: bodies that come, and may go, compressed."""

from __future__ import annotations

import zlib

#: Bytes that a compressed body may become.
MAX_INFLATED = 100_000_000


def takes_gzip(accepted: str | None) -> bool:
    """Whether an Accept-Encoding gives gzip, by its name or else by `*`, a quality above zero."""
    qualities = dict(map(_coding, (accepted or "").lower().split(",")))
    named = [qualities[name] for name in ("gzip", "x-gzip") if name in qualities]
    return max(named, default=qualities.get("*", 0.0)) > 0.0


def inflated(body: bytes) -> bytes:
    """The body decompressed; empty, as in the original, if that cannot be done."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        inflated = inflater.decompress(body, MAX_INFLATED)
    except zlib.error:
        return b""
    return inflated if inflater.eof else b""


def _coding(text: str) -> tuple[str, float]:
    """A coding's name and its quality: 1 if it has none, 0 if that is no number."""
    name, _, parameter = text.partition(";")
    if not parameter:
        return name.strip(), 1.0
    try:
        return name.strip(), float(parameter.strip().removeprefix("q="))
    except ValueError:
        return name.strip(), 0.0
