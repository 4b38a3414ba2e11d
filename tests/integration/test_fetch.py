"""Units whose endpoint has a function that fetches, through a session that the guard stands behind."""

import json
from datetime import UTC, datetime

import pytest
import requests

from resilience.errors import CircuitOpenError, ConfigurationError, PenstockError
from resilience.guard import CircuitState
from tasks import circuits
from tasks.collectors import Fetched
from tasks.collectors.registry import endpoint_of
from tasks.limits import circuit_of
from tasks.models import cursors, records

from .conftest import connect, on_both
from .fetching import steps

DATABASES = ("sqlite",)
SHOP = "collect.shop"


@pytest.fixture
def shop(fleet, scripted, monkeypatch):
    """The collector, its API answering as the test says."""
    fleet.configure(
        {"shop": {"base_url": scripted.url + "/v1"}},
        PENSTOCK_COLLECTORS="tests.integration.fetching:shop",
        SHOP_TOKEN="shop-secret-token",
    )
    connect(fleet.inbox.app)  # its queues follow from the collectors
    yield scripted
    steps.clear()


@pytest.fixture
def fetch(fleet, shop, inbox):
    """Run one unit by this function, and return it as SQL has it."""

    def collect(function, *, symbol="a"):
        steps["fetch"] = function
        run = fleet.run("shop.orders", [symbol])
        inbox.deliver(SHOP)
        return fleet.unit(run)

    return collect


def stored(fleet):
    return [row["data"]["id"] for row in fleet.installation.rows(records)]


@on_both
def test_pages_by_a_function(fleet, shop, inbox):
    """Each page is stored with the checkpoint that the function gave, and it is asked with it again."""
    seen = []

    def two_pages(unit, checkpoint, session):
        seen.append((unit.symbol, checkpoint))
        n = checkpoint.get("n", 1)
        rows = session.get("/orders", params={"n": n, "of": unit.symbol}).json()
        return Fetched(rows, next={"n": n + 1} if n < 2 else None)

    steps["fetch"] = two_pages
    shop.answers = [(200, {}, b'[{"id": 1, "price": 2}]'), (200, {}, b'[{"id": 2}, {"id": 3}]')]
    run = fleet.run("shop.orders", ["a"])
    assert inbox.deliver(SHOP) == ("SUCCESS", {"unit": 0, "outcome": "stored", "records": 3})
    assert seen == [("a", {}), ("a", {"n": 2})]
    assert [path for path, _ in shop.requests] == ["/v1/orders?n=1&of=a", "/v1/orders?n=2&of=a"]
    assert stored(fleet) == [1, 2, 3]
    row = fleet.unit(run)
    assert (row["calls"], row["outcome"], row["records"], row["checkpoint"]) == (2, "stored", 3, None)


def test_credentials_and_headers_are_added_and_not_shown(fetch, shop):
    """The server gets them; the function finds them nowhere."""
    found = []

    def look(unit, checkpoint, session):
        response = session.post("/orders", json={"page": 1}, headers={"X-Own": "1", "User-Agent": "own"})
        found.append((response, session))
        return Fetched(response.json())

    fetch(look)
    [(_, headers)] = shop.requests
    assert headers["Authorization"] == "Bearer shop-secret-token"
    assert (headers["X-Shop"], headers["X-Own"], headers["User-Agent"]) == ("yes", "1", "own")
    assert json.loads(shop.bodies[0]) == {"page": 1}
    [(response, session)] = found
    assert isinstance(response, requests.Response)
    assert isinstance(session, requests.Session)
    assert response.elapsed.total_seconds() > 0
    assert (response.ok, response.content, list(response.iter_content(1))) == (True, b"[]", [b"[", b"]"])
    assert "shop-secret-token" not in repr([vars(response), vars(response.request), response.request.headers])


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/orders", "https://elsewhere.example/", "http://u:p@127.0.0.1/"]
)
def test_another_host_is_an_error(fetch, shop, url):
    """Nothing is sent there, with or without a token."""
    row = fetch(lambda unit, checkpoint, session: Fetched(session.get(url).json()))
    assert (row["outcome"], row["reason"]) == ("failed", "configuration")
    assert "another host" in row["error"]["message"]
    assert shop.requests == []


def test_a_redirect_is_an_error(fetch, shop):
    """Not followed, wherever it leads."""
    shop.answers = [(302, {"Location": "https://elsewhere.example/"}, b""), (200, {}, b"[]")]
    row = fetch(lambda unit, checkpoint, session: Fetched(session.get("/orders").json()))
    assert (row["outcome"], row["reason"]) == ("failed", "api_error")
    assert len(shop.requests) == 1


def test_no_way_past_the_guard(fetch, shop):
    """Neither by another adapter nor by a session that was kept."""
    kept, told = [], []

    def try_it(unit, checkpoint, session):
        kept.append(session)
        with pytest.raises(ConfigurationError, match="past the guard"):
            session.mount("http://", requests.adapters.HTTPAdapter())
        told.append(session.get_adapter(session.base_url))
        return Fetched([])

    fetch(try_it)
    with pytest.raises(ConfigurationError, match="ends with its page"):
        kept[0].get("/orders")
    with pytest.raises(ConfigurationError, match="ends with its page"):
        told[0].send(requests.Request("GET", kept[0].base_url).prepare())
    assert shop.requests == []


def test_an_error_is_what_the_rules_say(fetch, shop):
    """A 503 is tried again; the answer never reaches the function."""
    shop.answers = [(503, {"Retry-After": "3"}, b"{}")]
    row = fetch(lambda unit, checkpoint, session: Fetched(session.get("/orders").json()["rows"]))
    assert (row["state"], row["attempts"], row["error"]["error"]) == ("sent", 1, "ServerError")


def test_a_limit_that_the_body_tells_of(fetch, shop):
    """In an answer of 200, by a rule; it spends no attempt and closes the gate."""
    shop.answers = [(200, {}, b"slow down")]
    row = fetch(lambda unit, checkpoint, session: Fetched(session.get("/orders").json()))
    assert (row["state"], row["attempts"], row["throttles"]) == ("waiting", 0, 1)


@pytest.mark.parametrize("way", ["wrapped", "unread"])
def test_what_a_client_makes_of_an_error(fetch, shop, way):
    """Clients wrap exceptions, or stumble over an answer that they read themselves: it counts as what it was."""
    shop.answers = [(429, {"Retry-After": "2"}, b"{}")]

    def wrap(unit, checkpoint, session):
        session.raises = way == "wrapped"
        try:
            return Fetched(session.get("/orders").json()["rows"])
        except PenstockError as error:
            raise requests.RequestException from error

    row = fetch(wrap)
    assert (row["state"], row["attempts"], row["throttles"]) == ("sent", 0, 1)


def test_an_answer_that_the_function_understands(fetch, shop, fleet):
    """With `raises` off it reads the status itself; the circuit hears what the rules say."""
    shop.answers = [(404, {}, b"{}")]

    def none_there(unit, checkpoint, session):
        session.raises = False
        return Fetched([] if session.get("/orders").status_code == 404 else [1])

    assert fetch(none_there)["outcome"] == "empty"


def test_a_refusal_cannot_be_swallowed(fetch, shop, fleet):
    """A client that catches everything does not make an empty page of an open circuit."""
    caught = []

    def swallow(unit, checkpoint, session):
        try:
            session.get("/orders")
        except Exception as error:
            caught.append(error)
        return Fetched([])

    steps["fetch"] = swallow
    run = fleet.run("shop.orders", ["a"])
    circuits.force(circuit_of(endpoint_of("shop.orders")), CircuitState.FORCED_OPEN, by="me", why="a test")
    fleet.inbox.deliver(SHOP)
    row = fleet.unit(run)
    assert isinstance(caught[0], CircuitOpenError)
    assert not isinstance(caught[0], requests.RequestException)
    assert (row["state"], row["parked_on"], row["calls"]) == ("waiting", "shop.orders", 0)


@pytest.mark.parametrize(
    ("returned", "reason", "said"),
    [
        (lambda: [1], "configuration", "fetch has to return Fetched"),
        (lambda: Fetched([{"price": 1}]), "bad_payload", "KeyError"),
        (lambda: Fetched([{"id": None}]), "bad_payload", "id is missing"),
        (lambda: Fetched([{"id": 1}], next={}), "bad_payload", "the checkpoint that was just read"),
        (lambda: Fetched([{"id": 1}], next={"n": "x" * 10_001}), "bad_payload", "longer than"),
        (lambda: Fetched([{"id": 1}], next={"n": object()}), "bad_payload", "TypeError"),
        (lambda: Fetched("rows"), "TypeError", "list of rows"),
        (lambda: Fetched([], next=3), "TypeError", "dict or None"),
    ],
)
def test_what_a_function_may_not_return(fetch, shop, fleet, returned, reason, said):
    """Nothing of it is stored."""

    def wrong(unit, checkpoint, session):
        session.get("/orders")
        return returned()

    row = fetch(wrong)
    if reason == "bad_payload":
        assert (row["state"], row["attempts"], row["error"]["error"]) == ("sent", 1, "BadPayloadError")
    else:
        assert (row["outcome"], row["reason"]) == ("failed", reason)
    assert said in row["error"]["message"]
    assert stored(fleet) == []


def test_broken_rows_open_the_circuit(fleet, shop, inbox):
    """As those of a declared call: the last call of the page is the server's failure."""
    fleet.configure(
        {"shop": {"base_url": shop.url, "breaker": {"failures": 2}, "retry": {"attempts": 1}}},
    )

    def broken(unit, checkpoint, session):
        session.get("/orders")
        return Fetched([{}])

    steps["fetch"] = broken
    fleet.run("shop.orders", ["a", "b"])
    inbox.drain(SHOP)
    assert circuit_of(endpoint_of("shop.orders")).current_state == "open"


def test_a_library_of_its_own(fetch, shop):
    """It is admitted, and settled by what leaves the block."""
    from resilience.errors import ServerError

    def own(unit, checkpoint, session):
        with session.calling():
            raise ServerError("it said so")

    row = fetch(own)
    assert (row["calls"], row["attempts"], row["error"]["message"]) == (1, 1, "it said so")


def test_a_page_that_takes_too_long(fetch, shop, monkeypatch):
    """A page of endless calls ends at the delivery's time limit, and costs an attempt."""
    from tasks import calls

    clock = iter(range(0, 100_000, 7))
    monkeypatch.setattr(calls.time, "monotonic", lambda: next(clock))

    def endless(unit, checkpoint, session):
        while True:
            session.calls._left_s()

    row = fetch(endless)
    assert (row["state"], row["attempts"], row["error"]["error"]) == ("sent", 1, "TimeLimit")


def test_windows_and_cursor(fleet, shop, inbox):
    """The function is told from when on; the cursor moves with the last page; a backfill is cut into windows."""
    windows = []

    def visits(unit, checkpoint, session):
        windows.append((unit.start, unit.end))
        return Fetched([{"id": 1, "at": "2026-01-05T10:00:00Z"}])

    steps["fetch"] = visits
    fleet.run("shop.visits", None)
    inbox.drain(SHOP)
    [cursor] = fleet.installation.rows(cursors)
    assert datetime.fromisoformat(cursor["value"]) == datetime(2026, 1, 5, 10, tzinfo=UTC)
    fleet.run("shop.visits", None)
    inbox.drain(SHOP)
    endpoint = endpoint_of("shop.visits")
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)
    assert [first.day for first, _ in endpoint.chunks(start, end)] == [1, 2]
    assert windows == [(None, None), (datetime(2026, 1, 5, 9, 59, tzinfo=UTC), None)]
