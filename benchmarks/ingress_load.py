"""Closed-loop load from tools that are not Python: wrk over HTTP/1.1, h2load for gRPC's HTTP/2.

Both are Debian packages, `wrk` and `nghttp2-client`. Neither looks into replies: that they are
right is checked before, by clients that do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
#: gRPC's frame around a message: not compressed, and its length.
_GRPC_PREFIX = 5


class LoadError(RuntimeError):
    """The tool failed, or a reply was no success."""


@dataclass(frozen=True)
class Load:
    """What one run brought: right statuses a second, and latencies in seconds."""

    rate: float
    p50: float
    p99: float


def tools_missing() -> str | None:
    """Which package to install, None if both are there."""
    for tool, package in (("wrk", "wrk"), ("h2load", "nghttp2-client")):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian package {package})"
    return None


def rest(url: str, body: bytes, clients: int, seconds: int, directory: Path) -> Load:
    """POST `body` from `clients` connections, one request at a time on each.

    wrk knows whole seconds only.
    """
    script = directory / "post.lua"
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = {_lua(body)}\n'
        'wrk.headers["Content-Type"] = "application/json"\n'
    )
    out = _run(
        "wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "--timeout=10s",
        f"-s{script}", url,
    )  # fmt: skip
    if bad := re.search(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", out):
        raise LoadError(f"{url}: {bad.group()}")
    return Load(
        float(_found(r"Requests/sec:\s+([\d.]+)", out)),
        # At the start of a line: other lines may end in such a share.
        _seconds(_found(r"\n +50% +(\S+)", out)),
        _seconds(_found(r"\n +99% +(\S+)", out)),
    )


def grpc(
    port: int, method: str, message: bytes, clients: int, seconds: int, directory: Path
) -> Load:
    """Call a unary method from `clients` connections, one call at a time on each.

    A gRPC server that fails says so in a trailer, which h2load does not read, with a reply that
    is shorter: all replies must have the same length, but for what compressed headers vary by.
    """
    data = directory / "message.bin"
    data.write_bytes(bytes(1) + len(message).to_bytes(_GRPC_PREFIX - 1, "big") + message)
    log = directory / "h2load.log"
    log.unlink(missing_ok=True)
    out = _run(
        "h2load", f"-c{clients}", "-m1", "-t1", f"-D{seconds}", f"-d{data}",
        f"--log-file={log}", "-Hcontent-type: application/grpc", "-Hte: trailers",
        f"http://127.0.0.1:{port}{method}",
    )  # fmt: skip
    if int(_found(r"(\d+) failed", out)) or int(_found(r"(\d+) 5xx", out)):
        raise LoadError(f"{method}: {_found(r'(requests: .*)', out)}")
    micros = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    if not micros:
        raise LoadError(f"{method}: no reply in {seconds} s")
    return Load(
        float(_found(r"([\d.]+) req/s", out)),
        micros[len(micros) // 2] / 1e6,
        micros[min(len(micros) - 1, len(micros) * 99 // 100)] / 1e6,
    )


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise LoadError(f"{command[0]}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise LoadError(f"no {pattern!r} in {text[-300:]!r}")
    return found.group(1)


def _seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


def _lua(body: bytes) -> str:
    """A Lua string with decimal escapes for all but letters and digits."""
    return '"' + "".join(chr(b) if chr(b).isalnum() else f"\\{b:03d}" for b in body) + '"'
