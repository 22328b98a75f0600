from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.server_process import DidNotStart, ServerProcess

#: Starts a process of another session, whose parent then dies: as daemons come about. Then it
#: works for more than a tick of the clock that the kernel counts a process's time with.
DAEMON = """
import subprocess, sys, time
leaves = "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
subprocess.run([sys.executable, "-c", leaves])
while time.process_time() < 0.1:
    pass
print("ready", flush=True)
time.sleep(1000)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_all_that_a_server_started_ends_with_it(tmp_path: Path) -> None:
    with ServerProcess(python(DAEMON), tmp_path / "log") as server:
        assert server.wait_until(lambda: server.said("ready"), 60.0) > 0.0
        processes = server.processes()
        assert any("sleep" in process.name() for process in processes)
        assert all(one.peak_bytes > 0 for one in server.memory())
        assert server.cpu_seconds() > 0.0
    assert not any(process.is_running() for process in processes)


def test_a_server_that_ends_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    words = python("import sys; print('no such model'); sys.exit(3)")
    with (
        ServerProcess(words, tmp_path / "log") as server,
        pytest.raises(DidNotStart, match="ended with 3: no such model"),
    ):
        server.wait_until(lambda: False, 60.0)


def test_a_server_that_is_not_ready_in_time_is_given_up(tmp_path: Path) -> None:
    with (
        ServerProcess(["sleep", "1000"], tmp_path / "log") as server,
        pytest.raises(DidNotStart, match="not ready after 0 s"),
    ):
        server.wait_until(lambda: False, 0.0)


def test_what_cannot_be_run_at_all_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DidNotStart, match="No such file"):
        ServerProcess(["/no/such/program"], tmp_path / "log")
