"""The layout file's JSON schema, for editors: `python -m shardserve.shards.layout_schema`.

What the form is made of comes from `LayoutFile`; which keys go with which sharding is added here.
Whether the slices make up the table is for `shardserve plan --check`, which knows the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from shardserve.shards.layout import ROW_SHARDINGS, Sharding
from shardserve.shards.layout_file import LayoutFile

Schema = dict[str, Any]

_NONE: Schema = {"type": "null"}
_EMPTY: Schema = {"anyOf": [_NONE, {"type": "array", "maxItems": 0}]}
_SHARDS: Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "minItems": 1,
    "uniqueItems": True,
}
_SPAN: Schema = {"type": "array", "items": {"minimum": 0}}


def layout_schema() -> Schema:
    """A schema of the dialect 2020-12. It refuses no layout that is right, its numbers unquoted."""
    found: Schema = untitled(LayoutFile.model_json_schema())
    entry, band = found["$defs"]["TableEntry"], found["$defs"]["BandEntry"]
    row_wise = list(ROW_SHARDINGS.values())
    entry["allOf"] = [
        *(_rule(word, bands=_NONE) for word in Sharding if word is not Sharding.GRID),
        _rule(Sharding.GRID, ["bands"], bands=_filled(), slices=_NONE, shards=_NONE),
        *_places(word for word in Sharding if word is not Sharding.GRID),
    ]
    entry["allOf"] += [_rule(word, hot_rows=_EMPTY) for word in Sharding if word not in row_wise]
    band["properties"]["sharding"] = {"enum": [word.value for word in row_wise]}
    band["properties"]["columns"]["items"]["minimum"] = 0
    band["allOf"] = _places(row_wise)
    hot = entry["properties"]["hot_rows"]["anyOf"][0]
    hot["uniqueItems"] = True
    hot["items"]["minimum"] = 0
    found["$defs"]["SliceEntry"]["properties"]["shard"]["minimum"] = 0
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A layout file of shardserve",
    }
    return head | found


def _places(shardings: Iterable[Sharding]) -> list[Schema]:
    """The rules of `slices` and `shards`."""
    found = []
    for word in shardings:
        match word:
            case Sharding.ROW_RANGE:
                found.append(_rule(word, ["slices"], slices=_slices("rows"), shards=_NONE))
            case Sharding.COLUMN:
                found.append(_rule(word, ["slices"], slices=_slices("columns"), shards=_NONE))
            case Sharding.TABLE:
                one = {**_SHARDS, "maxItems": 1}
                found.append(_rule(word, ["shards"], slices=_NONE, shards=one))
            case _:
                found.append(_rule(word, ["shards"], slices=_NONE, shards=_SHARDS))
    return found


def _rule(sharding: Sharding, required: Iterable[str] = (), **properties: Schema) -> Schema:
    """What holds of an entry of one sharding."""
    then: Schema = {"properties": properties}
    if required:
        then["required"] = list(required)
    named = {"properties": {"sharding": {"const": sharding.value}}, "required": ["sharding"]}
    return {"if": named, "then": then}


def _slices(axis: str) -> Schema:
    other = "columns" if axis == "rows" else "rows"
    return _filled({"properties": {axis: _SPAN, other: _NONE}, "required": [axis]})


def _filled(items: Schema | None = None) -> Schema:
    return {"type": "array", "minItems": 1, **({"items": items} if items else {})}


def untitled(node: Any) -> Any:
    """Without the titles that repeat the names of keys."""
    if isinstance(node, dict):
        return {
            key: untitled(value)
            for key, value in node.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [untitled(item) for item in node] if isinstance(node, list) else node


if __name__ == "__main__":
    sys.stdout.write(json.dumps(layout_schema(), indent=2) + "\n")
