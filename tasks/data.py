"""The tables that the shipped collectors fill, one for each kind of row.

`source`, where a table has it, is the collector: the store fills it. A declaration without a table fills
`records` instead.
"""

from sqlalchemy import (
    Boolean,
    Column,
    Date,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from tasks.models import ExactDecimal, Json, UtcDateTime, metadata

ohlcv = Table(
    "ohlcv",
    metadata,
    Column("source", String(100), nullable=False),
    Column("symbol", String(50), nullable=False),
    Column("interval", String(10), nullable=False),
    Column("open_time", UtcDateTime, nullable=False),
    Column("open", ExactDecimal, nullable=False),
    Column("high", ExactDecimal, nullable=False),
    Column("low", ExactDecimal, nullable=False),
    Column("close", ExactDecimal, nullable=False),
    Column("volume", ExactDecimal, nullable=False),
    Column("trades", Integer),
    PrimaryKeyConstraint("source", "symbol", "interval", "open_time"),
)

asana_tasks = Table(
    "asana_tasks",
    metadata,
    Column("gid", String(50), nullable=False),
    Column("project", String(50), nullable=False),
    Column("name", Text, nullable=False),
    Column("completed", Boolean, nullable=False),
    Column("assignee", String(50)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("modified_at", UtcDateTime, nullable=False),
    Column("due_on", Date),
    Column("data", Json, nullable=False),
    PrimaryKeyConstraint("project", "gid"),  # a task may stand in several projects
)
