"""What `benchmarks.load` measures in fresh processes: one answer of TensorFlow, one shard's read.

    python -m benchmarks.load_probe tensorflow DIR/1
    python -m benchmarks.load_probe import
    python -m benchmarks.load_probe read DIR/1 SHARDING

Each prints one JSON object. Times of day are `time.perf_counter()`'s, which all processes of a
machine share.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.server_process import peak_rss

SHARDS = 4
#: Tables of fewer bytes stay out of a read, as they stay whole in the router.
THRESHOLD = 16 << 20


def tensorflow_answer(version: Path) -> dict[str, Any]:
    """Load a SavedModel as TensorFlow does, and answer the example request that came with it."""
    from examples.dlrm import EXTRA, quiet_tensorflow, shortest

    tf = quiet_tensorflow()
    loaded = tf.saved_model.load(str(version))
    signature = loaded.signatures["serving_default"]
    request = json.loads((version / EXTRA / "predict_request.json").read_text())
    specs = signature.structured_input_signature[1]
    inputs = {
        name: tf.constant([row[name] for row in request["instances"]], spec.dtype)
        for name, spec in specs.items()
    }
    predictions = [shortest(row) for row in signature(**inputs)["prediction"].numpy()]
    return {
        "answered": time.perf_counter(),
        "predictions": predictions,
        "peak_bytes": peak_rss(),
    }


def tensorflow_import() -> dict[str, Any]:
    """When TensorFlow was imported, and nothing else done."""
    from examples.dlrm import quiet_tensorflow

    quiet_tensorflow()
    return {"answered": time.perf_counter(), "peak_bytes": peak_rss()}


def read_shard(version: Path, sharding: str) -> dict[str, Any]:
    """Load shard 0 of SHARDS, every large table being cut one way."""
    from shardserve.shards.bundle import open_bundle
    from shardserve.shards.layout import Layout, TableLayout, even_bounds, row_hash, row_range
    from shardserve.shards.native import library
    from shardserve.shards.shard import Shard
    from shardserve.shards.tables import Table

    layouts: dict[str, Callable[[Table], TableLayout]] = {
        "row_range": lambda table: row_range(table, even_bounds(table.rows, range(SHARDS))),
        "row_hash": lambda table: row_hash(table, range(SHARDS)),
    }
    bundle = open_bundle(str(version / "variables" / "variables"))
    sources = {
        key: source
        for key, entry in bundle.entries.items()
        if len(entry.shape) == 2 and entry.dtype != "string"
        if (source := bundle.source(key, key)).table.nbytes >= THRESHOLD
    }
    tables = {key: layouts[sharding](source.table) for key, source in sources.items()}
    pieces = Layout(SHARDS, 1, tables).slices_of_shard(0)
    library()  # A shard process has its compiled code long before it reads.
    started = time.perf_counter()
    shard = Shard.load(sources, pieces)
    seconds = time.perf_counter() - started
    return {"bytes": shard.nbytes, "seconds": seconds, "peak_bytes": peak_rss()}


def main() -> None:
    """The process."""
    match sys.argv[1:]:
        case ["tensorflow", version]:
            found = tensorflow_answer(Path(version))
        case ["import"]:
            found = tensorflow_import()
        case ["read", version, sharding]:
            found = read_shard(Path(version), sharding)
        case _:
            sys.exit(__doc__)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
