"""The Celery app with a look into the process that runs the units: what it holds by the units it has handled.

    celery -A tests.benchmarks.insider worker …

Every INSIDER_EVERY units that process collects its garbage, gives what is free back to the kernel, and writes
a line of JSON to a file in INSIDER_FOLDER that has its pid for a name: what is left then is held. With
INSIDER_TRACE it says too which lines of Python asked for what it holds more of than at its first look.
"""

import ctypes
import gc
import json
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import signals

from workers.celery import app

KIB, FRAMES, SHOWN = 1024, 12, 30
libc = ctypes.CDLL(None)
app.conf.worker_max_tasks_per_child = None  # the very process is to be seen, for as long as it takes


class Insider:
    """Counts the units of this process, and looks whenever there are enough more."""

    def __init__(self, folder: Path, every: int, *, trace: bool) -> None:
        self.folder, self.every, self.trace = folder, every, trace
        self.units = 0
        self.first: tracemalloc.Snapshot | None = None
        self.lock = threading.Lock()

    def begin(self, **_: Any) -> None:
        if self.trace and not tracemalloc.is_tracing():
            tracemalloc.start(FRAMES)

    def count(self, **_: Any) -> None:
        with self.lock:
            self.units += 1
            if self.units % self.every == 0:
                self.look()

    def look(self) -> None:
        gc.collect()
        libc.malloc_trim(0)
        found: dict[str, Any] = {"units": self.units, "blocks": sys.getallocatedblocks(), **memory()}
        if self.trace:
            found["grown"] = self.grown()
        with (self.folder / str(os.getpid())).open("a") as file:
            file.write(json.dumps(found) + "\n")

    def grown(self) -> list[str]:
        now = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])
        self.first = self.first or now
        return [str(each) for each in now.compare_to(self.first, "lineno")[:SHOWN]]


def memory() -> dict[str, float]:
    """Megabytes that are resident, and those of them that no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"resident_mb": kib["Rss"] * KIB / 1e6, "own_mb": own * KIB / 1e6}


def listen(signal: Any, receiver: Callable[..., None]) -> None:
    signal.connect(receiver, weak=False)


insider = Insider(
    Path(os.environ["INSIDER_FOLDER"]),
    int(os.environ["INSIDER_EVERY"]),
    trace="INSIDER_TRACE" in os.environ,
)
listen(signals.worker_process_init, insider.begin)
listen(signals.worker_ready, insider.begin)
listen(signals.task_postrun, insider.count)
