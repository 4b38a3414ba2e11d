"""One unit through everything that can happen to it, each delivery a real message of a real broker."""

import json
import logging
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import redis
from celery.exceptions import SoftTimeLimitExceeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from resilience.errors import StoreUnavailableError
from resilience.guard import CircuitState, Guard
from tasks import units
from tasks.collectors.registry import endpoint_of
from tasks.data import asana_tasks, ohlcv
from tasks.limits import circuit_of
from tasks.models import cursors, events, metadata, records
from tasks.models import units as units_table
from tasks.store import writing
from tasks.units import collect
from tests.upstream import data

from .conftest import connect, on_both

START = datetime(2026, 1, 5, tzinfo=UTC)
PAGE = timedelta(minutes=1000)
BINANCE = "collect.binance"

# What a unit does is the same on both databases; what the database has to do for it is tested on both.
DATABASES = ("sqlite",)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def exact(number):
    return Decimal(number).normalize()


def binance_rows(*symbols, start=START, end=START + timedelta(minutes=60)):
    """What must be stored: straight from the numbers that the API serves."""
    return [
        {
            "source": "binance",
            "symbol": symbol,
            "interval": "1m",
            "open_time": datetime.fromtimestamp(row[0] / 1000, UTC),
            "open": exact(row[1]),
            "high": exact(row[2]),
            "low": exact(row[3]),
            "close": exact(row[4]),
            "volume": exact(row[5]),
            "trades": row[8],
        }
        for symbol in sorted(symbols)
        for row in data.klines(symbol, int(start.timestamp() * 1000), int(end.timestamp() * 1000), 60_000)
    ]


@pytest.fixture
def bars(fleet):
    """The stored bars, their numbers without trailing zeros."""

    def read():
        rows = fleet.installation.rows(ohlcv)
        return [
            {key: exact(value) if isinstance(value, Decimal) else value for key, value in row.items()}
            for row in rows
        ]

    return read


@pytest.fixture
def ask(fleet):
    """Start a run of an hour of bars, one unit for each symbol; returns its id."""

    def start(*symbols, minutes=60, **changes):
        symbols = symbols or ("BTCUSDT",)
        return fleet.run("binance.klines", symbols, START, START + timedelta(minutes=minutes), **changes)

    return start


def ok(unit=0, records=60, outcome="stored"):
    return "SUCCESS", {"unit": unit, "outcome": outcome, "records": records}


def wait_s(row):
    """How long a unit that was sent again has to wait."""
    return (row["expected_at"] - row["sent_at"]).total_seconds()


def eta_in_s(message):
    return (datetime.fromisoformat(message.headers["eta"]) - datetime.now(UTC)).total_seconds()


@on_both
def test_the_rows_are_those_of_the_api(fleet, ask, bars, inbox, upstream):
    """Exactly, every digit; the unit says how many, and the cursor stands at the last bar."""
    run = ask("BTCUSDT", "ETHUSDT")
    assert inbox.drain(BINANCE) == [ok(0), ok(1)]
    assert bars() == binance_rows("BTCUSDT", "ETHUSDT")
    assert upstream.stats("binance")["requests"] == 2
    row = fleet.unit(run)
    assert (row["state"], row["outcome"], row["records"]) == ("done", "stored", 60)
    assert (row["calls"], row["weight"], row["attempts"], row["retries"]) == (1, 2, 0, 0)
    assert row["finished_at"] is not None
    assert row["checkpoint"] is None
    cursor = fleet.installation.rows(cursors)[0]["value"]
    assert datetime.fromisoformat(cursor) == START + timedelta(minutes=59)


def test_nothing_to_store_is_empty(fleet, inbox):
    """Before the market opened there are no bars."""
    run = fleet.run("binance.klines", ["BTCUSDT"], LONG_AGO - timedelta(days=9), LONG_AGO - timedelta(days=8))
    assert inbox.drain(BINANCE) == [ok(records=0, outcome="empty")]
    assert fleet.unit(run)["outcome"] == "empty"


def test_candles_with_gaps(fleet, bars, inbox):
    """Minutes without trades have no row; floats keep the digits that were sent."""
    run = fleet.run("coinbase.candles", ["BTC-USD"], START, START + timedelta(minutes=700))
    [(state, returned)] = inbox.drain("collect.coinbase")
    first = int(START.timestamp())
    served = data.candles("BTC-USD", first, first + 700 * 60, 60)
    assert (state, returned["records"]) == ("SUCCESS", len(served))
    assert [
        (row["open_time"].timestamp(), row["low"], row["high"], row["open"], row["close"], row["volume"])
        for row in bars()
    ] == [(at, *(exact(repr(value)) for value in rest)) for at, *rest in reversed(served)]
    assert fleet.unit(run)["calls"] == 3


@on_both
def test_tasks_by_token_pages_then_only_what_changed(fleet, inbox, upstream):
    """The second run asks from the cursor on, less its lag, and changes what changed."""
    project = max(data.PROJECTS, key=data.task_count)
    for count, as_of in enumerate((START.timestamp(), START.timestamp() + 86_400)):
        upstream.control("asana", now=as_of)
        run = fleet.run("asana.tasks", [project])
        inbox.drain("collect.asana")
        stored = {row["gid"]: row for row in fleet.installation.rows(asana_tasks)}
        expected = {task["gid"]: task for task in data.tasks(project, as_of)}
        assert stored.keys() == expected.keys()
        for gid, row in stored.items():
            task = expected[gid]
            assert row["name"] == task["name"]
            assert row["modified_at"] == datetime.fromisoformat(task["modified_at"])
            assert row["assignee"] == (task["assignee"] and task["assignee"]["gid"])
            assert row["data"]["notes"] == task["notes"]
        assert (fleet.unit(run)["records"] < len(expected)) is bool(count)


def test_a_backfill_never_moves_a_cursor(fleet, inbox, bars):
    """Its queue is its own."""
    fleet.run("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=60), kind="backfill")
    assert inbox.length(BINANCE) == 0
    assert inbox.drain(f"{BINANCE}.backfill") == [ok()]
    assert bars() == binance_rows("BTCUSDT")
    assert fleet.installation.rows(cursors) == []


def test_what_is_returned_is_small_and_always_the_same(ask, inbox):
    """A unit that is delivered twice returns what a chord may count twice without harm: JSON, no times."""
    ask()
    message = inbox.take(BINANCE)
    _, first = inbox.run(message)
    assert len(json.dumps(first)) < 200
    assert inbox.run(message) == ("SUCCESS", {"unit": 0, "outcome": "duplicate"})


def test_a_message_names_endpoint_symbol_and_window(ask, inbox):
    """For people who look into a queue or at Flower; nothing in it but small values."""
    run = ask()
    message = inbox.take(BINANCE)
    _, kwargs, _ = message.payload
    assert kwargs == {
        "run": run,
        "n": 0,
        "endpoint": "binance.klines",
        "symbol": "BTCUSDT",
        "window": START.isoformat(),
    }
    assert message.headers["shadow"] == "binance.klines"


@on_both
def test_a_retry_starts_at_the_checkpoint(fleet, ask, bars, inbox, upstream, monkeypatch):
    """Page three fails; the next delivery asks for page three and not for the first two again."""
    run = ask(minutes=3500)
    read, pages = units.Delivery.parse, []

    def fail_before_the_third(delivery, answer):
        page = read(delivery, answer)
        pages.append(delivery.checkpoint["from"])
        if len(pages) == 2:
            upstream.control("binance", fail_next=1, error_status=503)
        return page

    monkeypatch.setattr(units.Delivery, "parse", fail_before_the_third)
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    row = fleet.unit(run)
    assert (row["records"], row["attempts"], row["calls"]) == (2000, 1, 3)
    assert bars() == binance_rows("BTCUSDT", end=START + 2 * PAGE)
    assert inbox.deliver(BINANCE) == ok(records=3500)
    assert [datetime.fromisoformat(page) for page in pages] == [START + n * PAGE for n in range(4)]
    assert upstream.stats("binance")["requests"] == 5
    assert fleet.unit(run)["calls"] == 5
    assert bars() == binance_rows("BTCUSDT", end=START + timedelta(minutes=3500))


def test_progress_forgives_earlier_failures(fleet, ask, inbox, upstream, monkeypatch):
    """Attempts count from the last stored page: in SQL and in the delivery that stored it."""
    run = ask(minutes=2000)
    upstream.control("binance", fail_next=3, error_status=503)
    fleet.configure({"binance": {"breaker": {"failures": 100}}})
    read = units.Delivery.parse

    def fail_after_the_first(delivery, answer):
        page = read(delivery, answer)
        if delivery.checkpoint["from"].startswith("2026-01-05T00:00"):
            upstream.control("binance", fail_next=1, error_status=503)
        return page

    monkeypatch.setattr(units.Delivery, "parse", fail_after_the_first)
    assert [inbox.deliver(BINANCE)[0] for _ in range(3)] == ["RETRY"] * 3
    assert fleet.unit(run)["attempts"] == 3
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    assert fleet.unit(run)["attempts"] == 1
    assert inbox.deliver(BINANCE) == ok(records=2000)
    assert fleet.unit(run)["retries"] == 4


def test_a_slice_ends_and_goes_on_at_its_checkpoint(fleet, ask, bars, inbox, upstream):
    """No call starts that could outlast the slice; the next delivery is due at once and nothing is spent."""
    fleet.configure(PENSTOCK_SLICE_S=5, PENSTOCK_CALL_TIMEOUT_S=5)
    run = ask(minutes=2500)
    for page in (1, 2):
        assert inbox.deliver(BINANCE)[0] == "RETRY"
        row = fleet.unit(run)
        assert (row["state"], row["records"]) == ("sent", page * 1000)
        assert (row["deliveries"], row["attempts"], row["retries"], wait_s(row)) == (0, 0, 0, 0)
    assert inbox.deliver(BINANCE) == ok(records=2500)
    assert upstream.stats("binance")["requests"] == 3
    assert bars() == binance_rows("BTCUSDT", end=START + timedelta(minutes=2500))


def test_a_warm_shutdown_ends_the_slice_at_the_next_page(fleet, ask, inbox, monkeypatch):
    """What is stored stays, the rest goes back to the queue."""
    run = ask(minutes=2500)
    monkeypatch.setattr(units, "stopping", lambda: True)
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    assert fleet.unit(run)["records"] == 1000
    monkeypatch.setattr(units, "stopping", lambda: False)
    assert inbox.deliver(BINANCE) == ok(records=2500)


@on_both
def test_a_503_is_retried_by_celery(fleet, ask, inbox, upstream):
    """The same task, still in its chord, after the back-off; the attempt is counted in SQL."""
    fleet.configure({"binance": {"retry": {"jitter": "none", "base_s": 4}}})
    run = ask("BTCUSDT", "ETHUSDT")
    upstream.control("binance", fail_next=1, error_status=503)
    first = inbox.take(BINANCE)
    assert inbox.run(first)[0] == "RETRY"
    row = fleet.unit(run)
    assert (row["state"], row["attempts"], row["retries"]) == ("sent", 1, 1)
    assert row["error"]["error"] == "ServerError"
    assert "503" in row["error"]["message"]
    assert wait_s(row) == pytest.approx(4, abs=0.01)
    assert inbox.deliver(BINANCE) == ok(1)
    again = inbox.take(BINANCE)
    assert 3 < eta_in_s(again) <= 4
    for name in ("id", "group", "group_index", "root_id", "shadow"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["retries"] == 1
    (_, kwargs, embed), (_, kwargs_before, embed_before) = again.payload, first.payload
    assert embed["chord"]["options"]["task_id"] == embed_before["chord"]["options"]["task_id"]
    assert kwargs == kwargs_before
    assert inbox.length("ctl") == 0  # the chord waits for it
    assert inbox.run(again) == ok(0)
    row = fleet.unit(run)
    assert (row["outcome"], row["error"], row["calls"]) == ("stored", None, 2)
    assert inbox.length("ctl") == 1


def test_a_timeout_is_retried_by_celery(fleet, ask, inbox, upstream):
    """A server that takes too long for the call."""
    fleet.configure(PENSTOCK_CALL_TIMEOUT_S=0.3, PENSTOCK_CONNECT_TIMEOUT_S=0.3)
    run = ask()
    upstream.control("binance", latency_ms=700)
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    row = fleet.unit(run)
    assert (row["attempts"], row["error"]["error"]) == (1, "ApiTimeoutError")
    upstream.control("binance", latency_ms=0)
    assert inbox.deliver(BINANCE) == ok()


def test_a_reset_connection_is_retried_by_celery(fleet, ask, inbox, upstream):
    """Nothing came back at all."""
    run = ask()
    upstream.control("binance", reset_rate=1)
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    assert fleet.unit(run)["error"]["error"] == "ApiConnectionError"
    upstream.control("binance", reset_rate=0)
    assert inbox.deliver(BINANCE) == ok()


@pytest.mark.parametrize(("said_s", "state"), [(7, "sent"), (45, "waiting")])
def test_the_retry_after_of_a_503_is_not_shortened(fleet, ask, inbox, scripted, said_s, state):
    """Up to ten seconds in the queue, longer in SQL."""
    fleet.configure({"binance": {"base_url": scripted.url}})
    scripted.answers = [(503, {"Retry-After": str(said_s)}, b"busy"), (200, {}, b"[]")]
    run = ask()
    came = inbox.deliver(BINANCE)
    row = fleet.unit(run)
    assert (row["state"], row["attempts"]) == (state, 1)
    if state == "sent":
        assert came[0] == "RETRY"
        assert said_s <= wait_s(row) <= said_s + 1
        assert eta_in_s(inbox.take(BINANCE)) > said_s - 2
    else:
        assert came == ("SUCCESS", {"unit": 0, "outcome": "waiting"})
        assert (row["not_before"] - datetime.now(UTC)).total_seconds() > said_s - 2
        assert inbox.length(BINANCE) == 0


@pytest.mark.parametrize(("said_s", "state"), [(6, "sent"), (90, "waiting")])
def test_the_retry_after_of_a_429_is_not_shortened(fleet, ask, inbox, upstream, said_s, state):
    """It spends no attempt, and whoever shares the limit holds back without a call of their own."""
    run = ask("BTCUSDT", "ETHUSDT")
    upstream.control("binance", throttle_s=said_s)
    came = [inbox.deliver(BINANCE) for _ in range(2)]
    assert [each[0] for each in came] == (["RETRY"] * 2 if state == "sent" else ["SUCCESS"] * 2)
    assert upstream.stats("binance")["requests"] == 1
    hit, other = fleet.units(run)
    assert (hit["attempts"], hit["throttles"], hit["rate_limited"], hit["retries"]) == (0, 1, True, 0)
    assert (other["attempts"], other["throttles"], other["calls"], other["waits"]) == (0, 0, 0, 1)
    for row, least_s in ((hit, said_s), (other, said_s - 2)):
        assert row["state"] == state
        if state == "sent":
            assert wait_s(row) >= least_s
        else:
            assert (row["not_before"] - datetime.now(UTC)).total_seconds() > least_s - 2


def test_too_many_429s_in_a_row_are_a_failure(fleet, ask, inbox, upstream, redis_url):
    """Ten are borne by default, here two."""
    fleet.configure(PENSTOCK_THROTTLES_MAX=2, PENSTOCK_COUNTDOWN_MAX_S=1000)
    run = ask()
    upstream.control("binance", throttle_s=30)
    came = []
    for _ in range(3):
        came.append(inbox.deliver(BINANCE))
        open_the_gates(redis_url)
    assert [each[0] for each in came] == ["RETRY", "RETRY", "SUCCESS"]
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"], row["attempts"]) == ("failed", "rate_limited", 0)


def open_the_gates(redis_url):
    """As if the time that the server asked for were over."""
    with redis.Redis.from_url(redis_url) as client:
        if keys := client.keys("penstock:*:gate:*"):
            client.delete(*keys)


def test_the_fourth_failure_is_an_outcome(fleet, ask, inbox, upstream):
    """Three retries, then it ends as failed with the facts of the last error; its chord goes on."""
    run = ask()
    upstream.control("binance", fail_next=4, error_status=502)
    assert [inbox.deliver(BINANCE)[0] for _ in range(3)] == ["RETRY"] * 3
    assert inbox.deliver(BINANCE) == ("SUCCESS", {"unit": 0, "outcome": "failed"})
    row = fleet.unit(run)
    assert (row["state"], row["outcome"], row["reason"]) == ("done", "failed", "server_error")
    assert (row["attempts"], row["retries"], row["calls"]) == (4, 3, 4)
    assert row["error"]["error"] == "ServerError"
    assert datetime.fromisoformat(row["error"]["timestamp"]).utcoffset() == timedelta(0)
    assert inbox.length(BINANCE) == 0
    assert inbox.length("ctl") == 1


@pytest.mark.parametrize(
    ("endpoint", "good", "bad", "reason"),
    [
        ("binance.klines", "BTCUSDT", "BADCOIN", "validation"),
        ("coinbase.candles", "BTC-USD", "BAD-USD", "not_found"),
    ],
)
def test_a_bad_symbol_fails_alone_and_at_once(fleet, inbox, endpoint, good, bad, reason):
    """One call, no retry; the others are stored and the circuit counts nothing."""
    api = endpoint.partition(".")[0]
    run = fleet.run(endpoint, [bad, good], START, START + timedelta(minutes=60))
    assert [outcome["outcome"] for _, outcome in inbox.drain(f"collect.{api}")] == ["failed", "stored"]
    row = fleet.unit(run)
    assert (row["reason"], row["attempts"], row["calls"]) == (reason, 1, 1)
    assert circuit_of(endpoint_of(endpoint)).view.failure_count == 0


def test_credentials_that_are_refused_fail_at_once(fleet, inbox, monkeypatch):
    """Asking again would not make them right."""
    monkeypatch.setenv("ASANA_TOKEN", "BAD-token")
    run = fleet.run("asana.tasks", [data.PROJECTS[0]])
    inbox.drain("collect.asana")
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"], row["calls"]) == ("failed", "invalid_credentials", 1)


def test_a_missing_secret_fails_at_once_and_names_it(fleet, inbox, monkeypatch):
    """A mistake of the installation; no call is made."""
    monkeypatch.delenv("ASANA_TOKEN")
    run = fleet.run("asana.tasks", [data.PROJECTS[0]])
    inbox.drain("collect.asana")
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"]) == ("failed", "configuration")
    assert "ASANA_TOKEN" in row["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b'[[1767571200000,"1.0","2.0"',
        b"<html><body>Please sign in</body></html>",
        b"null",
        b'{"code": 0, "msg": "ok"}',
        b"[[1, 2]]",
        b'[["x","1","1","1","1","1",1,"1",1,"1","1","0"]]',
        b"[null]",
        b"",
        b"\xff\xfe\x00",
    ],
)
def test_a_broken_body_is_a_bad_payload(fleet, ask, inbox, scripted, body):
    """Retried, then failed; nothing of it is stored, and its beginning is kept for people."""
    fleet.configure({"binance": {"base_url": scripted.url}})
    scripted.answers = [(200, {}, body)]
    run = ask()
    assert [inbox.deliver(BINANCE)[0] for _ in range(4)] == ["RETRY"] * 3 + ["SUCCESS"]
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"], row["calls"]) == ("failed", "bad_payload", 4)
    assert body.decode("utf-8", "replace")[:20].strip("\x00") in row["error"]["message"]
    assert fleet.installation.rows(ohlcv) == []


def test_the_first_200_characters_are_kept(fleet, ask, inbox, scripted):
    """And no more."""
    fleet.configure({"binance": {"base_url": scripted.url}})
    scripted.answers = [(200, {}, b"<p>" + b"ab" * 98 + b"." + b"no more")]
    run = ask()
    inbox.deliver(BINANCE)
    message = fleet.unit(run)["error"]["message"]
    assert "<p>" + "ab" * 98 in message
    assert "no more" not in message


@pytest.mark.parametrize("fault", [{"truncate_rate": 1}, {"html_200": True}, {"null_200": True}])
def test_a_body_that_is_broken_once(fleet, ask, bars, inbox, upstream, fault):
    """The next call brings it."""
    run = ask()
    upstream.control("binance", **fault)
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    assert fleet.unit(run)["error"]["error"] == "BadPayloadError"
    upstream.reset("binance")
    assert inbox.deliver(BINANCE) == ok()
    assert bars() == binance_rows("BTCUSDT")


SHOP = """
from tasks.collectors import Api, RetryPolicy

shop = Api("shop", "http://127.0.0.1:1", retry=RetryPolicy(attempts=2))

@shop.endpoint("/orders", key="id")
def orders(row, unit):
    if row["id"] == 13:
        raise KeyError("thirteen")
    return row

@shop.endpoint("/heavy", key="id", weight=lambda unit: 1 / 0, weight_max=5)
def heavy(row, unit):
    return row
"""


@pytest.fixture
def shop(fleet, scripted, tmp_path, monkeypatch):
    """A collector of somebody's own, without a table."""
    (tmp_path / "shop_of_units.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    fleet.configure({"shop": {"base_url": scripted.url}}, PENSTOCK_COLLECTORS="shop_of_units:shop,binance")
    connect(fleet.inbox.app)  # its queues follow from the collectors
    yield scripted
    sys.modules.pop("shop_of_units", None)


def order(fleet, endpoint):
    return fleet.run(endpoint, None)


@on_both
def test_rows_without_a_table_are_kept_as_json(fleet, shop, inbox):
    """Exact decimals as text."""
    shop.answers = [(200, {}, b'[{"id": 1, "price": 0.1}, {"id": 2, "price": 1e2}]')]
    order(fleet, "shop.orders")
    assert inbox.drain("collect.shop") == [ok(records=2)]
    stored = fleet.installation.rows(records)
    assert [(row["source"], row["endpoint"], row["key"]) for row in stored] == [
        ("shop", "orders", "1"),
        ("shop", "orders", "2"),
    ]


def test_a_parse_function_that_raises_is_an_outcome(fleet, shop, inbox):
    """No row of a page that is broken for the most part is kept, nothing is raised out of the task."""
    shop.answers = [(200, {}, b'[{"id": 1}, {"id": 13}, {"id": 13}]')]
    run = order(fleet, "shop.orders")
    assert [each[0] for each in inbox.drain("collect.shop")] == ["RETRY", "SUCCESS"]
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"]) == ("failed", "bad_payload")
    assert "KeyError" in row["error"]["message"]
    assert fleet.installation.rows(records) == []


def test_a_mistake_in_a_declaration_is_an_outcome(fleet, shop, inbox, caplog):
    """A weight that divides by zero: failed at once, and the log has the traceback."""
    run = order(fleet, "shop.heavy")
    with caplog.at_level(logging.ERROR, logger="tasks.units"):
        assert inbox.drain("collect.shop") == [("SUCCESS", {"unit": 0, "outcome": "failed"})]
    row = fleet.unit(run)
    assert (row["reason"], row["error"]["error"]) == ("ZeroDivisionError", "ZeroDivisionError")
    assert any(record.exc_info for record in caplog.records)
    assert shop.requests == []


def test_an_endpoint_that_is_gone_is_an_outcome(fleet, shop, inbox):
    """Units of a collector that this worker does not have."""
    run = order(fleet, "shop.orders")
    message = inbox.take("collect.shop")
    fleet.configure(PENSTOCK_COLLECTORS="binance")
    assert inbox.run(message) == ("SUCCESS", {"unit": 0, "outcome": "failed"})
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"]) == ("failed", "configuration")


def break_the_circuit(fleet, inbox, upstream, ask, **changes):
    """Five units meet a 503; the sixth and seventh find the circuit open."""
    run = ask(*(f"COIN{n}USDT" for n in range(7)), **changes)
    upstream.control("binance", error_rate=1, error_status=503)
    came = [inbox.deliver(BINANCE) for _ in range(5)]
    assert [each[0] for each in came] == ["RETRY"] * 5
    assert circuit_of(endpoint_of("binance.klines")).view.state is CircuitState.OPEN
    return run, [inbox.deliver(BINANCE) for _ in range(2)]


@on_both
def test_five_503s_open_the_circuit_and_units_park(fleet, ask, inbox, upstream):
    """Without a call; they wait in SQL until the circuit lets probes through."""
    run, came = break_the_circuit(fleet, inbox, upstream, ask)
    assert came == [("SUCCESS", {"unit": n, "outcome": "waiting"}) for n in (5, 6)]
    assert upstream.stats("binance")["requests"] == 5
    retry_at = circuit_of(endpoint_of("binance.klines")).view.retry_at
    for row in fleet.units(run)[5:]:
        assert (row["state"], row["parked_on"], row["attempts"]) == ("waiting", "binance.klines", 0)
        assert abs((row["not_before"] - retry_at).total_seconds()) < 1
        assert row["wave"] is None
    [told] = [row for row in fleet.installation.rows(events) if row["kind"] == "circuit"]
    assert told["subject"] == "binance.klines"
    assert [told["detail"][name] for name in ("old", "new", "reason")] == [
        "closed",
        "open",
        "consecutive failures",
    ]


def test_a_scheduled_unit_is_skipped(fleet, ask, inbox, upstream):
    """Its next slot catches up."""
    run, came = break_the_circuit(fleet, inbox, upstream, ask, kind="scheduled", on_open="skip")
    assert came == [("SUCCESS", {"unit": n, "outcome": "skipped"}) for n in (5, 6)]
    row = fleet.unit(run, 6)
    assert (row["outcome"], row["reason"], row["calls"]) == ("skipped", "circuit_open", 0)


def limited(fleet, ask, limit, **variables):
    """Two units of which the limit admits one now."""
    fleet.configure({"binance": {"limits": [limit]}}, PENSTOCK_WAVE_S=1000, **variables)
    return ask("BTCUSDT", "ETHUSDT")


def test_a_short_wait_is_waited_for(fleet, ask, inbox, upstream):
    """Up to two seconds: the worker stays, the unit goes through in one delivery."""
    run = limited(fleet, ask, "240/1m")
    assert [inbox.deliver(BINANCE) for _ in range(2)] == [ok(0), ok(1)]
    waited = fleet.unit(run, 1)
    assert waited["waits"] >= 1
    assert 0 < waited["waited_s"] < 2
    assert (waited["attempts"], waited["retries"], waited["throttles"]) == (0, 0, 0)


def test_a_longer_wait_goes_back_to_the_queue(fleet, ask, inbox):
    """Up to ten seconds: sent, expected when its reserved place comes, the ticket in SQL."""
    run = limited(fleet, ask, "30/1m")
    assert inbox.deliver(BINANCE) == ok(0)
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    row = fleet.unit(run, 1)
    assert row["ticket"]
    assert row["state"] == "sent"
    assert 2 < wait_s(row) <= 10
    assert (row["attempts"], row["deliveries"], row["waits"], row["calls"]) == (0, 0, 1, 0)
    assert row["not_before"] < datetime.now(UTC)


def test_a_long_wait_goes_to_sql(fleet, ask, inbox):
    """Longer than that: waiting, with its ticket, and the delivery ends."""
    run = limited(fleet, ask, "10/1m")
    assert inbox.deliver(BINANCE) == ok(0)
    assert inbox.deliver(BINANCE) == ("SUCCESS", {"unit": 1, "outcome": "waiting"})
    row = fleet.unit(run, 1)
    assert row["ticket"]
    assert row["state"] == "waiting"
    assert 10 < (row["not_before"] - datetime.now(UTC)).total_seconds() < 60
    assert (row["attempts"], row["deliveries"], row["wave"]) == (0, 0, None)
    assert inbox.length(BINANCE) == 0


@on_both
def test_a_claim_that_is_lost_stores_nothing(fleet, ask, bars, inbox, monkeypatch):
    """Another worker took the unit while this one was calling: no row of ours, nothing of theirs changed."""
    run = ask()
    read = units.Delivery.parse

    def lose_it(delivery, answer):
        fleet.installation.change(units_table, token=delivery.claim.token + 1, worker="other")
        return read(delivery, answer)

    monkeypatch.setattr(units.Delivery, "parse", lose_it)
    assert inbox.deliver(BINANCE) == ("SUCCESS", {"unit": 0, "outcome": "duplicate"})
    assert bars() == []
    row = fleet.unit(run)
    assert (row["state"], row["worker"], row["token"], row["records"]) == ("running", "other", 2, 0)
    assert inbox.length(BINANCE) == 0


def test_a_claim_that_is_lost_before_a_failure_changes_nothing(fleet, ask, inbox, upstream, monkeypatch):
    """Neither an attempt nor a message."""
    run = ask()
    upstream.control("binance", fail_next=1, error_status=503)
    send = units.Delivery.fetch

    def lose_it(delivery):
        fleet.installation.change(units_table, token=delivery.claim.token + 1, worker="other")
        return send(delivery)

    monkeypatch.setattr(units.Delivery, "fetch", lose_it)
    assert inbox.deliver(BINANCE) == ("SUCCESS", {"unit": 0, "outcome": "duplicate"})
    row = fleet.unit(run)
    assert (row["state"], row["worker"], row["attempts"]) == ("running", "other", 0)
    assert inbox.length(BINANCE) == 0


def away(fleet):
    """Let the database be where nobody listens."""
    fleet.installation.configure(PENSTOCK_DATABASE_URL="postgresql://penstock@127.0.0.1:9/penstock")


def back(fleet, url):
    fleet.installation.configure(PENSTOCK_DATABASE_URL=url)


@on_both
def test_the_database_goes_away_before_the_rows_are_stored(
    fleet, ask, bars, inbox, migrated_url, monkeypatch
):
    """The message comes back with its fence token: no delivery, no attempt is counted, no row twice."""
    run = ask()
    read = units.Delivery.parse

    def lose_the_database(delivery, answer):
        page = read(delivery, answer)
        away(fleet)
        return page

    monkeypatch.setattr(units.Delivery, "parse", lose_the_database)
    first = inbox.take(BINANCE)
    assert inbox.run(first)[0] == "RETRY"
    monkeypatch.setattr(units.Delivery, "parse", read)
    again = inbox.take(BINANCE)
    assert again.payload[1]["fence"] == 1
    assert again.headers["id"] == first.headers["id"]
    assert 0 < eta_in_s(again) <= 5
    back(fleet, migrated_url)
    row = fleet.unit(run)
    assert (row["state"], row["token"], row["deliveries"]) == ("running", 1, 1)
    assert bars() == []
    assert inbox.run(again) == ok()
    row = fleet.unit(run)
    assert (row["deliveries"], row["attempts"], row["retries"]) == (1, 0, 0)
    assert bars() == binance_rows("BTCUSDT")


def test_the_database_is_away_at_the_claim(fleet, ask, inbox, migrated_url):
    """The message comes back as it was, as often as it takes."""
    run = ask()
    away(fleet)
    for _ in range(6):
        assert inbox.deliver(BINANCE)[0] == "RETRY"
    back(fleet, migrated_url)
    assert inbox.deliver(BINANCE) == ok()
    row = fleet.unit(run)
    assert (row["deliveries"], row["attempts"]) == (1, 0)


def test_the_database_goes_away_while_a_failure_is_written(
    fleet, ask, inbox, upstream, migrated_url, monkeypatch
):
    """An error of the API at the same moment: the unit comes back and is tried again."""
    run = ask()
    upstream.control("binance", fail_next=1, error_status=503)
    send = units.Delivery.fetch

    def lose_the_database(delivery):
        away(fleet)
        return send(delivery)

    monkeypatch.setattr(units.Delivery, "fetch", lose_the_database)
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    monkeypatch.setattr(units.Delivery, "fetch", send)
    back(fleet, migrated_url)
    assert inbox.deliver(BINANCE) == ok()
    assert fleet.unit(run)["deliveries"] == 1


def test_the_database_goes_away_while_a_final_failure_is_written(fleet, inbox, migrated_url, monkeypatch):
    """It is not lost either: the unit comes back and fails again."""
    run = fleet.run("binance.klines", ["BADCOIN"], START, START + timedelta(minutes=60))
    send = units.Delivery.fetch

    def lose_the_database(delivery):
        away(fleet)
        return send(delivery)

    monkeypatch.setattr(units.Delivery, "fetch", lose_the_database)
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    monkeypatch.setattr(units.Delivery, "fetch", send)
    back(fleet, migrated_url)
    assert inbox.deliver(BINANCE) == ("SUCCESS", {"unit": 0, "outcome": "failed"})
    assert fleet.unit(run)["reason"] == "validation"


def test_the_broker_is_away_at_a_retry(fleet, ask, inbox, upstream):
    """The unit stays open in SQL, expected soon, and its chord gets an answer."""
    run = ask("BTCUSDT", "ETHUSDT")
    upstream.control("binance", fail_next=1, error_status=503)
    message = inbox.take(BINANCE)
    fleet.configure(PENSTOCK_BROKER_URL="redis://127.0.0.1:9/0")
    connect(inbox.app)
    assert inbox.run(message) == ("SUCCESS", {"unit": 0, "outcome": "waiting"})
    row = fleet.unit(run)
    assert (row["state"], row["attempts"]) == ("sent", 1)
    assert row["expected_at"] is not None


def test_the_guard_is_away(fleet, ask, inbox, monkeypatch):
    """Nothing is called and nothing spent; the unit waits a few seconds in SQL."""
    run = ask()

    def gone(*args, **kwargs):
        raise StoreUnavailableError("Redis does not answer")

    monkeypatch.setattr(Guard, "admit", gone)
    assert inbox.deliver(BINANCE) == ("SUCCESS", {"unit": 0, "outcome": "waiting"})
    row = fleet.unit(run)
    assert (row["state"], row["attempts"], row["calls"]) == ("waiting", 0, 0)


def test_the_guard_goes_away_during_a_call(fleet, ask, bars, inbox, monkeypatch):
    """What was fetched is stored; permits and leases end by themselves."""
    run = ask()

    def gone(*args, **kwargs):
        raise StoreUnavailableError("Redis does not answer")

    monkeypatch.setattr(Guard, "settle", gone)
    assert inbox.deliver(BINANCE) == ok()
    assert fleet.unit(run)["outcome"] == "stored"
    assert bars() == binance_rows("BTCUSDT")


@on_both
def test_rows_that_the_database_refuses_are_an_outcome(fleet, ask, inbox, monkeypatch):
    """A mistake, not an outage: failed, with its one call counted."""
    run = ask()
    read = units.Delivery.parse

    def spoil(delivery, answer):
        page = read(delivery, answer)
        page.rows[7]["open"] = None
        return page

    monkeypatch.setattr(units.Delivery, "parse", spoil)
    assert inbox.deliver(BINANCE) == ("SUCCESS", {"unit": 0, "outcome": "failed"})
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"], row["calls"]) == ("failed", "integrity", 1)
    assert fleet.installation.rows(ohlcv) == []


def test_any_error_becomes_an_outcome(fleet, ask, inbox, monkeypatch):
    """One that got out would throw away what the whole chord has collected."""
    ask(*(f"COIN{n}USDT" for n in range(4)))
    for error in (RuntimeError("?"), AssertionError(), MemoryError(), RecursionError()):

        def fail(delivery, answer, error=error):
            raise error

        monkeypatch.setattr(units.Delivery, "parse", fail)
        state, returned = inbox.deliver(BINANCE)
        assert (state, returned["outcome"]) == ("SUCCESS", "failed")


def test_a_soft_time_limit_costs_an_attempt(fleet, ask, inbox, monkeypatch):
    """It hit a unit that hung: it comes back after the back-off."""
    run = ask()

    def hang(delivery):
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(units.Delivery, "fetch", hang)
    assert inbox.deliver(BINANCE)[0] == "RETRY"
    row = fleet.unit(run)
    assert (row["state"], row["attempts"], row["error"]["error"]) == ("sent", 1, "TimeLimit")


def test_a_backfill_stays_in_its_queue(fleet, inbox, upstream):
    """A retry that went to the live queue would be ahead of those who wait."""
    fleet.run("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=60), kind="backfill")
    upstream.control("binance", fail_next=1, error_status=503)
    assert inbox.deliver(f"{BINANCE}.backfill")[0] == "RETRY"
    assert (inbox.length(BINANCE), inbox.length(f"{BINANCE}.backfill")) == (0, 1)


def test_a_suspect_stays_in_its_queue(fleet, ask, inbox, upstream):
    """Elsewhere it could take others with it."""
    run = ask()
    inbox.take(BINANCE)
    fleet.installation.change(units_table, alone=True, deliveries=3)
    collect.apply_async(
        kwargs={"run": run, "n": 0, "endpoint": "binance.klines", "symbol": "BTCUSDT"}, queue="alone"
    )
    upstream.control("binance", fail_next=1, error_status=503)
    assert inbox.deliver("alone")[0] == "RETRY"
    assert (inbox.length(BINANCE), inbox.length("alone")) == (0, 1)
    assert inbox.deliver("alone") == ok()


def everything_in(redis_url):
    """Every value of a Redis, as text."""
    with redis.Redis.from_url(redis_url) as client:
        for key in client.keys("*"):
            kind = client.type(key).decode()
            value = {
                "string": client.get,
                "list": lambda key: client.lrange(key, 0, -1),
                "hash": client.hgetall,
                "set": client.smembers,
                "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
            }[kind](key)
            yield f"{key} {value}"


def test_no_secret_leaves_the_worker(fleet, inbox, upstream, redis_url, caplog):
    """Neither into a message nor a row, a result, the state in Redis or a log; whatever goes wrong."""
    project = data.PROJECTS[0]
    with caplog.at_level(logging.DEBUG):
        for fault in ({}, {"fail_next": 1}, {"html_200": True}, {"reset_rate": 1}, {"throttle_s": 60}):
            upstream.reset("asana")
            upstream.control("asana", **fault)
            fleet.run("asana.tasks", [project, "999"])
            for _ in range(2):
                inbox.deliver("collect.asana")
    assert upstream.stats("asana")["by_status"].get("401") is None  # the token was sent
    stored = "".join(
        repr(fleet.installation.rows(table, order=[select(1).scalar_subquery()]))
        for table in metadata.tables.values()
    )
    assert "asana.tasks" in stored
    for place in (*everything_in(redis_url), stored, caplog.text):
        assert "asana-secret-token" not in place


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    events=st.lists(
        st.sampled_from(["503", "429", "404", "html", "good", "duplicate", "database", "lost"]),
        min_size=1,
        max_size=7,
    )
)
def test_a_unit_never_raises_and_never_doubles(fleet, bars, inbox, scripted, redis_url, migrated_url, events):
    """Any order of faults and deliveries: an outcome or an open unit, rows exact or none, attempts as failed."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    fleet.configure(
        {"binance": {"base_url": scripted.url, "breaker": {"failures": 1000}}}, PENSTOCK_COUNTDOWN_MAX_S=1000
    )
    fleet.installation.change(ohlcv, volume=Decimal(0))
    run = fleet.run("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=60))
    rows = data.klines(
        "BTCUSDT", int(START.timestamp() * 1000), int(START.timestamp() * 1000) + 3_600_000, 60_000
    )
    answers = {
        "503": (503, {}, b"busy"),
        "429": (429, {"Retry-After": "5"}, b"{}"),
        "404": (404, {}, b"{}"),
        "html": (200, {}, b"<html>"),
    }
    message, attempts = inbox.take(BINANCE), 0
    for event in [*events, "good"]:
        before = fleet.unit(run)
        scripted.answers = [answers.get(event, (200, {}, json.dumps(rows).encode()))]
        if event == "database":
            away(fleet)
        state, _ = inbox.run(message)
        if event == "database":
            back(fleet, migrated_url)
        assert state in {"SUCCESS", "RETRY"}
        if before["state"] == "done":
            assert fleet.unit(run) == before
        elif event in {"503", "html", "404"}:
            attempts += 1
        if event != "duplicate" and (following := inbox.take(BINANCE)) is not None:
            message = following
        open_the_gates(redis_url)
        assert fleet.unit(run)["attempts"] == attempts
    row = fleet.unit(run)
    assert row["state"] == "done"
    assert row["outcome"] in {"stored", "failed"}
    if row["outcome"] == "stored":
        assert bars() == binance_rows("BTCUSDT")


def test_a_table_that_is_not_there_is_a_mistake(fleet, inbox):
    """Trying again would call the API for ever, and no later try finds it."""
    run = fleet.run("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=60))
    with writing() as connection:
        connection.exec_driver_sql("DROP TABLE ohlcv")
    inbox.drain("collect.binance", "ctl")
    row = fleet.unit(run)
    assert (row["state"], row["outcome"]) == ("done", "failed")
    assert "no such table" in row["error"]["message"]
