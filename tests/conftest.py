"""A clean environment for every test, real servers, and one line at the end that says what was not tested.

The servers: a private Redis, a database or vhost of its own on servers that run already, and a private RabbitMQ
where one is to be broken.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import urllib.parse
import uuid

import hypothesis
import pytest

_POSTGRES = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
_RABBITMQ = "amqp://guest:guest@127.0.0.1:5672"

MISSING = pytest.StashKey[set]()
_ONLY_FOR_TESTS = ("PENSTOCK_TEST_", "PENSTOCK_REQUIRE_SERVICES")

# How long an example takes says more about the machine than about us.
hypothesis.settings.register_profile("penstock", deadline=None)
hypothesis.settings.load_profile("penstock")


def pytest_configure(config):
    config.stash[MISSING] = set()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No setting of the machine that runs the tests reaches them."""
    from tasks.settings import get_settings

    for name in list(os.environ):
        if name.upper().startswith("PENSTOCK_") and not name.startswith(_ONLY_FOR_TESTS):
            monkeypatch.delenv(name)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def missing_server(request):
    """Call it with the server's name and the reason: skips, or fails where every server is required."""

    def miss(server, reason):
        request.config.stash[MISSING].add(server)
        if os.environ.get("PENSTOCK_REQUIRE_SERVICES") == "1":
            pytest.fail(f"{server} is required and missing: {reason}")
        pytest.skip(f"{server} is missing: {reason}")

    return miss


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory, missing_server):
    """A Redis of this session's own."""
    from resilience.errors import ConfigurationError
    from workers.embedded import EmbeddedRedis

    try:
        server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    except ConfigurationError as error:
        missing_server("redis", str(error))
    with server:
        yield server


@pytest.fixture
def redis_url(redis_server):
    """The session's Redis, emptied."""
    import redis

    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def new_postgres(missing_server):
    """Makes a PostgreSQL database that nobody else uses, for as long as its context lasts."""
    import sqlalchemy

    server = sqlalchemy.make_url(os.environ.get("PENSTOCK_TEST_POSTGRES_URL", _POSTGRES))
    engine = sqlalchemy.create_engine(
        server,
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": 3},
        poolclass=sqlalchemy.NullPool,
    )

    @contextlib.contextmanager
    def new():
        name = f"penstock_{uuid.uuid4().hex}"
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
        except sqlalchemy.exc.OperationalError as error:
            missing_server("postgresql", str(error.orig).partition("\n")[0])
        try:
            yield server.set(database=name).render_as_string(hide_password=False)
        finally:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")

    return new


@pytest.fixture
def postgres_url(new_postgres):
    """A PostgreSQL database that nobody else uses; dropped at the end."""
    with new_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path):
    """An empty database, once as a SQLite file and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'penstock.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture(scope="session")
def new_vhost(missing_server):
    """Makes a vhost with a user of its own on the RabbitMQ that runs here, for as long as its context lasts."""
    import kombu

    server = os.environ.get("PENSTOCK_TEST_RABBITMQ_URL", _RABBITMQ)

    @contextlib.contextmanager
    def new():
        try:
            with kombu.Connection(server, connect_timeout=3) as connection:
                connection.ensure_connection(max_retries=1, timeout=3)
        except (OSError, kombu.exceptions.OperationalError) as error:
            missing_server("rabbitmq", str(error))
        if shutil.which("rabbitmqctl") is None:
            missing_server("rabbitmq", "rabbitmqctl, which makes a vhost for the test, is not on PATH")
        name, password = f"penstock-{uuid.uuid4().hex}", secrets.token_hex(16)
        made = rabbitmqctl("add_vhost", name)
        if made.returncode:
            missing_server("rabbitmq", made.stderr.strip().partition("\n")[0])
        try:
            rabbitmqctl("add_user", name, password).check_returncode()
            rabbitmqctl("set_permissions", "-p", name, name, ".*", ".*", ".*").check_returncode()
            place = urllib.parse.urlsplit(server)
            yield f"{place.scheme}://{name}:{password}@{place.hostname}:{place.port or 5672}/{name}"
        finally:
            rabbitmqctl("delete_vhost", name).check_returncode()
            rabbitmqctl("delete_user", name)

    return new


@pytest.fixture(scope="module")
def rabbitmq_url(new_vhost):
    """A RabbitMQ vhost of this module's own; deleted at the end."""
    with new_vhost() as url:
        yield url


@pytest.fixture(scope="session")
def new_rabbitmq(missing_server):
    """Starts a RabbitMQ that may be broken, for as long as its context lasts."""
    from tests import rabbitmq

    def new(directory):
        if missing := rabbitmq.missing():
            missing_server("rabbitmq", f"no {' and no '.join(missing)} to start one with")
        return rabbitmq.RabbitMQ(directory)

    return new


@pytest.fixture(scope="session")
def new_deployment(new_postgres, new_vhost, new_rabbitmq):
    """Makes the servers of a deployment; `breakable` ones if its broker is to be broken."""
    from tests.deployments import Deployment

    @contextlib.contextmanager
    def new(name, directory, *, breakable=False):
        broker, database = name.split("+")
        sqlite = contextlib.nullcontext(f"sqlite:///{directory / 'penstock.db'}")
        with contextlib.ExitStack() as servers:
            database_url = servers.enter_context(sqlite if database == "sqlite" else new_postgres())
            if broker == "redis":
                yield Deployment(name, database_url)
            elif breakable:
                server = servers.enter_context(new_rabbitmq(directory / "rabbitmq"))
                yield Deployment(name, database_url, server.url, server)
            else:
                yield Deployment(name, database_url, servers.enter_context(new_vhost()))

    return new


def rabbitmqctl(*words):
    return subprocess.run(
        ["rabbitmqctl", "-q", *words], check=False, capture_output=True, text=True, timeout=60
    )


def pytest_testnodedown(node, error):
    """A worker of pytest-xdist reports what it has missed."""
    node.config.stash[MISSING].update(getattr(node, "workeroutput", {}).get("missing_servers", ()))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["missing_servers"] = sorted(session.config.stash[MISSING])


@pytest.hookimpl(wrapper=True)
def pytest_unconfigure(config):
    """The very last line, after pytest's own."""
    result = yield
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workeroutput"):
        counts = [f"{len(reporter.stats.get(outcome, ()))} {outcome}" for outcome in ("passed", "skipped")]
        if broken := len(reporter.stats.get("failed", ())) + len(reporter.stats.get("error", ())):
            counts.append(f"{broken} failed")
        servers = ", ".join(sorted(config.stash[MISSING])) or "none"
        reporter.write_line(f"{', '.join(counts)}; missing servers: {servers}")
    return result
