"""Which file of a directory is its SavedModel."""

from __future__ import annotations

from pathlib import Path

from shardserve.batching.errors import Unimplemented

_BINARY, _TEXT = "saved_model.pb", "saved_model.pbtxt"
#: What TensorFlow's `experimental_image_format` writes. No public build of its Python writes it.
_CHUNKED = "saved_model.cpb"


def graph_file(directory: Path) -> Path:
    """`saved_model.pb`, or `saved_model.pbtxt` where only that is there; either may be absent.

    Raises Unimplemented, naming the file, where there is only one in chunks.
    """
    binary, text, chunked = (directory / name for name in (_BINARY, _TEXT, _CHUNKED))
    if binary.is_file():
        return binary
    if text.is_file():
        return text
    if chunked.is_file():
        raise Unimplemented(
            f"{chunked}: a SavedModel in chunks (experimental_image_format) cannot be read; export "
            f"the model as {_BINARY}"
        )
    return binary
