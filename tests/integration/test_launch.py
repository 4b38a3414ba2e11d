"""A wave is a true Celery chord, though it is published in one batch; and real workers bring it home."""

import contextlib
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from celery import chord
from kombu.exceptions import OperationalError

from resilience.errors import ConfigurationError
from tasks.data import ohlcv
from tasks.launch import broker_was_emptied, launch
from tasks.models import events, waves
from tasks.runs import advance, carry_on, plan, start
from tasks.units import collect
from workers.queues import check_broker

from .conftest import connect

ROOT = Path(__file__).parents[2]
START = datetime(2026, 1, 5, tzinfo=UTC)
BINANCE = "collect.binance"
DATABASES = ("sqlite",)


@pytest.fixture
def ask(fleet):
    """Start a run of an hour of bars, one unit for each symbol; returns its id."""

    def start(count):
        symbols = [f"COIN{n}USDT" for n in range(count)]
        return fleet.run("binance.klines", symbols, START, START + timedelta(minutes=60))

    return start


@pytest.fixture
def client(redis_url):
    """The broker and result backend, seen from outside."""
    with redis.Redis.from_url(redis_url) as made:
        yield made


@contextlib.contextmanager
def worker(queues, *options, pool="threads"):
    """A Celery worker as people start it."""
    command = [sys.executable, "-m", "celery", "-A", "workers", "worker", "-P", pool, "-Q", queues]
    quick = ["--without-mingle", "--without-gossip", "-l", "error"]
    process = subprocess.Popen([*command, *quick, *options], cwd=ROOT, env=os.environ.copy())
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(found, seconds=40.0):
    """Wait until it is true; a machine that is busy takes its time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found():
            return True
        time.sleep(0.05)
    return False


def test_the_body_gets_every_outcome_once(fleet, ask, inbox):
    """It comes after the last unit and not before, with an outcome for each."""
    run = ask(5)
    for n in range(5):
        assert inbox.length("ctl") == 0
        assert inbox.deliver(BINANCE)[1]["unit"] == n
    assert inbox.length("ctl") == 1
    body = inbox.take("ctl")
    args, kwargs, _ = body.payload
    assert sorted(outcome["unit"] for outcome in args[0]) == list(range(5))
    assert kwargs == {"run": run, "wave": 1}
    assert body.headers["task"] == "tasks.runs.advance"
    assert inbox.run(body)[0] == "SUCCESS"
    [wave] = fleet.installation.rows(waves)
    assert (wave["units"], wave["totals"], wave["differs"]) == (5, {"stored": 5, "records": 300}, False)
    assert fleet.result(run)["outcome"] == "ok"


def test_a_message_that_comes_twice_does_not_count_twice(fleet, ask, inbox):
    """Neither before nor after the others: the body still waits for all, and comes once."""
    ask(3)
    messages = [inbox.take(BINANCE) for _ in range(3)]
    for message in (messages[0], messages[0], messages[1], messages[0]):
        inbox.run(message)
    assert inbox.length("ctl") == 0
    for message in (messages[2], messages[2], messages[1]):
        inbox.run(message)
    assert inbox.length("ctl") == 1


def test_a_unit_that_failed_is_an_outcome_for_the_body(fleet, inbox):
    """A plain chord would throw away the results of the others."""
    run = fleet.run("binance.klines", ["BADCOIN", "BTCUSDT"], START, START + timedelta(minutes=60))
    inbox.drain(BINANCE, "ctl")
    [wave] = fleet.installation.rows(waves)
    assert wave["totals"] == {"failed": 1, "stored": 1, "records": 60}
    assert fleet.result(run)["outcome"] == "partial"


def test_what_the_messages_say(fleet, ask, inbox):
    """One group, an index each, the endpoint's name for Flower, and arguments that read as a dict."""
    ask(3)
    messages = [inbox.take(BINANCE) for _ in range(3)]
    [wave] = fleet.installation.rows(waves)
    assert [message.headers["group_index"] for message in messages] == [0, 1, 2]
    assert {message.headers["group"] for message in messages} == {wave["chord"]}
    assert {message.headers["root_id"] for message in messages} == {wave["chord"]}
    assert len({message.headers["id"] for message in messages}) == 3
    for message in messages:
        assert message.headers["shadow"] == "binance.klines"
        assert eval(message.headers["kwargsrepr"]) == message.payload[1]
        assert message.headers["ignore_result"] is True
        assert message.content_type == "application/json"
        assert message.payload[2]["chord"]["task"] == "tasks.runs.advance"
        assert message.properties["delivery_mode"] == 2


def test_the_backend_knows_the_size_before_the_first_unit_ends(fleet, ask, client):
    """Otherwise a quick unit would fire the chord early."""
    ask(4)
    [wave] = fleet.installation.rows(waves)
    [size] = [client.get(key) for key in client.keys(f"*{wave['chord']}.s")]
    assert int(size) == 4


def test_the_launcher_listens_to_no_unit(fleet, ask, inbox, client):
    """A plain chord leaves the process that launched it subscribed to every unit's result, for ever."""
    ask(20)
    assert client.pubsub_channels("celery-task-meta-*") == []
    inbox.drain(BINANCE, "ctl")
    assert client.pubsub_channels("celery-task-meta-*") == []
    assert client.keys("celery-task-meta-*") == []


def test_a_plain_chord_would_listen(fleet, inbox, client):
    """So the test above can fail."""
    unit = collect.s(run=0, n=0, endpoint="binance.klines", symbol="X").set(queue=BINANCE)
    chord([unit, unit.clone()], advance.s(run=0, wave=0)).apply_async()
    assert client.pubsub_channels("celery-task-meta-*") != []


def test_the_broker_is_away_at_a_launch(fleet, inbox, redis_url):
    """Who launches is told; the units wait, and are launched as soon as it is back."""
    run = fleet.order("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=60))
    fleet.configure(PENSTOCK_BROKER_URL="redis://127.0.0.1:9/0")
    connect(inbox.app)
    assert start(run) is False
    with pytest.raises(OperationalError):
        plan(run=run)
    assert fleet.the_run(run)["state"] == "open"
    assert fleet.unit(run)["state"] == "waiting"
    assert fleet.installation.rows(waves) == []
    fleet.configure(PENSTOCK_BROKER_URL=redis_url)
    connect(inbox.app)
    carry_on(run)
    inbox.drain(BINANCE, "ctl")
    assert fleet.result(run)["outcome"] == "ok"


def test_a_thousand_messages_go_out_in_one_batch(fleet, inbox, monkeypatch):
    """A few round trips instead of one for each."""
    units = [
        collect.s(run=1, n=n, endpoint="binance.klines", symbol=f"S{n}").set(queue=BINANCE)
        for n in range(1000)
    ]
    trips, send = [], redis.connection.AbstractConnection.send_packed_command
    monkeypatch.setattr(
        redis.connection.AbstractConnection,
        "send_packed_command",
        lambda *given, **words: (trips.append(given[1]), send(*given, **words)),
    )
    launch(chord(units, advance.s(run=1, wave=1), task_id="wave-1"))
    assert len(trips) < 20
    assert inbox.length(BINANCE) == 1000


def test_messages_find_their_queue_after_a_flush(fleet, ask, inbox, client):
    """FLUSHALL takes the bindings of named exchanges with it, and kombu does not write them again."""
    ask(1)
    client.flushall()
    fleet.configure()
    run = ask(2)
    assert inbox.length(BINANCE) == 2
    inbox.drain(BINANCE, "ctl")
    assert fleet.result(run)["outcome"] == "ok"


def test_an_emptied_broker_is_noticed_once(fleet, inbox, client):
    """The first look at a Redis finds nothing of ours either."""
    assert broker_was_emptied() is True
    assert broker_was_emptied() is False
    client.flushall()
    assert broker_was_emptied() is True
    assert broker_was_emptied() is False
    assert 0 < client.ttl("penstock:broker:sentinel") <= 86_400


def test_a_broker_that_does_not_answer():
    """One sentence, without the password, that says what to set."""
    with pytest.raises(ConfigurationError, match="PENSTOCK_BROKER_URL") as caught:
        check_broker("redis://:hush-hush@127.0.0.1:9/0", timeout_s=0.5)
    assert "127.0.0.1:9" in str(caught.value)
    assert "hush-hush" not in str(caught.value)


def test_real_workers_bring_a_run_home(fleet, ask, inbox, client, upstream):
    """Threads: every outcome once, the rows of the API, one close, and nothing left behind in Redis."""
    fleet.configure(PENSTOCK_CONCURRENCY=8)
    upstream.control("binance", latency_ms=[0, 20])
    run = ask(24)
    with worker(f"{BINANCE},ctl", "-c", "8"):
        assert until(lambda: fleet.result(run) is not None)
        result = fleet.result(run)
        assert until(lambda: all(wave["closed_at"] for wave in fleet.installation.rows(waves)), 10)
        assert client.pubsub_channels("celery-task-meta-*") == []
    assert (result["outcome"], result["successful_items"], result["records"]) == ("ok", 24, 24 * 60)
    assert (result["calls"], result["resent"]) == (24, 0)
    assert len(fleet.installation.rows(ohlcv)) == 24 * 60
    for wave in fleet.installation.rows(waves):
        assert (wave["totals"].get("stored"), wave["differs"]) == (wave["units"], False)
    assert upstream.stats("binance")["requests"] == 24
    assert fleet.installation.rows(events) == []
    assert inbox.length(BINANCE) == inbox.length("ctl") == 0
    assert client.keys("celery-task-meta-*") == []


def test_a_prefork_worker_brings_a_run_home(fleet, ask, inbox, upstream):
    """Its retries too: a 503 on the way costs an attempt and nothing else."""
    upstream.control("binance", fail_next=1, error_status=503)
    run = ask(6)
    with worker(f"{BINANCE},ctl", "-c", "2", pool="prefork"):
        assert until(lambda: fleet.result(run) is not None)
    result = fleet.result(run)
    assert (result["outcome"], result["successful_items"], result["retries"]) == ("ok", 6, 1)
    assert (result["calls"], result["resent"]) == (7, 0)
