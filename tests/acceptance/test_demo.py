"""`make demo`, interrupted: nothing that it started is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def processes():
    """Parent and start of every living process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(folder.name)] = (int(fields[1]), fields[19])
    return found


def family(pid):
    """A process and all that descend from it, each told apart from a later one with its number."""
    known, found = processes(), {pid}
    while grown := {each for each, (parent, _) in known.items() if parent in found} - found:
        found |= grown
    return {(each, known[each][1]) for each in found if each in known}


def left_of(seen):
    now = processes()
    return {(pid, started) for pid, started in seen if pid in now and now[pid][1] == started}


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_demo_leaves_no_process(tmp_path, signal_number):
    """However it is stopped: by Ctrl-C, politely, or without a word."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "tests.demo", "--state", str(tmp_path / "demo")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = []
    for line in demo.stdout:
        said.append(line)
        if line.startswith("1. "):
            break
    seen = family(demo.pid)
    assert len(seen) > 10, "".join(said)
    os.kill(demo.pid, signal_number)
    said.append(demo.communicate(timeout=60)[0])
    deadline_s = time.monotonic() + 10
    while left_of(seen) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert left_of(seen) == set()
    assert demo.returncode == (-9 if signal_number == signal.SIGKILL else 130)
    assert "Traceback" not in "".join(said)
