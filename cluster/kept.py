"""What a run has to remember when its controller dies: kept by Ray itself, as bytes, by name."""

from __future__ import annotations

from ray.experimental.internal_kv import _internal_kv_del as _delete
from ray.experimental.internal_kv import _internal_kv_get as _get
from ray.experimental.internal_kv import _internal_kv_list as _list
from ray.experimental.internal_kv import _internal_kv_put as _put

_NAMESPACE = b"shardserve"


def kept_runs() -> set[str]:
    """Who has notes."""
    return {key.decode().partition("/")[0] for key in _list(b"", namespace=_NAMESPACE)}


class Kept:
    """Notes of one run. The calls block for as long as one to Ray's head takes."""

    def __init__(self, run: str) -> None:
        self._run = run

    def put(self, name: str, value: bytes) -> None:
        """Keep `value`, instead of what was kept by that name."""
        _put(self._key(name), value, namespace=_NAMESPACE)

    def get(self, name: str) -> bytes | None:
        """What was kept, if anything was."""
        found: bytes | None = _get(self._key(name), namespace=_NAMESPACE)
        return found

    def forget(self, *names: str) -> None:
        """Keep nothing by these names."""
        for name in names:
            _delete(self._key(name), namespace=_NAMESPACE)

    def forget_all(self) -> None:
        """Keep nothing of this run."""
        _delete(self._key(""), del_by_prefix=True, namespace=_NAMESPACE)

    def _key(self, name: str) -> bytes:
        return f"{self._run}/{name}".encode()
