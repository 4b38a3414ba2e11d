"""What a worker process does when it starts, lives and stops."""

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
from typing import Any

from celery import signals

from resilience.errors import DatabaseError, StoreUnavailableError
from resilience.limiter import DEFAULT_LEASE
from tasks import heartbeat, schedules, scratch, units
from tasks.collectors.registry import collectors
from tasks.limits import guard
from tasks.settings import get_settings

logger = logging.getLogger(__name__)

KIND_VARIABLE = "_PENSTOCK_WORKER_KIND"  # set by `penstock worker`: units | ctl | alone
PR_SET_PDEATHSIG = 1
# Of glibc's mallopt: free memory at the top that is kept, memory asked for beyond what is needed, heaps.
M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX = -1, -2, -8

# Made before the pool forks, so that children see it too: a warm shutdown ends slices at the next page.
# Without a lock: a child that is killed while it holds one would stop all others.
_stopping = multiprocessing.get_context("fork").RawValue("b", 0)
units.stopping = lambda: bool(_stopping.value)


def kind() -> str:
    """What this worker is for."""
    return os.environ.get(KIND_VARIABLE, "units")


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends: an orphan would run units nobody can acknowledge."""
    if hasattr(ctypes, "CDLL") and os.uname().sysname == "Linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def share_one_heap() -> None:
    """Have glibc serve all threads from one heap; Python's lock makes them take turns anyway.

    By default up to eight threads a core get a heap of their own. What one leaves free none of the others
    can use, and a worker with threads grows for thousands of units although it holds no more than before.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have one heap
        libc.mallopt(M_ARENA_MAX, 1)
        # With the defaults the one heap would be cut and extended several times a unit.
        libc.mallopt(M_TRIM_THRESHOLD, 16 << 20)
        libc.mallopt(M_TOP_PAD, 1 << 20)


class Heartbeat(threading.Thread):
    """Writes this process's row every few seconds; a database that is away is tried again."""

    def __init__(self, slots: int) -> None:
        super().__init__(name="penstock-heartbeat", daemon=True)
        self.slots = slots
        self.stopped = threading.Event()

    def run(self) -> None:
        """Beat until stopped."""
        interval_s = get_settings().heartbeat_s
        while not self.stopped.is_set():
            try:
                heartbeat.beat(kind(), self.slots)
            except DatabaseError as error:
                logger.warning("no heartbeat: %s", error)
            except Exception:
                # Without this thread a living worker would be taken for dead again and again.
                logger.exception("no heartbeat")
            self.stopped.wait(interval_s)

    def stop(self) -> None:
        """End, and say so in SQL, so that nobody waits for this process."""
        self.stopped.set()
        try:
            heartbeat.stop()
        except DatabaseError as error:
            logger.warning("the end of this worker is not written: %s", error)


_heartbeat: Heartbeat | None = None


def _begin(slots: int) -> None:
    global _heartbeat  # noqa: PLW0603 - one per process, and signals carry no state
    _heartbeat = Heartbeat(slots)
    _heartbeat.start()


@signals.worker_init.connect
def worker_begins(**_: Any) -> None:
    """Before there are threads, share a heap; before anything is admitted, say so to a new Redis if no worker
    was alive.

    A Redis that holds nothing may also have lost it, and then the calls in flight need one lease to end.
    """
    share_one_heap()
    if heartbeat.alive("units", DEFAULT_LEASE.total_seconds())[1] == 0:
        try:
            guard().store.mark_fresh(collectors())
        except StoreUnavailableError as error:
            logger.warning("limits of calls in flight will start late: %s", error)


@signals.worker_process_init.connect
def child_starts(**_: Any) -> None:
    """A prefork child runs one unit at a time."""
    die_with_parent()
    _begin(1)


@signals.worker_process_shutdown.connect
def child_stops(**_: Any) -> None:
    """A child that ends by itself is not a lost one, and leaves no files behind."""
    if _heartbeat is not None:
        _heartbeat.stop()
    scratch.remove()


@signals.worker_ready.connect
def worker_starts(sender: Any, **_: Any) -> None:
    """With threads the worker itself runs the units; a ctl worker brings the schedules up to date."""
    if not _is_prefork(sender):
        _begin(sender.controller.concurrency)
    if kind() == "ctl":
        enabled = schedules.sync()
        logger.info("schedules: %s", ", ".join(enabled) or "none (set PENSTOCK_SCHEDULES)")


@signals.worker_shutting_down.connect
def worker_stops(**_: Any) -> None:
    """Tell running units to end at their next page."""
    _stopping.value = 1


@signals.worker_shutdown.connect
def worker_stopped(sender: Any, **_: Any) -> None:
    """The last thing of a threads worker."""
    del sender
    if _heartbeat is not None:
        _heartbeat.stop()


@signals.task_unknown.connect
def unknown_task(name: str = "", **_: Any) -> None:
    """Version skew: Celery drops such a message. SQL has the unit, the reconciler sends it again."""
    logger.error("a message names the task %r, which this version does not have: update this worker", name)


def _is_prefork(sender: Any) -> bool:
    return "prefork" in sender.controller.pool_cls.__module__
