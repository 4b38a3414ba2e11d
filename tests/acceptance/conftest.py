"""The fleet on both brokers and databases, once with prefork and once with threads, and the APIs that it calls."""

import contextlib
import inspect
import os
import socket
import sqlite3
import subprocess
import sys
import time

import pytest
import requests

from tests.acceptance import gauges
from tests.acceptance.fleet import PATIENT_S, ROOT, Fleet
from tests.deployments import BOTH
from tests.upstream import data
from tests.upstream.client import Upstream
from workers.children import spawn, stop
from workers.embedded import EmbeddedRedis

DAYS = 730


@pytest.fixture(scope="session")
def upstream():
    """The fake APIs."""
    with Upstream() as server:
        yield server


@pytest.fixture(scope="session")
def levels():
    """What stands in the Datasette's table: a reading a day for each station, with a few days missing."""
    return [
        (station, f"{2020 + day // 365}-{day % 365 // 31 + 1:02d}-{day % 31 + 1:02d}#{day}", (day * 37) % 4001 - 50,
         None if day % 3 else f'"gemessen" um {day % 24} Uhr')
        for number, station in enumerate(gauges.STATIONS)
        for day in range(DAYS)
        if day % 50 != number
    ]  # fmt: skip


@pytest.fixture(scope="session")
def datasette_url(tmp_path_factory, levels):
    """A Datasette that serves the table."""
    directory = tmp_path_factory.mktemp("datasette")
    database = directory / "rivers.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "CREATE TABLE levels (station TEXT, day TEXT, level_mm INTEGER, note TEXT, PRIMARY KEY (station, day))"
        )
        connection.executemany("INSERT INTO levels VALUES (?, ?, ?, ?)", levels)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = (sys.executable, "-m", "datasette", "serve", str(database), "--port", url.rpartition(":")[2])
    with (directory / "datasette.log").open("wb") as output:
        process = spawn(command, output=output)
    try:
        _await(url, process, directory / "datasette.log")
        yield url
    finally:
        stop(process, 5)


def _await(url, process, log):
    deadline = time.monotonic() + PATIENT_S
    while True:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{url}/-/versions.json", timeout=PATIENT_S).raise_for_status()
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="session")
def configuration(upstream, datasette_url):
    """The TOML file of an installation that calls what runs here; a slot a second, so that beats may quarrel."""
    return {
        "binance": {"base_url": upstream.base("binance")},
        "binance.klines": {"symbols": ["BTCUSDT", "ETHUSDT", "SOLUSDT"], "every": "1s"},
        "coinbase": {"base_url": upstream.base("coinbase")},
        "coinbase.candles": {"symbols": ["BTC-USD", "QUIET-USD"], "every": "1s"},
        "asana": {"base_url": f"{upstream.base('asana')}/api/1.0"},
        "asana.tasks": {"symbols": data.PROJECTS[:3], "every": "1s"},
        "gauges": {"base_url": datasette_url},
    }


SECRETS = {"ASANA_TOKEN": "the-token-of-a-test"}
COLLECTORS = {"PENSTOCK_COLLECTORS": "binance,coinbase,asana,gauges"}
PACKAGE = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "river-gauges"
version = "1.0"

[project.entry-points."penstock.collectors"]
gauges = "river_gauges:gauges"

[tool.setuptools]
py-modules = ["river_gauges"]
"""


@pytest.fixture(scope="session")
def river_gauges(tmp_path_factory):
    """A user's own package with a collector, installed by pip: the directory to find it in."""
    source, site = tmp_path_factory.mktemp("river-gauges"), tmp_path_factory.mktemp("site-packages")
    (source / "pyproject.toml").write_text(PACKAGE)
    (source / "river_gauges.py").write_text(inspect.getsource(gauges))
    options = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENT_S, check=False)
    assert done.returncode == 0, done.stderr
    return site


# Each with the other pool; where a broker and a database meet otherwise is in test_brokers.py.
POOLS = dict(zip(BOTH, ("prefork", "threads"), strict=True))


@pytest.fixture(scope="session", params=BOTH)
def fleet(request, tmp_path_factory, redis_server, configuration, new_deployment, river_gauges):
    """A worker and a ctl worker that are alive; at the end each stops in peace."""
    del redis_server  # it says whether there is any Redis to be had
    directory = tmp_path_factory.mktemp(request.param)
    settings = {
        "PENSTOCK_POOL": POOLS[request.param],
        "PENSTOCK_SCHEDULES": "binance,coinbase,asana",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{river_gauges}",
        **COLLECTORS,
        **SECRETS,
    }
    with (
        EmbeddedRedis(directory / "redis") as server,
        new_deployment(request.param, directory) as deployment,
    ):
        made = Fleet(directory, deployment, redis_url=server.url, **settings)
        try:
            made.configure(configuration)
            made.start_workers()
            yield made
        finally:
            statuses = made.stop()
            made.engine.dispose()
    assert set(statuses.values()) == {0}
