"""Circuits that somebody forced. SQL is their home: Redis is told, and told again when it has forgotten."""

import logging
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import RowMapping, delete, insert, or_, select

from resilience.breaker import CircuitBreaker
from resilience.store import CircuitState, Override
from tasks.models import overrides
from tasks.store import db_now, reading, writing

logger = logging.getLogger(__name__)


def force(
    breaker: CircuitBreaker, state: CircuitState, *, by: str, why: str, until: datetime | None = None
) -> None:
    """Hold a circuit forced open or disabled, until then or until it is lifted.

    It is kept before Redis is told. Raises StoreUnavailableError when Redis is away: then the reconciler
    tells it when it is back.
    """
    breaker.check_force(state, by=by, why=why)
    row = {"circuit": breaker.circuit, "state": state.value, "actor": by, "reason": why, "until_at": until}
    replaced = or_(overrides.c.circuit == breaker.circuit, overrides.c.until_at <= db_now())
    with writing() as connection:
        connection.execute(delete(overrides).where(replaced))
        connection.execute(insert(overrides).values(**row, since_at=db_now()))
    breaker.force(state, by=by, why=why, until=until)


def lift(breaker: CircuitBreaker, *, by: str, why: str) -> bool:
    """Close a circuit, forced or not, and forget its failures; says whether it was forced.

    Raises StoreUnavailableError when Redis is away: then nothing is lifted.
    """
    breaker.current_state  # noqa: B018 - asks Redis, before the row is gone
    with writing() as connection:
        gone = connection.execute(delete(overrides).where(overrides.c.circuit == breaker.circuit)).rowcount
    breaker.reset(by=by, why=why)
    return gone > 0


def forced() -> dict[str, RowMapping]:
    """What is forced now, by the name of the circuit."""
    in_force = or_(overrides.c.until_at.is_(None), overrides.c.until_at > db_now())
    with reading() as connection:
        rows = connection.execute(select(overrides).where(in_force)).mappings()
        return {row["circuit"]: row for row in rows}


def recall(_api: str, name: str) -> Override | None:
    """What was decided about a circuit of which Redis knows nothing."""
    row = forced().get(name)
    if row is None:
        return None
    return Override(CircuitState(row["state"]), row["actor"], row["reason"], _us(row["until_at"]))


def enforce(find: Callable[[str], CircuitBreaker | None]) -> int:
    """Tell Redis what it has not heard, because it was away; returns how many circuits that were."""
    return sum(
        _tell_again(breaker, row)
        for name, row in forced().items()
        if (breaker := find(name)) is not None and breaker.current_state != row["state"]
    )


def _tell_again(breaker: CircuitBreaker, row: RowMapping) -> bool:
    logger.warning("circuit %s is forced again: %s by %s", breaker.circuit, row["state"], row["actor"])
    state = CircuitState(row["state"])
    breaker.force(state, by=row["actor"], why=row["reason"], until=row["until_at"])
    if breaker.circuit in forced():
        return True
    # Somebody lifted it just now.
    breaker.reset(by=row["actor"], why="lifted meanwhile")
    return False


def _us(at: datetime | None) -> int:
    return 0 if at is None else round(at.timestamp() * 1e6)
