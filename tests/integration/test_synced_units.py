"""Units that fetch the items of a list one by one, go on from a token, and ask only for what has changed."""

import json
import logging
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest

from resilience.errors import ConfigurationError
from tasks import backfill, delivery, store
from tasks.collectors.registry import endpoint_of
from tasks.delivery import Delivery
from tasks.models import cursors, records, validators
from tasks.models import units as units_table
from tasks.settings import get_settings
from tasks.store import ClaimLost

from .conftest import connect, on_both

DATABASES = ("sqlite",)
STOCK = "collect.stock"


class Mailbox:
    """A server with messages, of which some are gone; the test may say what comes in place of an answer."""

    def __init__(self, count, gone=()):
        self.count, self.gone, self.oldest = count, set(gone), 0
        self.instead = {}

    def __call__(self, path):
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path in self.instead:
            return self.instead.pop(parts.path)
        if parts.path == "/profile":
            return body({"token": self.count})
        if parts.path.startswith("/messages/"):
            n = int(parts.path.removeprefix("/messages/"))
            return (404, {}, b"{}") if n in self.gone else body({"id": n, "text": f"text {n}"})
        start, size = int(query.get("page", 0)), int(query["size"])
        numbers = list(range(self.count))
        if parts.path == "/history":
            if int(query["since"]) < self.oldest:
                return 404, {}, b"{}"
            numbers = numbers[int(query["since"]) :]
        more = {"next": str(start + size)} if numbers[start + size :] else {}
        name = "added" if parts.path == "/history" else "messages"
        return body({name: [{"id": n} for n in numbers[start : start + size]], "token": self.count} | more)

    def expected(self):
        return [n for n in range(self.count) if n not in self.gone]


def body(value):
    return 200, {}, json.dumps(value).encode()


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


@pytest.fixture
def mailbox(stock):
    """A mailbox of 130 messages behind the collector: three pages."""
    box = Mailbox(130, gone=range(0, 130, 13))
    stock.answers = [box]
    return box


def ids(fleet):
    return sorted(row["data"]["id"] for row in fleet.installation.rows(records))


def cursor(fleet):
    return [row["value"] for row in fleet.installation.rows(cursors)]


def paths(server):
    return [urlsplit(path).path for path, _ in server.requests]


@on_both
def test_a_list_and_its_items(fleet, stock, mailbox, inbox, monkeypatch):
    """Each item once, in a few transactions; those that were gone are counted, the token is kept at the end."""
    written, write = [], store.Claim.write
    monkeypatch.setattr(
        store.Claim, "write", lambda *args, **values: written.append(1) or write(*args, **values)
    )
    run = fleet.run("stock.messages", None)
    inbox.drain(STOCK, "ctl")
    row = fleet.unit(run)
    assert ids(fleet) == mailbox.expected()
    assert (row["outcome"], row["records"], row["vanished"], row["bad_rows"]) == ("stored", 120, 10, 0)
    assert (row["calls"], row["weight"]) == (1 + 3 + 130, 4 * 5 + 130 * 2)
    assert cursor(fleet) == ["130"]
    assert len(set(paths(stock))) == 132
    assert len(written) <= 1 + 3 + 3 + 130 / 20 + 60 / delivery.HELD_S
    result = fleet.result(run)
    assert (result["records"], result["vanished"], result["outcome"]) == (120, 10, "ok")


@on_both
def test_a_retry_goes_on_at_the_item_that_failed(fleet, stock, mailbox, inbox):
    """The twelve before it are stored, and asked for once."""
    mailbox.instead["/messages/12"] = 503, {}, b""
    run = fleet.run("stock.messages", None)
    assert inbox.deliver(STOCK)[0] == "RETRY"
    row = fleet.unit(run)
    assert ids(fleet) == list(range(1, 12))
    assert (row["records"], row["vanished"], row["attempts"], row["retries"]) == (11, 1, 1, 1)
    assert row["checkpoint"]["page"]["ids"][0] == "12"
    assert cursor(fleet) == []
    inbox.drain(STOCK)
    assert ids(fleet) == mailbox.expected()
    found = paths(stock)
    assert [found.count(f"/messages/{n}") for n in (0, 11, 12, 13)] == [1, 1, 2, 1]
    assert (fleet.unit(run)["records"], fleet.unit(run)["vanished"]) == (120, 10)


@on_both
def test_a_worker_that_dies_between_items_loses_and_doubles_nothing(fleet, stock, mailbox, inbox):
    """What it held and had not stored is fetched again; it can no longer store it itself."""
    run = fleet.run("stock.messages", None)
    settings = get_settings()
    claim = store.claim(run, 0, worker="dead", gone_after_s=15, deliveries_max=3)
    dead = Delivery(claim, endpoint_of("stock.messages"), settings, stopping=lambda: False)
    for _ in range(9):  # the token, a list, seven items
        dead.store(dead.read())
    assert ids(fleet) == []
    fleet.installation.change(units_table, state="sent")
    inbox.drain(STOCK)
    assert ids(fleet) == mailbox.expected()
    row = fleet.unit(run)
    assert (row["records"], row["vanished"]) == (120, 10)
    assert paths(stock).count("/messages/3") == 2
    with pytest.raises(ClaimLost):
        dead.flush()


def test_a_slice_that_ends_keeps_what_it_held(fleet, stock, mailbox, inbox, monkeypatch):
    """No item is fetched twice, however short the slices are."""
    left = iter(range(1000))
    monkeypatch.setattr(Delivery, "_slice_is_over", lambda self: next(left) % 7 == 6)
    run = fleet.run("stock.messages", None)
    inbox.drain(STOCK)
    assert ids(fleet) == mailbox.expected()
    row = fleet.unit(run)
    assert (row["calls"], row["vanished"], row["attempts"]) == (134, 10, 0)
    asked = [path for path, _ in stock.requests]
    assert len(asked) == len(set(asked))


@on_both
def test_changes_and_a_history_that_is_forgotten(fleet, stock, mailbox, inbox, caplog):
    """The next run reads what is new. The token is replaced: as a text, the new one is less than the old."""
    mailbox.count, mailbox.gone = 9, {4}
    for count, calls in ((9, 1 + 1 + 9), (12, 1 + 3), (12, 1)):
        mailbox.count = count
        stock.requests.clear()
        run = fleet.run("stock.messages", None)
        inbox.drain(STOCK)
        assert len(stock.requests) == calls
        assert cursor(fleet) == [str(count)]
        assert ids(fleet) == mailbox.expected()
    assert fleet.unit(run)["outcome"] == "empty"
    mailbox.count, mailbox.oldest = 14, 13
    stock.requests.clear()
    with caplog.at_level(logging.WARNING):
        run = fleet.run("stock.messages", None)
        inbox.drain(STOCK)
    assert paths(stock)[:3] == ["/history", "/profile", "/messages"]
    assert (ids(fleet), cursor(fleet)) == (mailbox.expected(), ["14"])
    assert "no longer knows its sync token" in caplog.text
    row = fleet.unit(run)
    assert (row["outcome"], row["attempts"], row["calls"]) == ("stored", 0, 3 + 14)


def test_a_unit_that_fails_keeps_the_old_token(fleet, stock, inbox):
    """The rows that came are stored; the next run begins where this one did."""
    stock.answers = [body({"items": [1], "token": "zzz"})]
    fleet.run("stock.events", None)
    inbox.drain(STOCK)
    assert cursor(fleet) == ["zzz"]
    stock.answers = [body({"items": [2]})]
    run = fleet.run("stock.events", None)
    inbox.drain(STOCK)
    assert (fleet.unit(run)["reason"], cursor(fleet), ids(fleet)) == ("bad_payload", ["zzz"], [1])
    stock.answers = [body({"items": [3], "token": "aaa"})]
    fleet.run("stock.events", None)
    inbox.drain(STOCK)
    assert cursor(fleet) == ["aaa"]
    assert "token=zzz" in stock.requests[-1][0]


def test_changes_cannot_be_backfilled(fleet, stock):
    """There is no range of time to ask for."""
    with pytest.raises(ConfigurationError, match=r"stock\.messages cannot be backfilled"):
        backfill.order(
            endpoint_of("stock.messages"),
            datetime(2026, 1, 1, tzinfo=UTC),
            datetime(2026, 1, 2, tzinfo=UTC),
            None,
        )


@on_both
def test_what_has_not_changed(fleet, stock, inbox):
    """A 304 is a success without rows that says so; what is known is kept for each symbol, with the rows."""
    said = {}

    def serve(path):
        symbol = path.rpartition("/")[2]
        tag = said.get(symbol, '"1"')
        asked = stock.requests[-1][1].get("If-None-Match")
        return (304, {"ETag": tag}, b"") if asked == tag else (200, {"ETag": tag}, b"[1, 2]")

    stock.answers = [serve]
    outcomes = []
    for _ in range(2):
        run = fleet.run("stock.files", ["a", "b"])
        inbox.drain(STOCK)
        outcomes += [(row["outcome"], row["reason"], row["records"]) for row in fleet.units(run)]
        said["b"] = '"2"'
    assert outcomes == [("stored", None, 2)] * 2 + [("empty", "not_modified", 0), ("stored", None, 2)]
    assert [row["etag"] for row in fleet.installation.rows(validators)] == ['"1"', '"2"']
    assert ids(fleet) == ["a1", "a2", "b1", "b2"]
    assert cursor(fleet) == []


def test_what_is_known_is_kept_with_the_rows_only(fleet, stock, inbox, monkeypatch):
    """A read that could not be stored is no complete read: the next one asks for everything."""
    stock.answers = [(200, {"ETag": '"1"'}, b"[1]")]
    run = fleet.run("stock.files", ["a"])

    def fail(*args):
        raise RuntimeError("the database is full")

    with monkeypatch.context() as patched:
        patched.setattr(delivery, "upsert", fail)
        inbox.drain(STOCK)
    assert fleet.unit(run)["outcome"] == "failed"
    assert fleet.installation.rows(validators) == []
    fleet.run("stock.files", ["a"])
    inbox.drain(STOCK)
    assert "If-None-Match" not in stock.requests[-1][1]
    assert ids(fleet) == ["a1"]
