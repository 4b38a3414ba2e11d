"""The state of the database's schema: bring it up to date, and say in one sentence what is wrong with it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

import migrations
from resilience.errors import ConfigurationError
from tasks.settings import masked
from tasks.store import open_engine


def config(url: str) -> Config:
    """Alembic's configuration for one database, wherever Penstock is installed."""
    made = Config()
    made.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    made.attributes["url"] = url
    return made


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate to `revision`; harmless when there is nothing to do, and when two do it at once.

    Raises ConfigurationError when the database cannot be reached, or is newer than this version.
    """
    current(url)
    command.upgrade(config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Migrate back; loses what the newer schema held."""
    command.downgrade(config(url), revision)


def current(url: str) -> str | None:
    """The revision of the database, None when it is empty."""
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = open_engine(url)
    try:
        with engine.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        raise ConfigurationError(
            f"the database {masked(url)} cannot be opened ({reason}): start it, or set PENSTOCK_DATABASE_URL"
        ) from error
    finally:
        engine.dispose()
    if revision is not None and revision not in _known():
        raise ConfigurationError(
            f"the database {masked(url)} has schema {revision}, which this version does not know: "
            "install the newer version that made it"
        )
    return revision


def check(url: str) -> None:
    """Raise ConfigurationError, with what to do, unless the schema is the one this version needs."""
    revision, head = current(url), _scripts().get_current_head()
    if revision != head:
        state = "is empty" if revision is None else f"has schema {revision}, but {head} is needed"
        raise ConfigurationError(f"the database {masked(url)} {state}: run `penstock db upgrade`")


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(config(""))


def _known() -> set[str]:
    return {script.revision for script in _scripts().walk_revisions()}
