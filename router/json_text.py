"""JSON text to Python values and back, with TensorFlow Serving's tolerance and words."""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from typing import Any

import orjson

from shardserve.batching.errors import InvalidArgument

#: Longer values are cut off in error messages.
MAX_SHOWN = 1024

#: The one form that Python's parser does not know, outside strings; strings are matched to be kept.
_SHORT_INFINITY = re.compile(r'"(?:[^"\\]|\\.)*+"?|Inf(?:inity)?', re.DOTALL)

_SHOWN_DEPTH = 8

#: Digits that tell every float32 from its neighbours; doubles take 17.
_FLOAT32_DIGITS = 9

_FLOAT32 = struct.Struct("<f")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` begins with.

    Accepted beyond JSON, as the original does: NaN, Infinity and Inf; anything after the object;
    bytes that are not UTF-8 inside strings (they come out as lone surrogates, see `to_bytes`).
    Of two equal keys the first counts in `parse_exactly`; this one, faster, may take the last.
    Raises InvalidArgument.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return parse_exactly(body)
    return _object(value)


def parse_exactly(body: bytes) -> dict[str, Any]:
    """As `parse_object`, a few times slower, and exact about equal keys."""
    text = body.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        at = f". at offset: {len(body)}" if body else ""
        raise InvalidArgument(f"JSON Parse error: The document is empty{at}")
    try:
        value, _ = _DECODER.raw_decode(_with_long_infinity(text), start)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode("utf-8", "surrogateescape"))
        raise InvalidArgument(f"JSON Parse error: {error.msg} at offset: {offset}") from None
    except RecursionError:
        raise InvalidArgument("JSON Parse error: The document is nested too deeply.") from None
    except ValueError:
        raise InvalidArgument("JSON Parse error: Number too big to be stored in double.") from None
    return _object(value)


def may_repeat_a_key(body: bytes, keys: int) -> bool:
    """Whether `body`, found to have `keys` different keys, has more of them in its text."""
    # Colons alone are counted ten times as fast, and where there are no more there is no doubt.
    return body.count(b":") > keys and body.count(b'":') - body.count(b'"b64":') > keys


def signature_name_of(document: dict[str, Any]) -> str:
    """The signature that a request names, "" if none. Raises InvalidArgument if it is no string."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidArgument(
            f"JSON Value: {shown(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def shown(value: Any) -> str:
    """A value as error messages show it, cut off where it is long."""
    if isinstance(value, float):
        text = decimal(value)
    else:
        text = json.dumps(_head(value), indent=4, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def decimal(value: float, digits: int = 17) -> str:
    """A float as the original writes it: six digits if they are enough, `digits` (9, 17) if not."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    short = f"{value:g}"
    read = float(short)
    if digits == _FLOAT32_DIGITS:
        [read] = _FLOAT32.unpack(_FLOAT32.pack(read))
    text = short if read == value else f"{value:.{digits}g}"
    return text if "." in text or "e" in text else text + ".0"


def type_name(value: Any) -> str:
    """What rapidjson calls the value's type."""
    if isinstance(value, bool):
        return "True" if value else "False"
    for kind, name in _TYPE_NAMES.items():
        if isinstance(value, kind):
            return name
    return "Null"


def to_bytes(text: str) -> bytes:
    """The bytes a string stood for in the body. Raises InvalidArgument for half a character."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidArgument(
            "JSON Parse error: The surrogate pair in string is invalid."
        ) from None


_TYPE_NAMES: dict[type, str] = {
    str: "String",
    int: "Number",
    float: "Number",
    list: "Array",
    dict: "Object",
}


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"JSON Value: {shown(value)} Is not object")
    return value


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else dict(reversed(pairs))


def _with_long_infinity(text: str) -> str:
    if not re.search(r"Inf(?!inity)", text):
        return text
    return _SHORT_INFINITY.sub(lambda m: "Infinity" if m[0].startswith("I") else m[0], text)


def _head(value: Any, depth: int = 0) -> Any:
    """Enough of `value` to show, so that an error about a huge body stays cheap."""
    if isinstance(value, str):
        return value[:MAX_SHOWN]
    if not isinstance(value, list | dict):
        return value
    if depth == _SHOWN_DEPTH:
        return "..."
    # A few values at each level are enough for the first MAX_SHOWN characters.
    kept = MAX_SHOWN if depth == 0 else 32
    if isinstance(value, list):
        return [_head(v, depth + 1) for v in value[:kept]]
    return {k: _head(v, depth + 1) for k, v in itertools.islice(value.items(), kept)}


_DECODER = json.JSONDecoder(object_pairs_hook=_first_wins)
