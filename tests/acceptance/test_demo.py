"""`make demo`, interrupted and to its end: it keeps its promises, and nothing that it started is left."""

import os
import re
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


def start_demo(directory):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.demo", "--state", str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def assert_gone(seen):
    deadline_s = time.monotonic() + 10
    while left_of(seen) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert left_of(seen) == set()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_demo_leaves_no_process(tmp_path, signal_number):
    """However it is stopped: by Ctrl-C, politely, or without a word."""
    demo = start_demo(tmp_path / "demo")
    said = []
    for line in demo.stdout:
        said.append(line)
        if line.startswith("1. "):
            break
    seen = family(demo.pid)
    assert len(seen) > 10, "".join(said)
    os.kill(demo.pid, signal_number)
    said.append(demo.communicate(timeout=60)[0])
    assert_gone(seen)
    assert demo.returncode == (-9 if signal_number == signal.SIGKILL else 130)
    assert "Traceback" not in "".join(said)


@pytest.mark.chaos
def test_the_whole_demo(tmp_path):
    """Partial success, a skipped run and a recovery, no limit exceeded, and no process left at the end."""
    said, seen = [], set()
    with start_demo(tmp_path / "demo") as demo:
        for line in demo.stdout:
            said.append(line)
            seen |= family(demo.pid)
    text = "".join(said)
    assert demo.returncode == 0, text
    assert len(seen) > 10
    assert_gone(seen)
    table = re.findall(
        r"^ *\d+ +(\w+) +(scheduled|adhoc) +(\w+)", text.partition("What came of it")[2], re.MULTILINE
    )
    print(f"\n{text.strip().splitlines()[-2:]} {table}")
    binance = [outcome for collector, _, outcome in table if collector == "binance"]
    assert binance == ["partial"] * max(2, len(binance))  # the bad market is in each of them
    assert {
        ("asana", "scheduled", "ok"),
        ("coinbase", "adhoc", "ok"),
        ("coinbase", "scheduled", "skipped"),
    } <= set(table)
    assert "BADUSDT failed alone" in text
    assert "The ad-hoc run waited behind the circuit and came to its end by itself." in text
    assert "over a documented limit: 0\n" in text
    assert "Traceback" not in text
