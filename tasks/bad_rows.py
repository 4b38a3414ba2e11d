"""Rows that could not be stored, kept with the reason beside those that could, in the same transaction."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from tasks.collectors.rows import BAD_KEPT
from tasks.collectors.values import BadRow, Unit
from tasks.models import bad_rows
from tasks.store import db_now, reading


def keep(connection: Connection, endpoint: str, unit: Unit, rows: Sequence[BadRow], *, before: int) -> None:
    """Keep bad rows of a unit that has met so many `before`: its first 100, and one that is there once."""
    given = [
        {
            "digest": _digest(endpoint, unit.symbol, row.raw),
            "endpoint": endpoint,
            "symbol": unit.symbol,
            "run": unit.run,
            "n": unit.n,
            "reason": row.reason,
            "raw": row.raw,
        }
        for row in rows[: max(0, BAD_KEPT - before)]
    ]
    if given:
        connection.execute(_statement(connection.dialect.name), given)


def listed(endpoints: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """The bad rows of these endpoints, the newest first."""
    with reading() as connection:
        rows = connection.execute(
            select(bad_rows)
            .where(bad_rows.c.endpoint.in_(endpoints))
            .order_by(bad_rows.c.seen_at.desc(), bad_rows.c.digest)
            .limit(limit)
        ).mappings()
        return [dict(row) for row in rows]


def _digest(endpoint: str, symbol: str, raw: str) -> str:
    return hashlib.sha256(f"{endpoint}\0{symbol}\0{raw}".encode()).hexdigest()


@lru_cache(maxsize=4)
def _statement(dialect: str) -> Any:
    names = [column.key for column in bad_rows.c if column.key != "seen_at"]
    statement = (sqlite if dialect == "sqlite" else postgresql).insert(bad_rows)
    statement = statement.values({name: bindparam(name) for name in names} | {"seen_at": db_now()})
    changed = {name: statement.excluded[name] for name in ("run", "n", "reason", "seen_at")}
    return statement.on_conflict_do_update(index_elements=["digest"], set_=changed)
