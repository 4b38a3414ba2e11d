"""The schema: up, down, twice at once, and what is said when it is not the one that is needed."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command

from resilience.errors import ConfigurationError
from tasks.models import metadata
from tasks.schema import check, config, current, downgrade, upgrade
from tasks.store import open_engine

ROOT = Path(__file__).parents[2]
UPGRADE = "import sys; from tasks.schema import upgrade; sys.stdin.read(1); upgrade(sys.argv[1])"


def tables(url):
    engine = open_engine(url)
    with engine.connect() as connection:
        found = set(sqlalchemy.inspect(connection).get_table_names())
    engine.dispose()
    return found - {"alembic_version"}


def write(url, statement):
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def test_from_nothing_and_back_and_again(database_url):
    """Every table comes, goes and comes back; Alembic sees no difference to the models; twice is harmless."""
    assert current(database_url) is None
    upgrade(database_url)
    upgrade(database_url)
    assert tables(database_url) == set(metadata.tables)
    check(database_url)
    command.check(config(database_url))
    downgrade(database_url, "base")
    assert tables(database_url) == set()
    upgrade(database_url)
    assert tables(database_url) == set(metadata.tables)
    command.check(config(database_url))


def test_two_processes_at_once(database_url):
    """One migrates, the other waits and finds nothing to do; both are content."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, database_url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        process.stdin.write("x")  # both have started up by the time they read it, or nearly so
        process.stdin.flush()
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    check(database_url)


def test_a_schema_that_is_newer(database_url):
    """Is refused in one sentence, and left as it is."""
    upgrade(database_url)
    write(database_url, "UPDATE alembic_version SET version_num = '9999'")
    for attempt in (upgrade, check, current):
        with pytest.raises(ConfigurationError, match="has schema 9999, which this version does not know"):
            attempt(database_url)
    assert tables(database_url) == set(metadata.tables)


def test_a_database_that_is_not_migrated(database_url):
    """The sentence says what to do; looking changes nothing."""
    with pytest.raises(ConfigurationError, match="is empty: run `penstock db upgrade`"):
        check(database_url)
    assert tables(database_url) == set()


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://penstock:hush-hush@127.0.0.1:9/x", "sqlite:////proc/penstock.db"]
)
def test_a_database_that_is_not_there(url):
    """One sentence without the password."""
    with pytest.raises(ConfigurationError, match="cannot be opened") as caught:
        upgrade(url)
    assert "hush-hush" not in str(caught.value)
    assert "PENSTOCK_DATABASE_URL" in str(caught.value)


def test_a_file_that_is_no_database(tmp_path):
    """Is not overwritten."""
    path = tmp_path / "notes.txt"
    path.write_text("these are notes\n" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        upgrade(f"sqlite:///{path}")
    assert path.read_text() == "these are notes\n" * 100


def test_a_failed_migration_leaves_nothing(tmp_path):
    """All in one transaction: what came before the mistake is undone."""
    url = f"sqlite:///{tmp_path / 'penstock.db'}"
    write(url, "CREATE TABLE units (mine INTEGER)")
    with pytest.raises(sqlalchemy.exc.OperationalError, match="already exists"):
        upgrade(url)
    assert tables(url) == {"units"}
    assert current(url) is None


def test_the_folder_of_the_file_is_made(tmp_path):
    """So that a newcomer's first command works."""
    url = f"sqlite:///{tmp_path / 'a' / 'b' / 'penstock.db'}"
    upgrade(url)
    check(url)
