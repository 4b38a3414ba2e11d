"""Units whose pages get smaller, whose windows are split, and whose errors speak of some only."""

import json
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from resilience.guard import CircuitState
from tasks.collectors.registry import endpoint_of
from tasks.limits import circuit_of, limits
from tasks.models import bans, cursors, records
from tasks.quarantine import COUNTED

from .conftest import connect, on_both

DATABASES = ("sqlite",)
STOCK = "collect.stock"
T0 = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.fixture
def stock(fleet, scripted):
    """The collector, its API answering as the test says."""
    fleet.configure(
        {"stock": {"base_url": scripted.url}},
        PENSTOCK_COLLECTORS="tests.integration.paged:stock",
        STOCK_TOKEN="stock-secret-token",
    )
    connect(fleet.inbox.app)  # its queues follow from the collectors
    return scripted


def body(rows):
    return 200, {}, json.dumps(rows).encode()


def asked(server):
    """The queries of all requests, each parameter once."""
    return [
        {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        for path, _ in server.requests
    ]


def ids(fleet):
    return sorted(row["data"]["id"] for row in fleet.installation.rows(records))


@on_both
def test_a_page_that_is_too_much_is_asked_for_by_half(fleet, stock, inbox):
    """No attempt is spent, and the next pages are small as well."""
    stock.answers = [
        (413, {}, b"{}"),
        (413, {}, b"{}"),
        body({"items": [1, 2]}),
        (503, {}, b""),
        body({"items": [3]}),
    ]
    run = fleet.run("stock.items", None)
    assert inbox.deliver(STOCK)[0] == "RETRY"
    assert inbox.deliver(STOCK) == ("SUCCESS", {"unit": 0, "outcome": "stored", "records": 3})
    assert [(each["page"], each["size"]) for each in asked(stock)] == [
        ("1", "8"),
        ("1", "4"),
        ("1", "2"),
        ("2", "2"),
        ("2", "2"),
    ]
    assert ids(fleet) == [1, 2, 3]
    assert fleet.unit(run)["calls"] == 5


def test_a_row_that_is_too_much_ends_the_unit(fleet, stock, inbox):
    """With a reason of its own, at once; the circuit does not count it."""
    stock.answers = [(413, {}, b"{}")]
    run = fleet.run("stock.items", None)
    inbox.drain(STOCK)
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"], row["calls"]) == ("failed", "too_much", 4)
    assert circuit_of(endpoint_of("stock.items")).get_status()["failure_count"] == 0


def test_no_rows_where_some_are_expected(fleet, stock, inbox):
    """Tried again, then failed by a reason of its own; the circuit counts it."""
    stock.answers = [body({"items": []})]
    run = fleet.run("stock.items", None)
    assert inbox.deliver(STOCK)[0] == "RETRY"
    assert inbox.deliver(STOCK)[1]["outcome"] == "failed"
    row = fleet.unit(run)
    assert (row["reason"], row["error"]["error"], row["attempts"]) == ("no_rows", "NoRowsError", 2)
    assert circuit_of(endpoint_of("stock.items")).get_status()["failure_count"] == 2
    stock.answers = [body({"items": [1]})]
    run = fleet.run("stock.items", None)
    inbox.drain(STOCK)
    assert fleet.unit(run)["outcome"] == "stored"


@on_both
def test_a_window_is_split_where_an_answer_is_full(fleet, stock, inbox):
    """A backfill: every row once, none that was cut off lost."""
    times = [T0 + timedelta(seconds=n * n) for n in range(12)]
    served = [{"id": n, "at": at.isoformat()} for n, at in enumerate(times)]
    run = fleet.run("stock.moves", ["a"], T0, T0 + timedelta(seconds=200), kind="backfill")

    def answer(path):
        query = {
            name: datetime.fromisoformat(value[0]) for name, value in parse_qs(urlsplit(path).query).items()
        }
        return body(
            [row for row, at in zip(served, times, strict=True) if query["from"] <= at <= query["to"]][:3]
        )

    stock.answers = [answer]
    inbox.drain(f"{STOCK}.backfill")
    row = fleet.unit(run)
    assert (row["outcome"], row["records"]) == ("stored", 12)
    assert ids(fleet) == list(range(12))
    assert 8 < row["calls"] < 40
    assert fleet.installation.rows(cursors) == []


def test_a_live_window_begins_at_the_cursor(fleet, stock, inbox):
    """And ends now."""
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    stock.answers = [body([{"id": 1, "at": at.isoformat()}])]
    for _ in range(2):
        run = fleet.run("stock.moves", ["a"])
        inbox.drain(STOCK)
        assert fleet.unit(run)["outcome"] == "stored"
    first, second = ([datetime.fromisoformat(each[end]) for end in ("from", "to")] for each in asked(stock))
    assert first[1] - first[0] - timedelta(days=1) <= timedelta(seconds=1)  # to whole seconds, outwards
    assert second[0] == at
    assert second[1] >= first[1]


def gates(endpoint):
    """Who may not call now."""
    return {
        limiter.key: reading.banned or reading.gate_until_us > 0
        for limiter, reading in limits([endpoint_of(endpoint)]).items()
    }


def test_a_429_of_one_symbol_holds_back_no_other(fleet, stock, inbox):
    """Kraken's way of saying so, in a good answer; the symbol itself waits as it is told."""
    stock.answers = [body({"error": ["EAPI:Rate limit exceeded"]}), body([])]
    run = fleet.run("stock.moves", ["a", "b"])
    assert inbox.deliver(STOCK)[1] == {"unit": 0, "outcome": "waiting"}
    assert inbox.deliver(STOCK)[1] == {"unit": 1, "outcome": "empty", "records": 0}
    row = fleet.unit(run)
    assert (row["attempts"], row["throttles"], row["rate_limited"]) == (0, 1, True)
    assert (row["not_before"] - datetime.now(UTC)).total_seconds() > 28
    assert not any(gates("stock.moves").values())


@pytest.mark.parametrize("whom", ["host", "account"])
def test_a_ban_stops_whom_it_speaks_of(fleet, stock, inbox, whom):
    """The address or the account, with all that share it; kept in SQL for a Redis that is lost."""
    stock.answers = [(403, {}, whom.encode()), body([])]
    run = fleet.run("stock.moves", ["a", "b"])
    assert inbox.deliver(STOCK)[1]["outcome"] == "waiting"
    assert inbox.deliver(STOCK)[1]["outcome"] == "waiting"
    assert len(stock.requests) == 1
    assert [row["rate_limited"] for row in fleet.units(run)] == [True, False]
    [ban] = fleet.installation.rows(bans)
    assert ban["name"].partition(":")[0] == {"host": "ip", "account": "account"}[whom]
    assert 110 < (ban["until_at"] - datetime.now(UTC)).total_seconds() < 125


def test_an_error_of_one_symbol_opens_no_circuit(fleet, stock, inbox):
    """Though it has the status of a server that fails; the symbol is counted for it."""
    fleet.configure({"stock": {"base_url": stock.url, "breaker": {"failures": 1}}})
    stock.answers = [(500, {}, b"of this symbol")]
    run = fleet.run("stock.moves", ["a"])
    assert inbox.deliver(STOCK)[0] == "RETRY"
    inbox.drain(STOCK)
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"], row["attempts"]) == ("failed", "symbol:server_error", 2)
    assert circuit_of(endpoint_of("stock.moves")).state == CircuitState.CLOSED
    assert row["reason"] in COUNTED


def test_an_error_of_the_endpoint_opens_its_circuit(fleet, stock, inbox):
    """Though it has the status of a symbol that is gone; no symbol is counted for it."""
    fleet.configure({"stock": {"base_url": stock.url, "breaker": {"failures": 1}}})
    stock.answers = [(410, {}, b"")]
    run = fleet.run("stock.moves", ["a"])
    inbox.drain(STOCK)
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"]) == ("failed", "endpoint:not_found")
    assert circuit_of(endpoint_of("stock.moves")).state == CircuitState.OPEN
    assert row["reason"] not in COUNTED
