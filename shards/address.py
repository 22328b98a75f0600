"""Where one replica of a shard listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, order=True)
class Address:
    """One replica's ends to connect to: a Unix socket, a TCP port, or both.

    `node` is `this_node()` of the machine that listens; the Unix socket is there only.
    `instance` tells apart servers that follow one another at the same place.
    """

    unix_path: str | None = None
    host: str | None = None
    port: int = 0
    node: str = ""
    instance: str = ""

    def is_local(self, node: str) -> bool:
        """Whether the Unix socket can be reached from `node`, as far as one can see."""
        return self.unix_path is not None and self.node == node and Path(self.unix_path).exists()

    def __str__(self) -> str:
        tcp = f"{self.host}:{self.port}" if self.host is not None else None
        return " or ".join(filter(None, (self.unix_path, tcp))) or "nowhere"


def this_node() -> str:
    """A name of the running machine, the same for all its processes until it is booted again."""
    return _BOOT_ID.read_text().strip()
