"""How the device is driven, and what becomes of its errors, shown with a stand-in for CuPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shardserve.batching.errors import Internal, ResourceExhausted, ServingError
from shardserve.shards.device_loss import DeviceLost, UntilLost
from shardserve.shards.gpu_device import CupyDevice
from shardserve.shards.gpu_loading import load_gpu
from shardserve.shards.gpu_store import GpuStore
from shardserve.shards.layout import Slice
from shardserve.shards.messages import LookupRequest, Op, Part
from shardserve.shards.rows import RowHash
from shardserve.shards.shard import Shard
from shardserve.shards.storage import Precision, Storage, Tier
from tests.shards import fake_cupy
from tests.shards.fake_cupy import Cuda
from tests.shards.gpus import why_no_emulation
from tests.shards.stores import written

pytestmark = pytest.mark.skipif(why_no_emulation() is not None, reason="no g++ for the kernels")

ILLEGAL_ADDRESS, INVALID_VALUE, SHORT_OF_MEMORY = 700, 1, 2
TABLE = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
PIECE = Slice("table", 0, RowHash(0, 2, 50), 0, 8, Storage(Tier.GPU, Precision.INT8))
ROWS = np.array([3, 0, 3])


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    state = Cuda()
    for name, module in fake_cupy.modules(state).items():
        monkeypatch.setitem(sys.modules, name, module)
    return state


@pytest.fixture
def store(cuda: Cuda) -> GpuStore:
    made = GpuStore(CupyDevice(), 50, 8, "float32")
    made.put(np.arange(50), TABLE.view(np.uint8))
    return made


def test_arguments_go_over_and_answers_come_back(store):
    np.testing.assert_array_equal(store.gather(ROWS), TABLE[ROWS])
    weights = np.array([1.0, 2.0, 3.0], np.float32)
    expected = [TABLE[3] + 2 * TABLE[0], 3 * TABLE[3]]
    found = store.pool(ROWS, np.array([0, 2, 3]), weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_slice_is_loaded_through_it(cuda, tmp_path):
    store = load_gpu(written(tmp_path / "data", TABLE, "float32"), PIECE, None, CupyDevice())
    own = PIECE.rows.rows(0, PIECE.rows.count)
    np.testing.assert_allclose(store.gather(np.arange(25)), TABLE[own], atol=0.02)


@pytest.mark.parametrize(
    ("failing", "error", "message"),
    [
        ({"launch": INVALID_VALUE}, Internal, "the GPU failed: CUDA error 1"),
        ({"pin": SHORT_OF_MEMORY}, ResourceExhausted, "too little pinned memory for a lookup"),
        ({"every": ILLEGAL_ADDRESS}, DeviceLost, "cannot use it again: CUDA error 700"),
        ({"copy": ILLEGAL_ADDRESS, "device": ILLEGAL_ADDRESS}, DeviceLost, "CUDA error 700"),
    ],
)
def test_an_error_says_whether_it_lasts(cuda, store, failing, error, message):
    cuda.failing = failing
    with pytest.raises(error, match=message) as raised:
        store.gather(ROWS)
    assert type(raised.value) is error
    cuda.failing = {}
    np.testing.assert_array_equal(store.gather(ROWS), TABLE[ROWS])


@pytest.mark.parametrize(
    ("capacity", "failing", "error", "message"),
    [
        (100, {}, ResourceExhausted, "GPU has too little memory for a slice of 300 bytes: 5 of"),
        (310, {}, ResourceExhausted, "GPU has too little memory for a lookup"),
        (100, {"memory": ILLEGAL_ADDRESS, "device": ILLEGAL_ADDRESS}, DeviceLost, "700"),
        (1000, {"launch": INVALID_VALUE}, Internal, "the GPU failed"),
    ],
)
def test_what_fails_while_a_slice_is_loaded_names_the_table(
    cuda, tmp_path: Path, capacity, failing, error, message
):
    source = written(tmp_path / "data", TABLE, "float32")
    cuda.capacity, cuda.failing = capacity, failing
    with pytest.raises(error, match=f"table 'table': .*{message}"):
        load_gpu(source, PIECE, None, CupyDevice())


def test_a_shard_whose_device_is_lost_says_so_with_each_request(cuda, store):
    lost: list[ServingError] = []
    executor = UntilLost(Shard([store]), lost.append)
    request = LookupRequest((Part(0, Op.GATHER, ROWS),))
    executor.execute(request)
    assert not lost
    cuda.failing = {"every": ILLEGAL_ADDRESS}
    for _ in range(2):
        with pytest.raises(DeviceLost, match=r"parts\[0\]: slice 0: the GPU failed"):
            executor.execute(request)
    assert len(lost) == 2


ENDING = """
import sys
import numpy as np
from shardserve.cluster.local_version import end_process
from shardserve.shards.device_loss import UntilLost
from shardserve.shards.messages import LookupRequest, Op, Part
from shardserve.shards.shard import Shard
from tests.shards import fake_cupy

cuda = fake_cupy.Cuda()
sys.modules.update(fake_cupy.modules(cuda))
from shardserve.shards.gpu_device import CupyDevice
from shardserve.shards.gpu_store import GpuStore

shard = UntilLost(Shard([GpuStore(CupyDevice(), 50, 8, "float32")]), end_process)
cuda.failing = {"every": 700}
shard.execute(LookupRequest((Part(0, Op.GATHER, np.array([1])),)))
"""


def test_a_process_whose_device_is_lost_says_why_and_ends():
    ended = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "slice 0: the GPU failed, and this process cannot use it again" in ended.stderr
    assert "Traceback" not in ended.stderr
