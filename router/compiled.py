"""Loops that are compiled at import, never in a request, and kept from one process to the next.

They are kept where numba keeps what it compiles: in `$NUMBA_CACHE_DIR`, else in `__pycache__`
beside the source, else in `$XDG_CACHE_HOME/numba` or `~/.cache/numba`, the first that can be
written. The files are pickles: who may write them can run code in the server. Where there is no
such place, every process compiles for itself, which takes seconds.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

_log = logging.getLogger(__name__)

#: A function that is compiled into those that call it, for the types they give it.
part = numba.njit(nogil=True)


def compiled(
    *signatures: Any, parts: Sequence[ModuleType] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: the function, compiled for these numba signatures, to run without the GIL.

    `parts` are all other modules whose code is compiled into it: once a file of theirs changes, or
    its own, what was kept counts no more.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        loop = part(function)
        cache = _cache_of(function, parts)
        if cache is not None:
            # As `cache=True` does, with numba's own cache, which watches one file.
            loop._cache = cache  # noqa: SLF001 (numba has no other way)
        for signature in signatures:
            loop.compile(signature)
        loop.disable_compile()
        return loop

    return decorate


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's, but for several files, and for a disk that fails."""

    def __init__(self, function: Callable[..., Any], parts: Sequence[ModuleType]) -> None:
        super().__init__(function)
        stamp = (self._impl.locator.get_source_stamp(), _digest(parts))
        self._cache_file = IndexDataCacheFile(self.cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except OSError as error:
            _warn(f"{self.cache_path} cannot be read ({error.strerror})")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn(f"{self.cache_path} cannot be written ({error.strerror})")


def _cache_of(function: Callable[..., Any], parts: Sequence[ModuleType]) -> _Cache | None:
    try:
        return _Cache(function, parts)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _warn("no directory for them can be written")
        return None


def _digest(parts: Sequence[ModuleType]) -> str:
    digest = hashlib.sha256()
    for module in parts:
        digest.update(hashlib.sha256(Path(str(module.__file__)).read_bytes()).digest())
    return digest.hexdigest()


@functools.cache
def _warn(why: str) -> None:
    _log.warning("compiled loops are not kept for the next start: %s; see NUMBA_CACHE_DIR", why)
