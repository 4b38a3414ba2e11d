"""The tables. SQL is the truth: whatever Redis forgets can be rebuilt from here.

Times are aware UTC datetimes in Python, `timestamptz` in PostgreSQL and sortable text in SQLite.
Decimals stay exact: NUMERIC in PostgreSQL, text in SQLite.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


def _sqlite_time(value: datetime | None) -> str | None:
    """As SQLAlchemy's own DATETIME stores it, but written in C: all 26 characters, without the zone."""
    return None if value is None else _utc(value).isoformat(" ", "microseconds")[:26]


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return value.astimezone(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime; a naive one is a mistake and raises ValueError."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any]:
        """Refuse naive times, which would be a guess; SQLite has no zone and gets text in UTC."""
        if dialect.name == "sqlite":
            return _sqlite_time
        return lambda value: None if value is None else _utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give what SQLite stored its zone back."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _digits(value: Decimal | None) -> str | None:
    if value is None:
        return None
    text = str(value)  # much faster than format, and mostly the same
    return format(value, "f") if "E" in text else text


class ExactDecimal(TypeDecorator[Decimal]):
    """A Decimal that keeps every digit: SQLite's own NUMERIC is a binary float."""

    impl = Numeric
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Text in SQLite, NUMERIC elsewhere."""
        return dialect.type_descriptor(String(64) if dialect.name == "sqlite" else Numeric())

    def bind_processor(self, dialect: Dialect) -> Callable[[Decimal | None], str | None] | None:
        """Plain digits, never an exponent, so that equal texts are equal numbers."""
        return _digits if dialect.name == "sqlite" else None

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """The same digits back."""
        del dialect
        return None if value is None else Decimal(value)


Json = JSON().with_variant(JSONB(), "postgresql")
Id = BigInteger().with_variant(Integer(), "sqlite")  # only INTEGER counts up by itself in SQLite

runs = Table(
    "runs",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("collector", String(100), nullable=False),
    Column("endpoints", Json, nullable=False),
    Column("kind", String(20), nullable=False),  # scheduled | adhoc | backfill
    Column("lane", String(20), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("on_open", String(10), nullable=False),  # skip | park
    Column("state", String(20), nullable=False),  # planning | open | done
    Column("outcome", String(20)),
    Column("reason", Text),
    Column("schedule", String(200)),
    Column("slot_at", UtcDateTime),
    Column("symbols", Json),  # None: the endpoint's own
    Column("start_at", UtcDateTime),
    Column("end_at", UtcDateTime),
    Column("requested_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("deadline_at", UtcDateTime, nullable=False),
    Column("planner", String(200)),
    Column("planned_at", UtcDateTime),
    Column("waves", Integer, nullable=False, server_default="0"),
    UniqueConstraint("schedule", "slot_at"),
)
# For everybody but the planner: the names may be a hundred thousand, and take longer to read than all else.
RUN_WITHOUT_SYMBOLS = tuple(column for column in runs.c if column is not runs.c.symbols)
Index("ix_runs_state", runs.c.state)
Index("ix_runs_collector", runs.c.collector, runs.c.id)

units = Table(
    "units",
    metadata,
    Column("run", Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("n", Integer, nullable=False),
    Column("endpoint", String(200), nullable=False),  # collector.endpoint
    Column("symbol", String(200), nullable=False),
    Column("start_at", UtcDateTime),
    Column("end_at", UtcDateTime),
    Column("cursor", Text),
    Column("state", String(10), nullable=False),  # waiting | sent | running | done
    Column("not_before", UtcDateTime, nullable=False),
    Column("outcome", String(20)),
    Column("reason", String(100)),
    Column("error", Json),
    Column("attempts", Integer, nullable=False, server_default="0"),  # failed real calls: decides giving up
    Column(
        "deliveries", Integer, nullable=False, server_default="0"
    ),  # claims without progress: detects poison
    Column("throttles", Integer, nullable=False, server_default="0"),  # 429s in a row
    Column("token", Integer, nullable=False, server_default="0"),  # fence: whoever holds the newest may write
    Column("worker", String(200)),
    Column("claimed_at", UtcDateTime),
    Column("wave", Integer),
    Column("sent_at", UtcDateTime),
    Column("expected_at", UtcDateTime),  # when a sent message is expected to be claimed
    Column("resent", Integer, nullable=False, server_default="0"),
    Column("alone", Boolean, nullable=False, server_default="0"),
    Column("ticket", String(64)),  # a reserved place in a limit
    Column("parked_on", String(200)),  # the circuit that has to close first
    Column("checkpoint", Json),
    Column("calls", Integer, nullable=False, server_default="0"),
    Column("retries", Integer, nullable=False, server_default="0"),
    Column("waits", Integer, nullable=False, server_default="0"),
    Column("waited_s", Float, nullable=False, server_default="0"),
    Column("weight", Float, nullable=False, server_default="0"),  # what its calls cost of the limits
    Column("records", Integer, nullable=False, server_default="0"),
    Column("bad_rows", Integer, nullable=False, server_default="0"),  # that could not be stored
    Column("vanished", Integer, nullable=False, server_default="0"),  # listed, and gone when asked for
    Column("rate_limited", Boolean, nullable=False, server_default="0"),
    Column("finished_at", UtcDateTime),
    Column("tier", String(50)),  # which of several ways served it
    PrimaryKeyConstraint("run", "n"),
)
# In the order in which waves take them, so that a wave costs the same however many units wait or are done.
Index("ix_units_due", units.c.run, units.c.state, units.c.endpoint, units.c.n)
# Written out, not bound: SQLite uses a partial index only where it sees the very condition.
NOT_DONE = literal_column("units.state") != literal_column("'done'")
Index(
    "ix_units_open",
    units.c.state,
    units.c.endpoint,
    sqlite_where=units.c.state != "done",
    postgresql_where=units.c.state != "done",
)

Index(
    "ix_units_reserved",
    units.c.state,
    units.c.not_before,
    sqlite_where=units.c.ticket.is_not(None),
    postgresql_where=units.c.ticket.is_not(None),
)

waves = Table(
    "waves",
    metadata,
    Column("run", Id, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("n", Integer, nullable=False),
    Column("chord", String(64), nullable=False),
    Column("units", Integer, nullable=False),
    Column("launched_at", UtcDateTime, nullable=False),
    Column("closed_at", UtcDateTime),
    Column("totals", Json),  # the chord's folded outcomes
    Column("differs", Boolean),  # whether they differ from SQL; SQL wins
    PrimaryKeyConstraint("run", "n"),
)

results = Table(
    "results",
    metadata,
    Column("run", Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("collector_name", String(100), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime, nullable=False),
    Column("total_items", Integer, nullable=False),
    Column("successful_items", Integer, nullable=False),
    Column("failed_items", Integer, nullable=False),
    Column("errors", Json, nullable=False),
    Column("rate_limited", Boolean, nullable=False),
    Column("circuit_broken", Boolean, nullable=False),
    Column("outcome", String(20), nullable=False),
    Column("records", BigInteger, nullable=False),
    Column("units_by_outcome", Json, nullable=False),
    Column("by_endpoint", Json, nullable=False),
    Column("failed_symbols", Json, nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("retries", BigInteger, nullable=False),
    Column("waits", BigInteger, nullable=False),
    Column("waited_s", Float, nullable=False),
    Column("resent", BigInteger, nullable=False),
    Column("weight", Float, nullable=False),
    Column("bad_rows", BigInteger, nullable=False, server_default="0"),
    Column("vanished", BigInteger, nullable=False, server_default="0"),
)

# Rows that came and could not be stored; one that comes again, in another run too, is still one.
bad_rows = Table(
    "bad_rows",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("endpoint", String(200), nullable=False),
    Column("symbol", String(200), nullable=False),
    Column("run", Id, nullable=False),  # the last one that met it
    Column("n", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("raw", Text, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)
Index("ix_bad_rows_endpoint", bad_rows.c.endpoint, bad_rows.c.seen_at)

cursors = Table(
    "cursors",
    metadata,
    Column("endpoint", String(200), nullable=False),
    Column("symbol", String(200), nullable=False),
    Column("value", Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("endpoint", "symbol"),
)

# Symbols that come from elsewhere: a list that is looked up, and what it held when.
symbol_lists = Table(
    "symbol_lists",
    metadata,
    Column("endpoint", String(200), primary_key=True),
    Column("found_at", UtcDateTime),  # None: nothing yet
    Column("tried_at", UtcDateTime, nullable=False),
    Column("error", Text),  # what was wrong when it was looked up last
)

symbols = Table(
    "symbols",
    metadata,
    Column("endpoint", String(200), nullable=False),
    Column("symbol", String(200), nullable=False),
    Column("added_at", UtcDateTime, nullable=False),
    Column("removed_at", UtcDateTime),
    PrimaryKeyConstraint("endpoint", "symbol"),
)

# What the server said of the last complete read of a conditional request.
validators = Table(
    "validators",
    metadata,
    Column("endpoint", String(200), nullable=False),
    Column("symbol", String(200), nullable=False),
    Column("asked", String(64), nullable=False),  # which request
    Column("etag", Text),
    Column("modified", Text),
    Column("updated_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("endpoint", "symbol"),
)

# What the rows of an endpoint look like; where the present differs from the normal it is drift.
fields = Table(
    "fields",
    metadata,
    Column("endpoint", String(200), nullable=False),
    Column("name", String(200), nullable=False),  # "owner.id" is one level below
    Column("types", Text, nullable=False),  # "null|string"
    Column("normal_types", Text),  # None: the field is new
    Column("always", Boolean, nullable=False),  # whether every row has had it
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),  # to the hour
    Column("missing_at", UtcDateTime),  # since when no row has it
    PrimaryKeyConstraint("endpoint", "name"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("endpoint", String(200), nullable=False),
    Column("symbol", String(200), nullable=False),
    Column("failures", Integer, nullable=False),  # runs in a row
    Column("error", String(100), nullable=False),
    Column("gone", Boolean, nullable=False),  # the server does not know it
    Column("times", Integer, nullable=False),  # how often in a row it was put away
    Column("since_at", UtcDateTime),  # None: it only fails
    Column("until_at", UtcDateTime),  # None: until it is released
    PrimaryKeyConstraint("endpoint", "symbol"),
)

schedules = Table(
    "schedules",
    metadata,
    Column("name", String(200), primary_key=True),  # collector.endpoint
    Column("collector", String(100), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("every_s", Integer, nullable=False),
    Column("catch_up", String(10), nullable=False),  # none | latest | all
    Column("overlap", String(10), nullable=False),  # skip | queue | replace
    Column("enabled", Boolean, nullable=False),
    Column("last_slot_at", UtcDateTime),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("kind", String(20), nullable=False),  # units | ctl | alone | reconcile
    Column("host", String(200), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("beat_at", UtcDateTime, nullable=False),
    Column("stopped_at", UtcDateTime),
)

overrides = Table(
    "overrides",
    metadata,
    Column("circuit", String(200), primary_key=True),
    Column("state", String(20), nullable=False),  # forced_open | disabled
    Column("actor", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("since_at", UtcDateTime, nullable=False),
    Column("until_at", UtcDateTime),
)

budgets = Table(
    "budgets",
    metadata,
    Column("name", String(200), nullable=False),
    Column("period_start_at", UtcDateTime, nullable=False),
    Column("spent", Float, nullable=False),
    PrimaryKeyConstraint("name", "period_start_at"),
)

bans = Table(
    "bans",
    metadata,
    Column("api", String(100), nullable=False),
    Column("name", String(200), nullable=False),  # the sharer whose gate is closed
    Column("in_a_row", Integer, nullable=False),  # the how many-th in a row
    Column("since_at", UtcDateTime, nullable=False),
    Column("until_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("api", "name"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("api", String(100), nullable=False),
    Column("name", String(200), nullable=False),
    Column("token", Text),  # encrypted
    Column("expires_at", UtcDateTime),  # when its access token is no longer used
    Column("fence", Integer, nullable=False, server_default="0"),  # how often somebody set out to refresh
    Column("updated_at", UtcDateTime, nullable=False),
    Column("version", Integer, nullable=False, server_default="0"),  # how often tokens were stored
    Column("leased_until", UtcDateTime),  # when somebody else may refresh
    Column("salt", String(32), nullable=False, server_default=""),
    Column("begun", Json, nullable=False, server_default="[]"),  # fingerprints of first refresh tokens
    Column("refused", Json, nullable=False, server_default="[]"),  # fingerprints of secrets
    Column("stopped_at", UtcDateTime),  # None: it may call
    Column("reason", Text),
    PrimaryKeyConstraint("api", "name"),
)

events = Table(
    "events",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(40), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("run", Id),
    Column("detail", Json, nullable=False),
)
Index("ix_events_at", events.c.at)

# Which transitions of circuits are among the events, so that none comes twice.
transitions = Table(
    "transitions",
    metadata,
    Column("circuit", String(200), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("old", String(20), nullable=False),
    Column("new", String(20), nullable=False),
    Column("actor", String(200), nullable=False),
    PrimaryKeyConstraint("circuit", "at", "old", "new", "actor"),
)

event_streams = Table(
    "event_streams",
    metadata,
    Column("api", String(100), primary_key=True),
    Column("last", String(50), nullable=False),  # the id, in Redis, of the last transition that was read
)

records = Table(
    "records",
    metadata,
    Column("source", String(100), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("key", String(500), nullable=False),
    Column("symbol", String(200), nullable=False),
    Column("data", Json, nullable=False),
    PrimaryKeyConstraint("source", "endpoint", "key"),
)
