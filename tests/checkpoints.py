"""Real checkpoints, written by TensorFlow: whole tensors, tensors in slices, many files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import tensorflow as tf

Array = npt.NDArray[Any]
Box = tuple[slice, ...]


def save(prefix: Path, tensors: Mapping[str, Array]) -> str:
    """Each tensor whole. Returns the prefix."""
    return save_boxes(prefix, [(name, tensor, None) for name, tensor in tensors.items()])


def save_boxes(prefix: Path, boxes: Sequence[tuple[str, Array, Box | None]]) -> str:
    """For each (name, tensor, box), that box of the tensor; None for the whole."""
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[name for name, _, _ in boxes],
        shape_and_slices=[_spec(tensor.shape, box) for _, tensor, box in boxes],
        tensors=[tf.constant(tensor if box is None else tensor[box]) for _, tensor, box in boxes],
    )
    return str(prefix)


def save_in_files(prefix: Path, parts: Sequence[Mapping[str, Array]]) -> str:
    """One data file for each part, under one index."""
    drafts = [save(prefix.with_name(f"draft{i}"), part) for i, part in enumerate(parts)]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=drafts, destination_prefix=str(prefix))
    return str(prefix)


def _spec(shape: tuple[int, ...], box: Box | None) -> str:
    if box is None:
        return ""
    extents = [
        "-" if part == slice(None) else f"{part.start},{part.stop - part.start}" for part in box
    ]
    return f"{' '.join(map(str, shape))} {':'.join(extents)}"


def numbered(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> Array:
    """An array whose elements all differ, as far as the dtype goes."""
    return np.arange(np.prod(shape, dtype=np.int64)).reshape(shape).astype(dtype)


def is_open(path: Path) -> bool:
    """Whether this process has the file open. Others, it opens and closes on its own threads."""
    return str(path) in {file.path for file in psutil.Process().open_files()}
