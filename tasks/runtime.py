"""The runtime file: how other commands find what `penstock up` has started.

`<state_dir>/runtime.json` names the servers and the process that runs them. It is believed only while
that very process lives, so a file left behind by a crash misleads nobody.
"""

import contextlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where a running `penstock up` keeps its servers. The URLs hold passwords, so `repr` leaves them out."""

    pid: int
    started: int
    redis_url: str
    broker_url: str
    database_url: str

    def __repr__(self) -> str:
        return f"Runtime(pid={self.pid})"

    @staticmethod
    def path(state_dir: Path) -> Path:
        return state_dir / "runtime.json"

    @classmethod
    def read(cls, state_dir: Path) -> Self | None:
        """What is running now, or None: no file, a broken one, or a supervisor that is gone."""
        try:
            runtime = cls(**json.loads(cls.path(state_dir).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return runtime if started(runtime.pid) == runtime.started else None

    def write(self, state_dir: Path) -> None:
        """Put the file in place in one step, readable by its owner only (mkstemp sees to that)."""
        descriptor, name = tempfile.mkstemp(dir=state_dir, prefix=".runtime-")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(self), file)
            Path(name).replace(self.path(state_dir))
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise


def started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when it is gone or a zombie.

    Together with the pid it names one process for good: a recycled pid has another start.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold spaces and brackets of its own, so count from the last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])
