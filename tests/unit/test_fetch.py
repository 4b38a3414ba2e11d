"""What is said at import about a function that fetches."""

from datetime import UTC, datetime

import pytest

from resilience.errors import BadPayloadError, ConfigurationError
from tasks.collectors import Api, Bars, Bearer, Cursor, Fetched, Limit, Number, Tier, Unit, iso

shop = Api("shop", "https://shop.example")


def fetch(unit, checkpoint, session):
    return Fetched([])


def row(row, unit):
    return {"id": row["id"], "at": iso(row["at"])}


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("/orders", {"fetch": fetch}, "shop.row: path is of no use beside fetch"),
        ("", {"fetch": fetch, "params": {"a": "b"}}, "shop.row: params is of no use"),
        ("", {"fetch": fetch, "rows": "data"}, "shop.row: rows is of no use"),
        ("", {"fetch": fetch, "page": Number(param="page", size=10)}, "shop.row: page is of no use"),
        ("", {"fetch": lambda unit: None}, "shop.row: fetch has to be a function that takes"),
        ("", {"fetch": "fetch"}, "shop.row: fetch has to be a function that takes"),
        ("", {}, "the path of an endpoint is missing"),
    ],
)
def test_mistakes(path, options, said):
    """Each names endpoint and field."""
    with pytest.raises(ConfigurationError, match=said):
        Api("shop", "https://shop.example").endpoint(path, key="id", **options)(row)


def test_bars_say_which_windows(monkeypatch):
    """A run without a range asks for one page of complete bars; a function may have any paging of its own."""
    api = Api("shop", "https://shop.example")
    bars = Bars("1m", start="from", end="to", size=10)
    api.endpoint(fetch=fetch, key="id", symbols=["a"], page=bars, cursor=Cursor("at"))(row)
    now = datetime(2026, 1, 1, 0, 30, 30, tzinfo=UTC)
    start, end = api.endpoints["row"].window("a", None, now)
    assert (start.minute, end.minute) == (20, 30)
    unit = Unit(run=1, n=0, collector="shop", endpoint="row", symbol="a", start=start, end=end, cursor=None)
    assert api.endpoints["row"].first(unit) == {}
    rows = [{"id": n, "at": f"2026-01-01T00:{n}:00Z"} for n in (19, 20, 29, 30)]
    page = api.endpoints["row"].take(unit, {}, Fetched(rows), None)
    assert [each["data"]["id"] for each in page.rows] == [20, 29]
    with pytest.raises(BadPayloadError, match=r"shop\.row: ValueError"):
        api.endpoints["row"].take(unit, {}, Fetched([{"id": 1, "at": "noon"}]), None)


REST, SDK = Tier("rest"), Tier("sdk", fetch)


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("/orders", {"tiers": [REST]}, "tiers are at least two"),
        ("/orders", {"tiers": [SDK, Tier("sdk")]}, "tiers are at least two, each with a name of its own"),
        ("/orders", {"tiers": [REST, Tier("soap")]}, "one tier at most is without a function"),
        ("", {"tiers": [SDK, REST]}, "a tier without a function is the declared call, which needs a path"),
        ("/orders", {"tiers": [SDK, Tier("mcp", fetch)]}, "path is of no use beside fetch"),
        ("/orders", {"tiers": [SDK, REST], "fetch": fetch}, "fetch is of no use beside tiers"),
        ("/orders", {"tiers": "rest"}, r"tiers has to be a list like \[Tier"),
        ("/orders", {"tiers": [Tier("sdk", row), REST]}, "has to be a function that takes"),
    ],
)
def test_mistakes_of_tiers(path, options, said):
    """Each names the endpoint and what is allowed."""
    with pytest.raises(ConfigurationError, match=said):
        Api("shop", "https://shop.example").endpoint(path, key="id", **options)(row)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Tier("MCP", fetch), "a tier is called 'MCP'"),
        (lambda: Tier("mcp", fetch, base_url="https://mcp.example"), "base_url is the name of a secret"),
        (lambda: Tier("mcp", base_url="MCP_URL"), "the declared call goes to the host of the Api"),
        (lambda: Tier("mcp", fetch, auth=Bearer("KEY")), "auth and limits are for a host of its own"),
        (lambda: Tier("mcp", fetch, limits=[Limit("1/1s")]), "auth and limits are for a host of its own"),
        (lambda: Tier("mcp", fetch, base_url="MCP_URL", limits=["1/1s"]), "limits is"),
    ],
)
def test_mistakes_of_a_tier(make, said):
    """The secret itself in place of its name, and what would have no effect."""
    with pytest.raises(ConfigurationError, match=said):
        make()
