"""Runs migrations in one transaction behind a lock, so that two at once are harmless."""

from alembic import context
from sqlalchemy import Connection, text

from tasks import data  # noqa: F401 - its tables belong to the metadata
from tasks.models import metadata
from tasks.settings import get_settings
from tasks.store import open_engine

# PostgreSQL: whoever comes second waits here, then finds nothing left to do. SQLite waits at BEGIN IMMEDIATE.
ADVISORY_LOCK = 7_304_616_223


def migrate(connection: Connection) -> None:
    """Bring the schema to the revision that Alembic was asked for."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        context.run_migrations()


url = context.config.attributes.get("url") or get_settings().database
engine = open_engine(url)
with engine.connect() as opened:
    migrate(opened)
engine.dispose()
