"""The stages file's JSON schema, for editors: `python -m shardserve.shards.stages_schema`."""

from __future__ import annotations

import json
import sys
from typing import Any

from shardserve.shards.layout_schema import untitled
from shardserve.shards.stages_file import StagesFile


def stages_schema() -> dict[str, Any]:
    """A schema of the dialect 2020-12. It refuses no stages file that is right."""
    found: dict[str, Any] = untitled(StagesFile.model_json_schema())
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A stages file of shardserve",
    }
    return head | found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(stages_schema(), indent=2) + "\n")
