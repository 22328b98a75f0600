"""The GPU benchmark where there is no GPU, and its check, which has to find a wrong kernel."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.report import Options
from shardserve.shards.gpu_calls import Call
from shardserve.shards.gpu_device import why_no_gpu
from tests.shards.gpus import EmulatedGpu, devices

LIGHT = """
import sys
from benchmarks import gpu
from benchmarks.report import Options
gpu.run(Options(quick=True))
heavy = {"ray", "tensorflow", "llvmlite", "numba", "msgpack", "typer", "rich", "pydantic"}
print(sorted(heavy & set(sys.modules)))
"""


def test_it_needs_nothing_but_numpy_and_cupy():
    found = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing():
    report = gpu.run(Options())
    (row,) = report.rows
    assert (row.metric, row.value, row.note) == ("missing", None, why_no_gpu())
    assert [(claim.name, claim.value, claim.holds) for claim in report.claims] == [
        ("gpu.fp32_vs_copy", None, False),
        ("gpu.fp32_vs_torch", None, False),
    ]


@pytest.mark.parametrize(
    "module", [["benchmarks", "gpu", "--quick"], ["benchmarks.gpu", "--quick"]]
)
def test_it_ends_cleanly(module):
    command = [sys.executable, "-m", *module]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "gpu.fp32_vs_copy" in found.stdout


@pytest.mark.parametrize("device", devices().values(), ids=devices())
def test_every_kernel_is_within_its_bound_of_float64(device):
    assert 0 < gpu.check(device()) <= 1


class Forgetful(EmulatedGpu):
    """A device that loses one element of each answer."""

    def perform(self, memory: np.ndarray, call: Call) -> tuple[np.ndarray, int]:
        result, missed = super().perform(memory, call)
        if result.dtype == np.float64:
            result[-1, -1] = 0
        return result, missed


@pytest.mark.skipif("gpu, emulated" not in devices(), reason="there is no compiler for the kernels")
def test_a_wrong_answer_is_found():
    with pytest.raises(AssertionError):
        gpu.check(Forgetful())
