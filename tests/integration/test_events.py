"""Transitions of circuits in the table of events: each once, whatever was away when they happened."""

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice, pairwise

import pytest
import redis

from resilience.errors import StoreUnavailableError
from resilience.guard import Ask, CallResult, CircuitState
from resilience.store import Kind, Move, Report
from resilience.store.redis import RedisStore
from tasks import events as module
from tasks.collectors.registry import collectors, endpoint_of
from tasks.events import catch_up, keep
from tasks.limits import circuit_of, guard
from tasks.models import event_streams, events, transitions

NAME = "binance.klines"
DATABASE_AWAY = "postgresql+psycopg://postgres@127.0.0.1:1/x"
REDIS_AWAY = "redis://127.0.0.1:1/0"
OPENED = ("closed", "open", "consecutive failures")
FAILED = CallResult(Kind.FAILURE, 0.1)

pytestmark = pytest.mark.usefixtures("installation")


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def kept(installation):
    """Call it for what the table has: old, new, reason and actor of each transition."""

    def rows():
        details = [row["detail"] for row in installation.rows(events, events.c.subject == NAME)]
        return [tuple(each[name] for name in ("old", "new", "reason", "actor")) for each in details]

    return rows


def breaker():
    return circuit_of(endpoint_of(NAME))


def leases(count):
    ask = Ask("binance", (breaker(),), ())
    return [guard().admit(ask).lease for _ in range(count)]


def fail(count=5):
    """Calls that end in the store, and whose process ends before it hears what came of that."""
    for lease in leases(count):
        guard().store.settle(Report(lease.grant, Kind.FAILURE))


def turn(*states, by="ada", why="a test"):
    """Transitions by hand of which nobody is told."""
    for state in states:
        guard().store.move([Move(breaker().spec, CircuitState(state), by, why)])


def read():
    return catch_up(guard().store, collectors())


def test_a_process_that_ends_before_it_tells(installation, kept):
    """The transition is kept when the stream is read, once, with the time and the process that caused it."""
    fail()
    assert kept() == []
    assert [read(), read(), read()] == [1, 0, 0]
    [event] = guard().store.events("binance")
    assert kept() == [(*OPENED, event.actor)]
    [row] = installation.rows(events)
    assert (row["kind"], round(row["at"].timestamp() * 1e6)) == ("circuit", event.at_us)
    assert abs(row["at"] - datetime.now(UTC)) < timedelta(seconds=30)


def test_what_was_kept_at_once(kept):
    """Is in the table before anybody reads the stream, and not a second time afterwards."""
    for lease in leases(5):
        guard().settle(lease, FAILED)
    assert [each[:3] for each in kept()] == [OPENED]
    assert read() == 0
    assert len(kept()) == 1


def test_the_database_is_away_at_that_moment(installation, migrated_url, kept, caplog):
    """The call is not disturbed, and the transition is kept when the database is back."""
    fail(4)
    installation.configure(PENSTOCK_DATABASE_URL=DATABASE_AWAY)
    with caplog.at_level(logging.WARNING):
        [told] = guard().settle(*leases(1), FAILED)
    assert f"circuit {NAME} is not in the events table yet" in caplog.text
    installation.configure(PENSTOCK_DATABASE_URL=migrated_url)
    assert kept() == []
    assert [read(), read()] == [1, 0]
    assert kept() == [(*OPENED, told.actor)]


def test_redis_is_away_when_it_is_read(installation, redis_url, kept):
    """Nothing is skipped: the next time finds it."""
    turn("open")
    read()
    turn("closed")
    installation.configure(PENSTOCK_REDIS_URL=REDIS_AWAY)
    with pytest.raises(StoreUnavailableError):
        read()
    installation.configure(PENSTOCK_REDIS_URL=redis_url)
    assert [read(), read()] == [1, 0]
    assert [each[:2] for each in kept()] == [("closed", "open"), ("open", "closed")]


def test_redis_is_away_when_it_happens(installation, redis_url, kept):
    """The circuit of this process opens, in no stream: it is kept at once."""
    fail(1)
    installation.configure(PENSTOCK_REDIS_URL=REDIS_AWAY)
    for lease in leases(5):
        guard().settle(lease, FAILED)
    installation.configure(PENSTOCK_REDIS_URL=redis_url)
    assert read() == 0
    assert [each[:3] for each in kept()] == [OPENED]


def in_threads(*functions):
    """What they return when they run at once."""
    found = []
    threads = [threading.Thread(target=lambda each=each: found.append(each())) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_two_read_at_once_while_it_is_told(kept, monkeypatch):
    """Both have read the same before either writes, and the last transition is told meanwhile: each once."""
    turn(*islice(cycle(["open", "half_open"]), 20))
    told_now = module._transition(guard().store.events("binance")[-1])
    after, barrier = module._after, threading.Barrier(3, timeout=30)

    def all_have_read(store, api, last):
        found = after(store, api, last)
        if found:
            barrier.wait()
        return found

    def tell():
        barrier.wait()
        return keep(told_now)

    monkeypatch.setattr(module, "_after", all_have_read)
    counts = in_threads(read, read, tell)
    assert len(counts) == 3
    assert sum(filter(None, counts)) in {19, 20}
    states = ["closed", *islice(cycle(["open", "half_open"]), 20)]
    assert sorted(each[:2] for each in kept()) == sorted(pairwise(states))


@pytest.mark.parametrize("behind_s", [0, 86_400])
def test_redis_is_lost(installation, client, kept, behind_s):
    """Later transitions are kept, even when its clock is behind the one that it had before."""
    turn("open")
    assert read() == 1
    ahead = f"{int((time.time() + behind_s) * 1000)}-0"
    if behind_s:
        installation.change(event_streams, last=ahead)
    client.flushall()
    assert read() == 0
    turn("disabled")
    assert [read(), read()] == [1, 0]
    turn("closed")
    assert [read(), read()] == [1, 0]
    assert [each[:2] for each in kept()] == [
        ("closed", "open"),
        ("closed", "disabled"),
        ("disabled", "closed"),
    ]
    assert installation.rows(event_streams)[0]["last"] < ahead or not behind_s


def test_the_stream_has_forgotten_what_was_read_last(client, kept):
    """What is left of it is looked at, and nothing is kept twice."""
    turn("open", "half_open", "closed")
    assert read() == 3
    newest = guard().store.events("binance")[-1].id
    client.xdel("penstock:{binance}:events", newest)
    turn("open")
    assert [read(), read()] == [1, 0]
    assert len(kept()) == 4


def test_it_is_read_on(redis_url, monkeypatch):
    """A visit reads the last one that it knows, and what is new."""
    lengths = []

    class Measured(RedisStore):
        def events(self, api, after="0-0"):
            found = super().events(api, after)
            lengths.append(len(found))
            return found

    store = Measured(redis_url)
    turn("open", "half_open", "closed")
    assert catch_up(store, ["binance"]) == 3
    assert catch_up(store, ["binance"]) == 0
    turn("open")
    assert catch_up(store, ["binance"]) == 1
    assert lengths == [3, 1, 2]
    store.close()


def test_several_in_one_millisecond():
    """The id before the first of a millisecond lies in the one before."""
    assert module._before("1700000000000-7") == "1700000000000-6"
    assert module._before("1700000000000-0") == "1699999999999-18446744073709551615"


def test_who_forced_it_and_why(kept):
    """Also when the operator's process ended before it could say so."""
    turn("forced_open", by="ada", why="the provider has maintenance")
    assert read() == 1
    assert kept() == [("closed", "forced_open", "the provider has maintenance", "ada")]


def test_names_that_are_longer_than_a_column(installation):
    """Another program's circuits do not stop the reading."""
    turn("open", by="x" * 300)
    turn("closed")
    assert [read(), read()] == [2, 0]
    assert [len(row["detail"]["actor"]) for row in installation.rows(events)] == [300, 3]
    assert {len(row["actor"]) for row in installation.rows(transitions)} == {200, 3}
