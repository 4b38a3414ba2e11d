"""Who runs units, and whether they still live: one row per process, written every few seconds.

The row is the lease of all units that the process holds: one statement however many they are.
A process whose row is older than `gone_after_s` is taken for dead; if it only slept, its fence tokens
keep it from writing.
"""

import os
import secrets
import socket
from functools import lru_cache

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tasks.models import workers
from tasks.store import db_now, reading, writing

# Rows of processes that are long gone are deleted; nothing refers to them any more by then.
KEEP_S = 24 * 3600

# The id and kind of the row that says when the reconciler last ran, and since when without a gap.
LEASE = "reconcile"


@lru_cache(maxsize=2)
def _id_of(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{secrets.token_hex(4)}"


def worker_id() -> str:
    """This process, told apart from an earlier one with the same pid."""
    return _id_of(os.getpid())


def beat(kind: str, slots: int) -> None:
    """Say that this process lives. Raises DatabaseError when the database is away."""
    with writing() as connection:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(workers).values(
            id=worker_id(),
            kind=kind,
            host=socket.gethostname(),
            pid=os.getpid(),
            slots=slots,
            started_at=db_now(),
            beat_at=db_now(),
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=[workers.c.id],
                set_={"beat_at": statement.excluded.beat_at, "stopped_at": None},
            )
        )


def stop() -> None:
    """Say that this process ends by itself, so that nobody waits for it."""
    with writing() as connection:
        connection.execute(
            update(workers)
            .where(workers.c.id == worker_id())
            .values(stopped_at=db_now(), beat_at=db_now(-KEEP_S))
        )


def forget_old() -> None:
    """Delete the rows of processes that ended more than a day ago."""
    with writing() as connection:
        connection.execute(delete(workers).where(workers.c.beat_at < db_now(-2 * KEEP_S)))


def alive(kind: str, gone_after_s: float) -> tuple[int, int]:
    """How many hosts and slots of this kind of worker live."""
    with reading() as connection:
        hosts, slots = connection.execute(
            select(func.count(workers.c.host.distinct()), func.coalesce(func.sum(workers.c.slots), 0)).where(
                workers.c.kind == kind, workers.c.beat_at >= db_now(-gone_after_s)
            )
        ).one()
    return int(hosts), int(slots)


def processes(gone_after_s: float) -> int:
    """How many processes that run units live, at least one."""
    with reading() as connection:
        alive_at = db_now(-gone_after_s)
        found = select(func.count()).where(workers.c.kind == "units", workers.c.beat_at >= alive_at)
        return max(1, connection.execute(found).scalar_one())
