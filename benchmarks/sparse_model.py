"""A SavedModel with tables of any size on a disk of any size: a data file that is mostly holes.

TensorFlow saves only what it has in memory, so the graph is its own, made without a session, and
the checkpoint is written here: the index entry by entry, and of the data file some rows alone. The
tables' checksums are left out, since they would take a pass over every byte; TensorFlow itself
refuses to read a table without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from examples.dlrm import quiet_tensorflow
from shardserve.shards.sstable import MAGIC

Array = npt.NDArray[Any]

_HALF = 19
_ITEMSIZE = 2
_BLOCK_TYPE = b"\0"
_NO_ENTRIES = (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


@dataclass(frozen=True)
class SparseTable:
    """A float16 table in which all rows but the planted ones are zeros."""

    name: str
    rows: int
    columns: int
    planted: int

    @property
    def row_bytes(self) -> int:
        return self.columns * _ITEMSIZE

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    def planted_rows(self) -> Array:
        """The numbers of the planted rows, rising, the first and the last row among them."""
        rng = np.random.default_rng(len(self.name))
        drawn = rng.integers(1, self.rows - 1, self.planted - 2)
        return np.unique(np.concatenate([[0], drawn, [self.rows - 1]]))

    def values(self, rows: Array) -> Array:
        """What is planted in these rows: float16 [n, columns], exact, never all zeros."""
        steps = rows[:, None] % 1021 * 7 + np.arange(self.columns) * 3 + 1
        return ((steps % 2039 - 1019) / 64).astype(np.float16)


def write(version: Path, tables: Sequence[SparseTable]) -> None:
    """Make a version directory. `serving_default` takes NAME_id int64 [n], and answers NAME.

    An answer is float32 [n, columns]: the rows that the ids name.
    """
    variables = version / "variables"
    variables.mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(_saved_model(tables))
    places: dict[SparseTable, int] = {}
    end = 0
    for table in tables:
        places[table] = end
        end += table.nbytes
    (variables / "variables.index").write_bytes(_index(places))
    _write_data(variables / "variables.data-00000-of-00001", places, end)


def _write_data(path: Path, places: Mapping[SparseTable, int], size: int) -> None:
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
        for table, start in places.items():
            rows = table.planted_rows()
            for row, value in zip(rows.tolist(), table.values(rows), strict=True):
                os.pwrite(file.fileno(), value.tobytes(), start + row * table.row_bytes)


def _saved_model(tables: Sequence[SparseTable]) -> bytes:
    tf = quiet_tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    v1 = tf.compat.v1
    inputs, outputs = {}, {}
    with tf.Graph().as_default() as graph:
        for table in tables:
            variable = v1.get_variable(
                table.name,
                [table.rows, table.columns],
                tf.float16,
                v1.zeros_initializer(),
                use_resource=True,
            )
            ids = v1.placeholder(tf.int64, [None], f"{table.name}_id")
            inputs[f"{table.name}_id"] = ids
            outputs[table.name] = tf.cast(tf.gather(variable, ids), tf.float32)
        saver = v1.train.Saver().saver_def
        meta_graph = v1.train.export_meta_graph(graph=graph, saver_def=saver)
        signature = v1.saved_model.predict_signature_def(inputs, outputs)
    meta_graph.signature_def["serving_default"].CopyFrom(signature)
    meta_graph.meta_info_def.tags.append("serve")
    model = saved_model_pb2.SavedModel(saved_model_schema_version=1, meta_graphs=[meta_graph])
    return bytes(model.SerializeToString())


def _index(places: Mapping[SparseTable, int]) -> bytes:
    from tensorflow.core.protobuf import tensor_bundle_pb2

    header = tensor_bundle_pb2.BundleHeaderProto(num_shards=1)
    header.version.producer = 1
    entries = {b"": header.SerializeToString()}
    for table, offset in sorted(places.items(), key=lambda item: item[0].name.encode()):
        entry = tensor_bundle_pb2.BundleEntryProto(dtype=_HALF, offset=offset, size=table.nbytes)
        for size in (table.rows, table.columns):
            entry.shape.dim.add(size=size)
        entries[table.name.encode()] = entry.SerializeToString()
    return sorted_table(entries)


def sorted_table(entries: Mapping[bytes, bytes]) -> bytes:
    """A table file (see `shardserve.shards.sstable`) of one data block; keys rise."""
    data = _block(entries.items())
    meta = _block([])
    handle = _varint(0) + _varint(len(data) - 5)
    last = max(entries) + b"\xff"
    index = _block([(last, handle)])
    meta_handle = _varint(len(data)) + _varint(len(meta) - 5)
    index_handle = _varint(len(data) + len(meta)) + _varint(len(index) - 5)
    footer = (meta_handle + index_handle).ljust(40, b"\0") + MAGIC.to_bytes(8, "little")
    return data + meta + index + footer


def _block(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Entries that share no prefix, one restart point, the block's type and its checksum."""
    whole = b"".join(
        _varint(0) + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries
    )
    block = whole + _NO_ENTRIES + _BLOCK_TYPE
    crc = google_crc32c.value(block)
    masked: int = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return block + masked.to_bytes(4, "little")


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
