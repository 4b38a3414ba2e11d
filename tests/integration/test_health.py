"""`penstock health`: progress as it stands in SQL and in the queues, on both databases."""

import os
import signal
import sys
import time

import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from tasks import heartbeat
from tasks.heartbeat import LEASE
from tasks.models import units, workers
from tasks.store import db_now, writing
from workers import cli, health
from workers.children import spawn, stop

pytestmark = pytest.mark.usefixtures("installation")


def said(*words):
    """Exit status and the one line."""
    result = CliRunner().invoke(cli.main, ["health", *words])
    assert result.output.count("\n") == 1, result.output
    assert bool(result.stdout) == (result.exit_code == 0)
    return result.exit_code, result.output.removeprefix("penstock: ").strip()


def reconciled(seconds_ago):
    with writing() as connection:
        values = {"host": "", "pid": 0, "slots": 0, "started_at": db_now(), "beat_at": db_now(-seconds_ago)}
        connection.execute(insert(workers).values(id=LEASE, kind=LEASE, **values))


def long_sent(fleet, installation, count=1):
    """A run whose units were sent long ago, and whose messages lie in the queue."""
    run = fleet.run("binance.klines", [f"T{n}USDT" for n in range(count)])
    overdue = {"sent_at": db_now(-300), "expected_at": db_now(-290)}
    assert installation.change(units, units.c.run == run, units.c.state == "sent", **overdue) == count
    return run


def test_a_worker_is_well_while_it_has_a_heartbeat(installation):
    """Its own host's: another one's says nothing about it, nor does one that has ended."""
    assert said() == (1, "no units worker on this host had a heartbeat in 15 s")
    heartbeat.beat("units", 4)
    assert said("--worker") == (0, "4 slots, 0 units running")
    installation.change(workers, host="elsewhere")
    assert said()[0] == 1
    installation.change(workers, host=health.socket.gethostname(), beat_at=db_now(-60))
    assert said()[0] == 1
    heartbeat.beat("units", 4)
    assert said()[0] == 0
    heartbeat.stop()
    assert said()[0] == 1


def test_a_worker_that_takes_nothing_is_found(fleet, installation, inbox):
    """It lives and units wait in a queue of its own; not so if one runs, or the messages are gone."""
    heartbeat.beat("units", 4)
    run = long_sent(fleet, installation, 2)
    sentence = (
        "units wait in collect.binance for more than 60 s, and no worker on this host runs one: restart it"
    )
    assert said() == (1, sentence)
    first = (units.c.run == run, units.c.n == 0)
    installation.change(units, *first, state="running", worker=heartbeat.worker_id())
    assert said() == (0, "4 slots, 1 units running")
    installation.change(units, *first, worker="elsewhere:1:0")
    assert said() == (1, sentence)
    while inbox.take("collect.binance"):
        pass
    assert said() == (0, "4 slots, 0 units running")


def test_other_peoples_queues_are_none_of_its_business(fleet, installation):
    """A worker does not take what its host has no collector for, nor what is not late yet."""
    heartbeat.beat("units", 4)
    run = long_sent(fleet, installation)
    assert said()[0] == 1
    installation.configure(PENSTOCK_COLLECTORS="coinbase", PENSTOCK_CONFIG="")
    assert said()[0] == 0
    installation.configure(PENSTOCK_COLLECTORS="binance")
    installation.change(units, units.c.run == run, expected_at=db_now(-50))
    assert said()[0] == 0


def test_a_broker_that_is_away_is_said(fleet, installation, inbox, connected_anew):
    """Then nobody takes anything."""
    heartbeat.beat("units", 4)
    long_sent(fleet, installation)
    installation.configure(PENSTOCK_REDIS_URL="redis://127.0.0.1:1/0")
    connected_anew()
    status, sentence = said()
    assert (status, sentence.partition(" (")[0]) == (1, "units wait, and the broker does not answer")


@pytest.fixture
def connected_anew(inbox):
    """Have the app take its new settings."""
    import kombu.pools

    from tests.integration.conftest import connect

    def again():
        kombu.pools.reset()
        connect(inbox.app)

    return again


@pytest.mark.parametrize(
    ("ago_s", "status", "sentence"),
    [
        (None, 1, "the reconciler has not run yet: beat does not send it, or no ctl worker runs it"),
        (7, 0, "the reconciler ran 7 s ago"),
        (90, 1, "the reconciler last ran 90 s ago: beat does not send it, or no ctl worker runs it"),
    ],
)
def test_beat_and_ctl_are_well_while_the_reconciler_runs(ago_s, status, sentence):
    """Beat sends it, ctl runs it; ctl has heartbeats besides, also of the process for suspects."""
    if ago_s is not None:
        reconciled(ago_s)
    assert said("--beat") == (status, sentence)
    assert said("--ctl") == (1, "no ctl worker on this host had a heartbeat in 15 s")
    heartbeat.beat("ctl", 1)
    assert said("--ctl") == (1, "no alone worker on this host had a heartbeat in 15 s")
    with writing() as connection:
        values = {"pid": 1, "slots": 1, "started_at": db_now(), "beat_at": db_now()}
        host = health.socket.gethostname()
        connection.execute(insert(workers).values(id="suspects", kind="alone", host=host, **values))
    assert said("--ctl") == (status, sentence)


def test_flower_is_well_while_it_answers(scripted):
    """With OK, on the port that is named; neither a refusal nor silence will do."""
    port = scripted.url.rpartition(":")[2]
    scripted.answers = [(200, {}, b"OK"), (500, {}, b"")]
    assert said("--flower", "--port", port) == (0, "Flower answers")
    assert said("--flower", "--port", port) == (1, f"Flower answers on 127.0.0.1:{port} with status 500")
    assert scripted.requests[0][0] == "/healthcheck"
    status, sentence = said("--flower", "--port", "1")
    assert (status, sentence.partition(" (")[0]) == (1, "Flower does not answer on 127.0.0.1:1")


def test_flower_is_looked_for_where_it_listens_by_default(scripted, monkeypatch):
    """The two commands agree without being told a port."""
    (port,) = (each.default for each in cli.flower.params if each.name == "port")
    assert f"127.0.0.1:{port}" == health.FLOWER
    monkeypatch.setattr(health, "FLOWER", scripted.url.removeprefix("http://"))
    scripted.answers = [(200, {}, b"OK")]
    assert said("--flower") == (0, "Flower answers")


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/penstock.db", "postgresql://penstock:hush-hush@127.0.0.1:1/penstock"]
)
@pytest.mark.parametrize("part", ["--worker", "--ctl", "--beat"])
def test_no_database_no_progress(installation, url, part):
    """Status 1 as well, since engines keep 2 for themselves; and no password."""
    installation.configure(PENSTOCK_DATABASE_URL=url)
    status, sentence = said(part)
    assert status == 1
    assert "hush-hush" not in sentence


def test_a_real_worker_that_hangs_is_found(fleet, installation, inbox, tmp_path):
    """Its children go on with their heartbeats: whoever looks at these alone sees nothing."""
    with (tmp_path / "log").open("wb") as output:
        command = (sys.executable, "-m", "workers.cli", "worker", "--concurrency", "1")
        worker = spawn(command, output=output)
    try:
        deadline = time.monotonic() + 60
        while said()[0]:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        os.kill(worker.pid, signal.SIGSTOP)
        # What it had asked Redis for before still goes to it.
        long_sent(fleet, installation, 4)
        status, sentence = said()
        assert (status, sentence.partition(" for ")[0]) == (1, "units wait in collect.binance")
    finally:
        os.kill(worker.pid, signal.SIGCONT)
        stop(worker, 0)
