"""Checksums: what was written is accepted, and any other byte is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import DataLoss, NotFound
from shardserve.shards import checksums
from shardserve.shards.bundle import open_bundle
from shardserve.shards.checksums import entry_bytes, verify_entries
from tests.checkpoints import numbered, save, save_boxes

DTYPES = (np.float32, np.float16, np.int64, np.uint8)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> str:
    tensor = numbered((100, 4))
    boxes = [("sliced", tensor, (slice(a, a + 50), slice(None))) for a in (0, 50)]
    whole = [(f"whole_{np.dtype(dtype)}", numbered((30, 3), dtype), None) for dtype in DTYPES]
    return save_boxes(tmp_path_factory.mktemp("checksums") / "v", [*boxes, *whole])


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_what_tensorflow_wrote_matches_whatever_the_chunks(prefix, monkeypatch, chunk):
    monkeypatch.setattr(checksums, "CHUNK_BYTES", chunk)
    bundle = open_bundle(prefix)
    verify_entries(bundle, bundle.entries)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_changed_byte_is_found_and_its_entry_and_file_are_named(prefix, data):
    bundle = open_bundle(prefix)
    key = data.draw(st.sampled_from(sorted(bundle.entries)))
    piece = data.draw(st.sampled_from(bundle.entries[key].pieces))
    at = piece.offset + data.draw(st.integers(0, piece.nbytes - 1))
    file = Path(piece.path)
    intact = file.read_bytes()
    file.write_bytes(
        intact[:at] + bytes([intact[at] ^ data.draw(st.integers(1, 255))]) + intact[at + 1 :]
    )
    try:
        with pytest.raises(DataLoss, match=rf"{file.name}: entry '{key}', .* its checksum"):
            verify_entries(bundle, [key])
        verify_entries(bundle, bundle.entries.keys() - {key})
    finally:
        file.write_bytes(intact)


def test_a_file_that_became_shorter_is_refused(tmp_path):
    prefix = save(tmp_path / "v", {"emb": numbered((10, 4))})
    bundle = open_bundle(prefix)
    file = Path(bundle.entries["emb"].pieces[0].path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataLoss, match="entry 'emb' ends 1 bytes early"):
        verify_entries(bundle, ["emb"])
    file.unlink()
    with pytest.raises(NotFound, match="no such data file"):
        verify_entries(bundle, ["emb"])


def test_progress_is_told_of_every_byte_and_may_end_the_reading(prefix):
    bundle = open_bundle(prefix)
    steps: list[int] = []
    verify_entries(bundle, bundle.entries, steps.append)
    assert sum(steps) == entry_bytes(bundle, bundle.entries) > 0

    def stop(_nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_entries(bundle, bundle.entries, stop)
