"""What outlives Redis of limits: spent budgets and bans, in SQL.

A budget is written down in blocks before it is spent (a hundredth of it), so that a Redis that is lost at any
moment forgets nothing that was spent; what was left of its last block is given up.
"""

import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from resilience.errors import DatabaseError
from resilience.store import Ban, Remembered, Spent, WindowSpec, keys
from tasks.models import bans, budgets
from tasks.store import reading, record_event, writing
from tasks.upsert import upsert

logger = logging.getLogger(__name__)

_EPOCH = datetime.fromtimestamp(0, UTC)
_US = timedelta(microseconds=1)


class SqlLedger:
    """Serves `resilience.store.Ledger`. Raises DatabaseError when the database is away."""

    def remembered(self, api: str) -> Remembered:
        """The last ban of each sharer, and the newest period of each budget."""
        newest = func.max(budgets.c.period_start_at).label("newest")
        latest = select(budgets.c.name, newest).group_by(budgets.c.name).subquery()
        with reading() as connection:
            banned = connection.execute(select(bans).where(bans.c.api == api)).all()
            spent = connection.execute(
                select(budgets)
                .join(
                    latest, (budgets.c.name == latest.c.name) & (budgets.c.period_start_at == latest.c.newest)
                )
                .where(budgets.c.name.startswith(keys.window(api, "", "").rstrip(":"), autoescape=True))
            ).all()
        return Remembered(
            tuple(Ban(row.name, _us(row.until_at), row.in_a_row) for row in banned),
            tuple(Spent(row.name, _us(row.period_start_at), int(row.spent)) for row in spent),
        )

    def allot(self, budget: WindowSpec, begin_us: int, wanted: int) -> int:
        """Write down that so much more will be spent; returns how much of it there still was."""
        begin = _EPOCH + timedelta(microseconds=begin_us)
        here = (budgets.c.name == budget.key) & (budgets.c.period_start_at == begin)
        with writing() as connection:
            into = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(budgets)
            first = into.values(name=budget.key, period_start_at=begin, spent=0)
            connection.execute(first.on_conflict_do_nothing())
            spent = connection.execute(select(budgets.c.spent).where(here).with_for_update()).scalar_one()
            granted = max(0, min(wanted, budget.amount - int(spent)))
            connection.execute(update(budgets).where(here).values(spent=spent + granted))
        return granted

    def banned(self, api: str, ban: Ban) -> None:
        """Write down a ban. A database that is away costs only its memory: Redis knows it."""
        until = _EPOCH + timedelta(microseconds=ban.until_us)
        row = {
            "api": api,
            "name": ban.sharer,
            "in_a_row": ban.count,
            "since_at": datetime.now(UTC),
            "until_at": until,
        }
        try:
            with writing() as connection:
                upsert(connection, bans, [row])
            record_event("ban", f"{api} {ban.sharer}", {"until": until.isoformat(), "in_a_row": ban.count})
        except DatabaseError as error:
            logger.warning("the ban of %s at %s is not written down: %s", ban.sharer, api, error)


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // _US
