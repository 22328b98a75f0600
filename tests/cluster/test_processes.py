from __future__ import annotations

import subprocess
import sys

ORPHAN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys
command = [sys.executable, "-c", {ORPHAN!r}]
orphan = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
orphan.stdout.readline()
"""
FAMILY = f"""
import subprocess, sys
from shardserve.cluster.processes import adopt_orphans, end_descendants
adopt_orphans()
subprocess.run([sys.executable, "-W", "ignore", "-c", {PARENT!r}], check=True)
print(len(end_descendants(grace=0.2)))
"""
ALONE = """
from shardserve.cluster.processes import adopt_orphans, end_descendants
adopt_orphans()
print(len(end_descendants(grace=1.0)))
"""


def printed_by(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_a_process_without_descendants_has_nothing_to_end() -> None:
    assert printed_by(ALONE) == "0"


def test_an_orphan_in_a_session_of_its_own_that_ignores_sigterm_is_ended() -> None:
    assert printed_by(FAMILY) == "1"
