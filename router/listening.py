"""Sockets that several processes of a node share, so that each takes a part of the connections."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from shardserve.batching.errors import Unavailable

#: Connections that wait to be accepted.
BACKLOG = 1024

#: All addresses, of IPv6 and IPv4.
ANY_HOST = ""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`, or on every address if it is `ANY_HOST`; port 0 is any free.

    Every process that listens on the same port this way gets its share of new connections. Raises
    Unavailable, naming the address, if it cannot be had: also where somebody listens on it alone.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = host == ANY_HOST and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if dual else family,
            backlog=BACKLOG,
            reuse_port=True,
            dualstack_ipv6=dual,
        )
    except OSError as error:
        where = f"{host or 'all addresses'}, port {port}"
        raise Unavailable(f"cannot listen on {where}: {error.strerror or error}") from error


def claim_socket(path: str) -> None:
    """Make sure that a Unix socket can be made at `path`: what an ended server left there goes.

    Raises Unavailable if somebody listens there or may do so, or what is there is no socket.
    """
    try:
        kind = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"cannot listen on {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(kind):
        raise Unavailable(f"cannot listen on {path}: it is there, and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        # Its backlog may be full, which must not make us wait.
        probe.setblocking(False)
        found = probe.connect_ex(path)
    if found in (0, errno.EAGAIN):
        raise Unavailable(f"cannot listen on {path}: somebody else does")
    if found not in (errno.ECONNREFUSED, errno.ENOENT):
        raise Unavailable(f"cannot listen on {path}: {os.strerror(found)}")
    Path(path).unlink(missing_ok=True)
