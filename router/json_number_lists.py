"""Long lists of numbers out of a request's JSON, without a Python object for each number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simdjson

from shardserve.router.json_dense import MAX_RANK, fitted, held_by
from shardserve.router.servable import Array
from shardserve.router.tensor_types import TensorType

#: Lists that are shorter, on average, are no slower as Python's lists.
_BYTES_IN_A_LIST = 128

#: How simdjson names what holds numbers of numpy's kinds; it takes nothing that does not fit.
_HELD_AS: Mapping[str, tuple[Literal["d", "i", "u"], type]] = {
    "f": ("d", np.float64),
    "i": ("i", np.int64),
    "u": ("u", np.uint64),
}

_SIGNATURE_NAME = "signature_name"


@dataclass(frozen=True)
class NumberLists:
    """Nested lists, perhaps of numbers, that are the value of `key` in a request's body."""

    body: bytes
    signature_name: str
    key: str
    lists: simdjson.Array
    #: Opening brackets in the body.
    brackets: int

    def as_array(self, kind: TensorType) -> Array | None:
        """The lists as an array of the type; None where they are no dense tensor of just that."""
        held = held_by(kind)
        if held is None or held.kind not in _HELD_AS:
            return None
        letter, wide = _HELD_AS[held.kind]
        try:
            flat: Array = np.frombuffer(self.lists.as_buffer(of_type=letter), wide)
        except (TypeError, ValueError):
            return None
        shape = _shape(self.lists, self.brackets)
        if shape is None or math.prod(shape) != len(flat):
            return None
        array = fitted(flat, kind)
        return None if array is None else array.reshape(shape)


def number_lists(body: bytes, keys: Iterable[str]) -> NumberLists | None:
    """The value of one of `keys` in an object that has nothing besides but a signature's name.

    None for what is not that, or not JSON by the letter, or where lists are short.
    """
    if len(body) < _BYTES_IN_A_LIST:
        return None
    brackets = body.count(b"[")
    if len(body) < _BYTES_IN_A_LIST * (brackets + 1):
        return None
    try:
        document = simdjson.Parser().parse(body)
    except (ValueError, RuntimeError):
        return None
    if not isinstance(document, simdjson.Object):
        return None
    found = list(document.keys())
    name = document[_SIGNATURE_NAME] if _SIGNATURE_NAME in found else ""
    others = [key for key in found if key != _SIGNATURE_NAME]
    if len(others) != 1 or others[0] not in keys or len(found) > 2 or not isinstance(name, str):
        return None
    lists = document[others[0]]
    if not isinstance(lists, simdjson.Array):
        return None
    return NumberLists(body, name, others[0], lists, brackets)


def _shape(lists: simdjson.Array, brackets: int) -> tuple[int, ...] | None:
    """How long the lists are at each depth; None where they differ, or one is empty.

    A list among numbers is seen by there being more of them in the body.
    """
    shape: list[int] = []
    level: list[Any] = [lists]
    count = 0
    while set(map(type, level)) == {simdjson.Array} and len(shape) < MAX_RANK:
        sizes = set(map(len, level))
        if len(sizes) != 1 or 0 in sizes:
            return None
        shape += sizes
        count += len(level)
        if not isinstance(level[0][0], simdjson.Array):
            return tuple(shape) if brackets == count else None
        level = [inner for outer in level for inner in outer]
    return None
