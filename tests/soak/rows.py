"""Rows that the fake APIs have and the database has not, and the other way round."""

from sqlalchemy import select

from tasks.data import asana_tasks, ohlcv
from tests.upstream import data
from tests.upstream.apis import asana, binance, coinbase

BAR = [column.name for column in ohlcv.c]
SERVED = {"binance": binance.expected, "coinbase": coinbase.expected}
TASK = [column.name for column in asana_tasks.c if column.name != "data"]


def values(row, names):
    return tuple(row[name] for name in names)


def bars(fleet, source, numbers):
    """Bars that are missing, that are too many, and how many there are to be, over all that was ever asked for."""
    wanted = {
        values(row, BAR)
        for symbol, (start, end) in fleet.windows(*numbers).items()
        for row in SERVED[source](symbol, start, end)
    }
    found = [values(row, BAR) for row in fleet.rows(select(ohlcv).where(ohlcv.c.source == source))]
    return len(wanted - set(found)), len(found) - len(wanted & set(found)), len(wanted)


def tasks_of(projects, last):
    """Every task as it stood when the last run began and when it ended."""
    return [
        {
            (project, task["gid"]): values(asana.expected_task(project, task), TASK)
            for project in projects
            for task in data.tasks(project, at.timestamp())
        }
        for at in (last["started_at"], last["finished_at"])
    ]


def tasks(fleet, projects, last):
    """The same of tasks; one that was edited during the last run may stand there as before or after."""
    before, after = tasks_of(projects, last)
    found = {(row["project"], row["gid"]): values(row, TASK) for row in fleet.rows(select(asana_tasks))}
    missing = sum(found.get(key) not in {before.get(key), task} for key, task in after.items())
    return missing, len(found.keys() - after.keys()), len(after)
