"""What the GPU tier asks of a device: launches with their geometry and arguments. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shardserve.batching.errors import InvalidArgument

Array = npt.NDArray[Any]

WARP = 32
#: Threads of a block: eight warps, each with a bag of its own, or several.
THREADS = 256
#: CUDA's bound on the second number of a grid.
MAX_GRID_Y = 65_535
#: What each array's place in a device's memory is a multiple of; no load is wider.
ALIGNMENT = 16


class Place(enum.Enum):
    """An argument that the device knows the address of."""

    TABLE = "table"
    RESULT = "result"
    MISSED = "missed"


#: An integer is passed as int64; an array is copied to the device, and its address passed; None is
#: the null address.
Argument = int | Array | Place | None


@dataclass(frozen=True)
class Geometry:
    """A launch's grid and block: x is along a row, then over items; y the other way round."""

    grid: tuple[int, int]
    block: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Call:
    """One launch of the kernel `name` of some source, which answers `shape` of `dtype`.

    The kernel writes to `missed` (a uint64 that holds ALL_FOUND before) the place of the first row
    number that is outside the table. There is at least one item, and something in each row.
    """

    code: str
    name: str
    geometry: Geometry
    arguments: tuple[Argument, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def arrays(self) -> list[Array]:
        """What has to be copied to the device, in the order of the arguments."""
        return [one for one in self.arguments if isinstance(one, np.ndarray)]


class Device(Protocol):
    """A GPU. Safe for many threads at once."""

    def hold(self, nbytes: int) -> Any:
        """Memory of so many bytes, for as long as what is returned is there.

        Raises ResourceExhausted where there is too little.
        """
        ...

    def compile(self, call: Call) -> None:
        """Have what `perform` would run ready. Raises Internal if it does not compile."""
        ...

    def release_unused(self) -> None:
        """Give back what calls took and nobody holds: a device keeps that, by thread, for others.

        For when the threads that made them are no more.
        """
        ...

    def perform(self, memory: Any, call: Call) -> tuple[Array, int]:
        """Run a call whose TABLE is `memory`, and wait for it: its result, the caller's; `missed`.

        Raises ResourceExhausted where memory for arguments and result is short, Internal where the
        device fails, and DeviceLost where it will at all that this process asks of it.
        """
        ...


def geometry(items: int, steps: int) -> Geometry:
    """Threads for `items` items of `steps` steps each, one thread for each step.

    An item's threads lie side by side in one warp, or a part of one that is a power of two; what is
    wider than a warp is divided among blocks. Raises InvalidArgument for what no grid is wide
    enough for: rows of some 8 MB and more.
    """
    lanes = min(WARP, 1 << (steps - 1).bit_length())
    per_block = THREADS // lanes
    across = -(-steps // lanes)
    if across > MAX_GRID_Y:
        raise InvalidArgument(f"rows are too wide for tier 'gpu': {steps} loads each")
    return Geometry((-(-items // per_block), across), (lanes, per_block))


def packed(arrays: Sequence[Array]) -> tuple[list[int], int]:
    """Where each array begins in a buffer that holds them all, aligned, and the buffer's bytes."""
    starts, end = [], 0
    for array in arrays:
        starts.append(end)
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return starts, end
