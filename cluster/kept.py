"""What a run has to remember when its controller dies: kept by Ray itself, as bytes, by name."""

from __future__ import annotations

from ray.experimental import internal_kv

_NAMESPACE = b"shardserve"


class Kept:
    """Notes of one run. The calls block for as long as one to Ray's head takes."""

    def __init__(self, run: str) -> None:
        self._run = run

    def put(self, name: str, value: bytes) -> None:
        """Keep `value`, instead of what was kept by that name."""
        internal_kv._internal_kv_put(self._key(name), value, namespace=_NAMESPACE)

    def get(self, name: str) -> bytes | None:
        """What was kept, if anything was."""
        found: bytes | None = internal_kv._internal_kv_get(self._key(name), namespace=_NAMESPACE)
        return found

    def forget(self, *names: str) -> None:
        """Keep nothing by these names."""
        for name in names:
            internal_kv._internal_kv_del(self._key(name), namespace=_NAMESPACE)

    def _key(self, name: str) -> bytes:
        return f"{self._run}/{name}".encode()
