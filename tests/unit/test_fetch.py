"""What is said at import about a function that fetches."""

from datetime import UTC, datetime

import pytest

from resilience.errors import BadPayloadError, ConfigurationError
from tasks.collectors import Api, Bars, Cursor, Fetched, Number, Unit, iso

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
