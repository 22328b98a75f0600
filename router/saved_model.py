"""Reads a SavedModel of either format into a session, and says which file is at fault if not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.saved_model import loader_impl

from shardserve.batching.errors import DataLoss, NotFound, error_of
from shardserve.shards.graph_file import graph_file


def load_into(
    session: tf.compat.v1.Session, directory: Path, tags: Sequence[str]
) -> meta_graph_pb2.MetaGraphDef:
    """Import the MetaGraph with exactly `tags`, restore its variables, run its initialisation.

    TF1 and TF2 SavedModels alike. Raises NotFound for a missing file or MetaGraph, DataLoss for a
    file that does not parse, and otherwise the code that TensorFlow gives; the file is named.
    """
    loader = _parse(directory)
    meta_graph = _meta_graph(loader.saved_model, directory, tags)
    with _naming(graph_file(directory)):
        saver, _ = loader.load_graph(session.graph, list(tags))
    variables = directory / "variables" / "variables.index"
    if saver is not None and not variables.is_file():
        raise NotFound(f"the SavedModel is incomplete: {variables} does not exist")
    with _naming(variables):
        loader.restore_variables(session, saver)
    with _naming(directory):
        loader.run_init_ops(session, list(tags))
    return meta_graph


def _parse(directory: Path) -> Any:
    path = graph_file(directory)
    if not path.is_file():
        raise NotFound(f"there is no SavedModel in {directory}: {path} does not exist")
    with _naming(path):
        return loader_impl.SavedModelLoader(str(directory))


def _meta_graph(
    saved_model: Any, directory: Path, tags: Sequence[str]
) -> meta_graph_pb2.MetaGraphDef:
    for graph in saved_model.meta_graphs:
        if set(graph.meta_info_def.tags) == set(tags):
            return graph
    found = [_braced(graph.meta_info_def.tags) for graph in saved_model.meta_graphs]
    raise NotFound(
        f"{graph_file(directory)}: no MetaGraph has the tags {_braced(tags)}; "
        f"there are: {', '.join(found) or 'none'}"
    )


def _braced(tags: Sequence[str]) -> str:
    return "{" + ",".join(sorted(tags)) + "}"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn TensorFlow's errors into ours, with `path` in front."""
    try:
        yield
    except tf.errors.OpError as error:
        raise error_of(error.error_code, f"{path}: {error.message}") from error
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise DataLoss(f"{path}: {error}") from error
