"""Compiled once a machine, loaded without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardserve.batching.errors import Internal
from shardserve.shards import native

POOL = """
import sys
import numpy as np
from shardserve.shards.kernels import RowKernels
from shardserve.shards.memory import current_rss_bytes, peak_rss_bytes
kernels = RowKernels(np.ones((3, 64), np.float32))
pooled = kernels.pool(np.array([0, 2, 1]), np.array([0, 2, 3]))
shrunk = peak_rss_bytes() - current_rss_bytes()
print(pooled[:, 0].tolist(), "numba" in sys.modules, shrunk > 10 << 20)
"""


def run(code: str, **environment: str) -> str:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return done.stdout.strip()


def test_a_process_pools_without_numba_and_after_giving_llvm_back(tmp_path):
    assert run(POOL, SHARDSERVE_CACHE_DIR=str(tmp_path)) == "[2.0, 1.0] False True"
    (built,) = tmp_path.glob("*.o")
    before = built.stat().st_mtime_ns
    assert run(POOL, SHARDSERVE_CACHE_DIR=str(tmp_path)) == "[2.0, 1.0] False True"
    assert built.stat().st_mtime_ns == before

    built.write_bytes(built.read_bytes()[:-100])
    assert run(POOL, SHARDSERVE_CACHE_DIR=str(tmp_path)) == "[2.0, 1.0] False True"


def test_kernels_are_built_where_the_cache_cannot_be_written():
    # A directory in which even the superuser may not make one.
    assert run(POOL, SHARDSERVE_CACHE_DIR="/sys/kernel/shardserve") == "[2.0, 1.0] False True"


def test_a_build_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(native.sys, "executable", "/bin/false")
    with pytest.raises(Internal, match="kernels do not compile"):
        native._build(tmp_path / "kernels.o")
