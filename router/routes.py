"""Which REST path means what: TensorFlow Serving's two patterns, and nothing else under /v1/."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from urllib.parse import unquote

from shardserve.batching.errors import InvalidArgument, NotFound
from shardserve.router.catalog import ModelSpec

#: The largest version number, an int64.
MAX_VERSION = 2**63 - 1

_WHICH = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"

# The query string is part of what they match, as it is in the original.
_POST = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<action>classify|regress|predict)", re.IGNORECASE
)
_GET = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?:/(?P<action>metadata))?", re.IGNORECASE
)

#: Characters of a path that is kept with what it means.
_LONGEST_KEPT = 256

#: All that is of the API, in any case.
PREFIX = "/v1/"


@dataclass(frozen=True, slots=True)
class Route:
    """What is asked of which model: `action` is predict, classify, regress, metadata or status."""

    action: str
    spec: ModelSpec


def route(method: str, path: str) -> Route:
    """`path` as it came, percent-encoded and with its query.

    Raises InvalidArgument for what is not a request under /v1/, NotFound for what is elsewhere.
    """
    return _kept_route(method, path) if len(path) <= _LONGEST_KEPT else _route(method, path)


def _route(method: str, path: str) -> Route:
    pattern = {"POST": _POST, "GET": _GET}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    if match is None:
        raise _unmatched(method, path)
    name, version, label, action = match["name"], match["version"], match["label"], match["action"]
    if name is None:
        raise InvalidArgument("Missing model name in request.")
    if method == "POST" and action not in ("predict", "classify", "regress"):
        raise _unmatched(method, path)
    # Only the lower-case word asks for metadata; any other case is the status page.
    asked = action if method == "POST" or action == "metadata" else "status"
    return Route(asked, ModelSpec(_decoded(name), _number(version), label and _decoded(label)))


#: Clients ask for the same few paths again and again.
_kept_route = functools.lru_cache(maxsize=1024)(_route)


def _unmatched(method: str, path: str) -> InvalidArgument | NotFound:
    if path[: len(PREFIX)].lower() == PREFIX:
        return InvalidArgument(f"Malformed request: {method} {path}")
    return NotFound(f"Not found: {method} {path}")


def _decoded(text: str) -> str:
    return unquote(text, errors="surrogateescape") if "%" in text else text


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    # Twenty digits cannot be an int64, whatever they are.
    number = int(text) if len(text.lstrip("0")) < 20 else MAX_VERSION + 1
    if number > MAX_VERSION:
        raise InvalidArgument(f"Failed to convert version: {text} to numeric.")
    return number
