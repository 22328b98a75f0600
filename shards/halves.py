"""Tables of half precision: their rows are summed as float32. Pure.

So do TensorFlow's SparseSegment kernels. The sums travel and are added up as float32, and are
rounded once, when they are complete. Sums of halves of like size are exact in float32, so that it
does not matter which shard added what.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Tables' dtypes whose sums have another dtype, float32.
HALVES = frozenset({"float16", "bfloat16"})

#: The dtypes of tables that can be scored, and of the products.
PRODUCTS: Mapping[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float32),
    "bfloat16": np.dtype(np.float32),
}


def sums_dtype(dtype: str) -> np.dtype[Any]:
    """The dtype of the sums of rows, and of their weights, of a table of `dtype`."""
    return np.dtype(np.float32 if dtype in HALVES else dtype)


def widened(values: Array, dtype: str) -> Array:
    """Elements of a table of half precision as float32; those of bfloat16 come as uint16."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
