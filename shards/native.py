"""Compiled kernels in a process that has no compiler: built once a machine, by a child process.

numba costs a process 64 MB for good (115 MB at its peak) and half a second, also where it finds its
code in its own cache. Here a child imports it, compiles `kernel_code` for this processor and leaves
an object file; whoever needs the kernels loads that with llvmlite, for 13 MB and a tenth of a
second.

The file is kept in `$SHARDSERVE_CACHE_DIR`, else `$XDG_CACHE_HOME/shardserve`, else
`~/.cache/shardserve`, under a name that changes with the kernels' source, LLVM and the processor.
Where that cannot be written, it is built again for every process, in a temporary directory.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

import shardserve
from shardserve.batching.errors import Internal
from shardserve.shards.memory import release_code_pages

Kernel = Callable[..., int]

#: What kernels may call.
LIBC = ("posix_fadvise", "pread")

_HERE = Path(__file__).resolve().parent
_SOURCES = (
    *("asking_code.py", "distinct_code.py", "kernel_code.py", "lanes.py", "native.py"),
    *("row_forms.py", "storage.py"),
)


@dataclass(frozen=True)
class Library:
    """The kernels of `kernel_code.kernels`, by name, and the engine that owns their code.

    A kernel takes Python ints and runs without the interpreter's lock. It trusts its arguments:
    only `kernels.py`, `coded.py` and `row_files.py` call one.
    """

    kernels: Mapping[str, Kernel]
    engine: Any


@functools.cache
def library(group: str = "rows") -> Library:
    """The machine's kernels of one group. The first call loads them, and builds them if need be.

    "coded" are those for rows at a lower precision, "rows" all others: compiling takes seconds, so
    it is put off to where a layout asks for it. LLVM's pages are given back afterwards. Raises
    Internal if the kernels do not compile.
    """
    found = _find(group)
    release_code_pages()
    return found


def _find(group: str) -> Library:
    try:
        directory = _cache_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _load(_built(directory, group))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    with tempfile.TemporaryDirectory(prefix="shardserve-") as temporary:
        return _load(_built(Path(temporary), group))


def _cache_directory() -> Path:
    named = os.environ.get("SHARDSERVE_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(named) if named else Path(base).expanduser() / "shardserve"


def _built(directory: Path, group: str) -> Path:
    """The object file in `directory`, built by a child process if it is not there or damaged."""
    path = directory / f"kernels-{group}-{_key()}.o"
    if not _intact(path):
        with _lock(path.with_suffix(".lock")):
            if not _intact(path):
                _build(path, group)
    return path


def _key() -> str:
    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update((_HERE / source).read_bytes())
    features = llvm.get_host_cpu_features().flatten()
    digest.update(f"{llvmlite.__version__} {llvm.get_host_cpu_name()} {features}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file's lock: of processes that start together, one builds and the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(path: Path, group: str = "rows") -> None:
    command = [sys.executable, "-m", "shardserve.shards.native", str(path), group]
    paths = [str(_package_root()), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    child = subprocess.run(command, env=environment, capture_output=True, check=False)  # noqa: S603
    if child.returncode:
        raise Internal(f"kernels do not compile: {child.stderr.decode(errors='replace')[-2000:]}")


def _package_root() -> Path:
    """The directory to import `shardserve` from: its packages may lie there behind links."""
    return Path(shardserve.__file__).resolve().parent.parent


def _write(path: Path, group: str) -> None:
    """Compile, and put the file in place whole: a digest, the functions as JSON, object code."""
    from shardserve.shards.kernel_code import compile_object  # noqa: PLC0415 (imports numba)

    functions, code = compile_object(_target(), group)
    body = json.dumps(functions).encode() + b"\n" + code
    draft = path.with_suffix(f".{os.getpid()}.draft")
    draft.write_bytes(hashlib.sha256(body).digest() + body)
    draft.rename(path)


def _intact(path: Path) -> bool:
    if not path.exists():
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[32:]).digest() == content[:32]


def _load(path: Path) -> Library:
    head, _, code = path.read_bytes()[32:].partition(b"\n")
    for name in LIBC:
        function = ctypes.CDLL(None)[name]
        llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    kernels = {
        name: ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * numbers)(
            engine.get_function_address(symbol)
        )
        for name, (symbol, numbers) in json.loads(head).items()
    }
    return Library(kernels, engine)


def _target() -> Any:
    """This processor. The code may come to lie far from what it calls, hence the large model."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="large",
        jit=True,
    )


if __name__ == "__main__":
    _write(Path(sys.argv[1]), sys.argv[2])
