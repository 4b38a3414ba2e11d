"""A directory for the files that libraries insist on: each process has one, which ends with it."""

import atexit
import os
import shutil
import tempfile
import threading
from pathlib import Path

_lock = threading.Lock()
_made: dict[int, str] = {}  # by process: a forked child knows that of its parent too, and must leave it alone


def scratch() -> Path:
    """The directory of this process, made when first asked for. Raises OSError where none can be made."""
    pid = os.getpid()
    with _lock:
        if pid not in _made:
            _made[pid] = tempfile.mkdtemp(prefix="penstock-")
            atexit.register(remove)
        return Path(_made[pid])


def remove() -> None:
    """Remove the directory of this process. Celery's children have to call this: they skip `atexit`."""
    found = _made.pop(os.getpid(), None)
    if found is not None:
        shutil.rmtree(found, ignore_errors=True)
