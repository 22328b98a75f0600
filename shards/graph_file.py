"""Which file of a directory is its SavedModel."""

from __future__ import annotations

from pathlib import Path

_BINARY, _TEXT = "saved_model.pb", "saved_model.pbtxt"


def graph_file(directory: Path) -> Path:
    """`saved_model.pb`, or `saved_model.pbtxt` where only that is there; either may be absent."""
    binary, text = directory / _BINARY, directory / _TEXT
    return text if text.is_file() and not binary.is_file() else binary
