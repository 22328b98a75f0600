"""What `benchmarks.cut` does in fresh processes: makes a model with many tables, and cuts it.

    python -m benchmarks.cut_probe build DIR TABLES NODES_OF_A_TABLE
    python -m benchmarks.cut_probe count DIR
    python -m benchmarks.cut_probe cut DIR

Each prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.server_process import peak_rss

#: Rows and columns of every table; the dense variables are smaller.
ROWS, COLUMNS = 64, 16
THRESHOLD = ROWS * COLUMNS * 4
#: Nodes that one layer of filling takes: Mul, AddV2, Relu and two constants.
_LAYER = 5
#: Nodes that a lookup takes, on average over the kinds of it.
_LOOKUP = 26


def build(directory: Path, tables: int, nodes: int) -> dict[str, Any]:
    """Save a model of `tables` features, each looked up in one of four ways and made larger."""
    from examples.dlrm import quiet_tensorflow

    tf = quiet_tensorflow()
    module = tf.Module()
    module.tables = [
        tf.Variable(tf.ones([ROWS, COLUMNS]), name=f"table_{i}") for i in range(tables)
    ]
    layers = max(1, (nodes - _LOOKUP) // _LAYER)

    def looked_up(number: int, ids: Any) -> Any:
        table = module.tables[number]
        match number % 4:
            case 0:
                return tf.reduce_sum(tf.gather(table, ids), axis=1)
            case 1:
                return tf.reduce_max(tf.nn.embedding_lookup(table, ids), axis=1)
            case 2:
                bags = tf.sparse.from_dense(ids)
                return tf.nn.safe_embedding_lookup_sparse(table, bags, combiner="mean")
            case _:
                wrapped = tf.where(ids < 0, ids + ROWS, ids)
                return tf.reduce_mean(tf.gather(table, wrapped), axis=1)

    def serve(*features: Any) -> dict[str, Any]:
        found = []
        for number, ids in enumerate(features):
            rows = looked_up(number, ids)
            for layer in range(layers):
                rows = tf.nn.relu(rows * (1.0 + layer) + 0.5)
            found.append(rows)
        return {"score": tf.reduce_sum(tf.concat(found, axis=1), axis=1)}

    features = [tf.TensorSpec([None, 4], tf.int64, name=f"f_{i}") for i in range(tables)]
    signature = tf.function(serve, input_signature=features)
    tf.saved_model.save(module, str(directory), signatures=signature)
    return {"tables": tables}


def count(directory: Path) -> dict[str, Any]:
    """The nodes of a model's graph, all calls inlined."""
    from examples.dlrm import quiet_tensorflow

    quiet_tensorflow()
    from shardserve.shards.cut.saved_model import inline

    return {"nodes": len(inline(directory)[1].node)}


def cut(directory: Path) -> dict[str, Any]:
    """Cut a model, TensorFlow being imported already."""
    from examples.dlrm import quiet_tensorflow

    quiet_tensorflow()
    from shardserve.shards.cut.cut import CutRule, cut_saved_model

    imported = peak_rss()
    started, worked = time.perf_counter(), time.process_time()
    model = cut_saved_model(directory, CutRule(threshold=THRESHOLD))
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - worked,
        "tables": len(model.tables),
        "imported_bytes": imported,
        "peak_bytes": peak_rss(),
    }


def main() -> None:
    """The process."""
    match sys.argv[1:]:
        case ["build", directory, tables, nodes]:
            found = build(Path(directory), int(tables), int(nodes))
        case ["count", directory]:
            found = count(Path(directory))
        case ["cut", directory]:
            found = cut(Path(directory))
        case _:
            sys.exit(__doc__)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
