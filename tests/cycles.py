"""Whether what was done has left reference cycles of our own objects for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import inspect
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import shardserve

#: Those of the packages too, which are links there.
_OURS = tuple(
    str(folder.resolve())
    for folder in Path(shardserve.__file__).parent.iterdir()
    if folder.is_dir() and folder.name != "__pycache__"
)


@contextmanager
def collected() -> Iterator[list[Any]]:
    """What becomes unreachable in here, but is not freed until a collection finds it.

    The list is filled at the end, and emptied by whoever is done with it.
    """
    was_enabled, flags = gc.isenabled(), gc.get_debug()
    gc.collect()
    gc.disable()
    gc.freeze()
    gc.set_debug(gc.DEBUG_SAVEALL)
    found: list[Any] = []
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.garbage.clear()
        gc.set_debug(flags)
        gc.unfreeze()
        if was_enabled:
            gc.enable()


async def assert_leaves_no_cycles(ask: Callable[[], Awaitable[object]], times: int = 10) -> None:
    """`ask` leaves nothing of ours for the collector, from the second time on.

    What the first makes once for all may be in cycles.
    """
    await ask()
    await _settled()
    with collected() as found:
        for _ in range(times):
            await ask()
        await _settled()
    ours = Counter(filter(None, map(_ours, found)))
    found.clear()
    assert not ours, f"left for the garbage collector by {times} times: {dict(ours)}"


async def _settled() -> None:
    """Callbacks that are due have run, and theirs."""
    for _ in range(10):
        await asyncio.sleep(0)


def _ours(thing: Any) -> str | None:
    """What it is, if it is ours."""
    code = _code_of(thing)
    if code is not None:
        return _named(code) if code.co_filename.startswith(_OURS) else None
    kind = type(thing)
    return kind.__qualname__ if kind.__module__.startswith("shardserve.") else None


def _code_of(thing: Any) -> types.CodeType | None:
    match thing:
        case types.FrameType():
            return thing.f_code
        case types.TracebackType():
            return thing.tb_frame.f_code
        case types.CoroutineType():
            return thing.cr_code
        case types.GeneratorType():
            return thing.gi_code
        case types.AsyncGeneratorType():
            return thing.ag_code
        case types.FunctionType():
            return thing.__code__
        case types.MethodType() if inspect.isfunction(thing.__func__):
            return thing.__func__.__code__
    return None


def _named(code: types.CodeType) -> str:
    return f"{Path(code.co_filename).name}:{code.co_qualname}"
