"""Checkpoints that are not what they should be: refused, naming the file."""

from __future__ import annotations

from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardserve.batching.errors import DataLoss, NotFound, ServingError, Unimplemented
from shardserve.shards.bundle import open_bundle
from shardserve.shards.sstable import MAGIC, read_table
from tests.checkpoints import numbered, save, save_boxes


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return save(tmp_path / "variables", {"emb": numbered((100, 4)), "bias": numbered((7,))})


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("index")
    tensor = numbered((100, 4))
    boxes = [("emb", tensor, (slice(a, a + 50), slice(None))) for a in (0, 50)]
    return Path(save_boxes(root / "v", boxes) + ".index").read_bytes()


def data_file(prefix: str) -> Path:
    return Path(f"{prefix}.data-00000-of-00001")


def test_a_missing_index_is_not_found(tmp_path):
    with pytest.raises(NotFound, match=r"variables\.index: no such file"):
        open_bundle(str(tmp_path / "variables"))


def test_an_index_that_is_a_directory_is_refused(tmp_path):
    (tmp_path / "variables.index").mkdir()
    with pytest.raises(DataLoss, match=r"variables\.index: cannot be read"):
        open_bundle(str(tmp_path / "variables"))


def test_a_missing_data_file_is_not_found(prefix):
    data_file(prefix).unlink()
    with pytest.raises(NotFound, match=r"data-00000-of-00001: no such data file, entry 'bias' is"):
        open_bundle(prefix)


def test_a_data_file_that_is_cut_off_is_refused(prefix):
    whole = data_file(prefix).read_bytes()
    data_file(prefix).write_bytes(whole[:-1])
    size = len(whole)
    with pytest.raises(DataLoss, match=rf"00001 is {size - 1} bytes, entry 'bias' needs {size}"):
        open_bundle(prefix)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_index_cut_off_anywhere_is_refused(index, tmp_path_factory, data):
    kept = data.draw(st.integers(0, len(index) - 1))
    path = tmp_path_factory.mktemp("cut") / "v.index"
    path.write_bytes(index[:kept])
    with pytest.raises(DataLoss, match=r"v\.index"):
        open_bundle(str(path.with_suffix("")))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_changed_byte_in_the_index_is_refused_or_changes_nothing(index, tmp_path_factory, data):
    at = data.draw(st.integers(0, len(index) - 1))
    flipped = index[at] ^ data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flip") / "v.index"
    path.write_bytes(index[:at] + bytes([flipped]) + index[at + 1 :])
    intact = path.with_name("intact")
    intact.write_bytes(index)
    try:
        table = read_table(str(path))
    except ServingError as error:
        assert "v.index" in error.message  # noqa: PT017 (some bytes are padding)
    else:
        assert table == read_table(str(intact))


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "v.index").write_bytes(b"PK\x03\x04" * 40)
    with pytest.raises(DataLoss, match=r"v\.index: is 160 bytes without a table's footer"):
        open_bundle(str(tmp_path / "v"))


def test_an_index_of_another_checkpoint_is_refused(tmp_path):
    small = save(tmp_path / "small", {"emb": numbered((10, 4))})
    large = save(tmp_path / "large", {"emb": numbered((1000, 4))})
    data_file(large).write_bytes(data_file(small).read_bytes())
    with pytest.raises(DataLoss, match="is 160 bytes, entry 'emb' needs 16000"):
        open_bundle(large)


def varint(value: int) -> bytes:
    head, rest = value & 0x7F, value >> 7
    return bytes([head | 0x80]) + varint(rest) if rest else bytes([head])


def block(entries: dict[bytes, bytes], kind: int = 0) -> bytes:
    body = b"".join(
        b"\0" + varint(len(key)) + varint(len(value)) + key + value
        for key, value in entries.items()
    )
    body += bytes(4) + (1).to_bytes(4, "little")
    crc = google_crc32c.value(body + bytes([kind]))
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return body + bytes([kind]) + masked.to_bytes(4, "little")


def write_table(path: Path, entries: dict[bytes, bytes], kind: int = 0) -> None:
    data = block(entries, kind)
    handle = varint(0) + varint(len(data) - 5)
    index = block({b"~": handle})
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    path.write_bytes(data + index + footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little"))


def test_a_compressed_block_is_refused(tmp_path):
    write_table(tmp_path / "v.index", {b"": b""}, kind=1)
    with pytest.raises(Unimplemented, match=r"v\.index: .* is compressed \(snappy\)"):
        open_bundle(str(tmp_path / "v"))


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        (b"\x08\x01\x10\x01", Unimplemented, "big-endian"),
        (b"\x08\x01\x1a\x02\x10\x02", Unimplemented, "readers of version 2"),
        (b"\x08\x01\x1a\x03\x1a\x01\x01", Unimplemented, "this is version 1"),
        (b"\x08", DataLoss, "no bundle header"),
        (b"\x0f", DataLoss, "no bundle header"),
    ],
)
def test_a_bundle_of_another_kind_is_refused(tmp_path, header, error, message):
    write_table(tmp_path / "v.index", {b"": header})
    with pytest.raises(error, match=message):
        open_bundle(str(tmp_path / "v"))


def test_an_index_without_a_header_is_refused(tmp_path):
    write_table(tmp_path / "v.index", {b"emb": b""})
    with pytest.raises(DataLoss, match="no bundle header"):
        open_bundle(str(tmp_path / "v"))


SHAPE_4 = b"\x12\x04\x12\x02\x08\x04"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (b"\x08\x01" + SHAPE_4 + b"\x28\x0f", r"'emb' is 15 bytes, float32 \[4\] takes 16"),
        (b"\x08\x01" + SHAPE_4 + b"\x18\x03\x28\x10", "'emb' is in data file 3 of 1"),
        (b"\x08\x01" + SHAPE_4 + b"\x3a\x06\x0a\x04\x08\x00\x10\x02", "a slice that is not in"),
        (b"\x08\x01\x12\xff", "entry b'emb' is damaged"),
    ],
)
def test_an_entry_that_does_not_add_up_is_refused(tmp_path, entry, message):
    write_table(tmp_path / "v.index", {b"": b"\x08\x01", b"emb": entry})
    with pytest.raises(DataLoss, match=message):
        open_bundle(str(tmp_path / "v"))
