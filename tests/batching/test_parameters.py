"""TensorFlow Serving's batching parameters: its defaults, its checks, its file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardserve.batching.errors import InvalidArgument, NotFound, ServingError
from shardserve.batching.parameters import (
    BatchingParameters,
    parse_batching_parameters,
    read_batching_parameters,
)

EVERYTHING = """
max_batch_size { value: 128 }      # a comment
batch_timeout_micros { value: 500 }
max_enqueued_batches { value: 1000000 }
num_batch_threads { value: 4 }
thread_pool_name { value: "pool" }
allowed_batch_sizes: 8
allowed_batch_sizes: [32, 128]
pad_variable_length_inputs: true
enable_large_batch_splitting { value: false }
"""


def test_an_empty_file_gives_the_defaults():
    assert parse_batching_parameters("", "file") == BatchingParameters()
    defaults = BatchingParameters(num_batch_threads=3)
    assert (defaults.max_batch_size, defaults.batch_timeout_micros) == (1000, 0)
    assert (defaults.max_enqueued_batches, defaults.allowed_batch_sizes) == (10, ())
    assert not defaults.pad_variable_length_inputs


def test_every_field_is_read(tmp_path):
    path = tmp_path / "batching.txt"
    path.write_text(EVERYTHING)
    assert read_batching_parameters(path) == BatchingParameters(
        128, 500, 1000000, 4, (8, 32, 128), True, "pool"
    )


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "max_batch_size { value: 1 }\n max_batchsize { value: 2 }",
            InvalidArgument,
            "file: .*2:2",
        ),
        ("max_batch_size: 12", InvalidArgument, "file: .*BatchingParameters: 1:17"),
        ("max_batch_size { value: many }", InvalidArgument, "1:25"),
        ("max_batch_size { value: 0 }", InvalidArgument, "file: max_batch_size must be positive"),
        ("num_batch_threads {}", InvalidArgument, "num_batch_threads must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", InvalidArgument, "must be non-negative; was -1"),
        ("max_enqueued_batches { value: -1 }", InvalidArgument, "max_enqueued_batches"),
        ("allowed_batch_sizes: 4", InvalidArgument, "last entry was 4; expected 1000"),
        ("allowed_batch_sizes: [9, 9, 1000]", InvalidArgument, "monotonically increasing"),
        ("allowed_batch_sizes: [0, 1000]", InvalidArgument, "must be positive; was 0"),
        (
            "max_execution_batch_size { value: 1001 }",
            InvalidArgument,
            "at most max_batch_size",
        ),
    ],
)
def test_what_makes_no_sense_or_is_not_done_is_refused_by_name(text, error, message):
    with pytest.raises(error, match=message):
        parse_batching_parameters(text, "file")


def test_an_unreadable_file_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"missing\.txt: No such file"):
        read_batching_parameters(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes(b"# \xff")
    with pytest.raises(InvalidArgument, match=r"latin\.txt: .*utf-8"):
        read_batching_parameters(tmp_path / "latin.txt")


@given(st.text())
def test_any_text_is_parsed_or_refused(text):
    try:
        assert isinstance(parse_batching_parameters(text, "file"), BatchingParameters)
    except ServingError as error:
        assert error.message.startswith("file: ")  # noqa: PT017 (most texts raise, not all)


@given(st.sets(st.integers(1, 50), min_size=1), st.data())
def test_batches_are_padded_to_the_next_allowed_size(sizes, data):
    allowed = tuple(sorted(sizes))
    parameters = BatchingParameters(max_batch_size=allowed[-1], allowed_batch_sizes=allowed)
    rows = data.draw(st.integers(1, allowed[-1]))
    assert parameters.padded(rows) == min(size for size in allowed if size >= rows)
    assert parameters.padded(0) == 0
    assert BatchingParameters().padded(rows) == rows
