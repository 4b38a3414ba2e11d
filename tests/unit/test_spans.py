"""Rows of a range of time, where full answers may have been cut."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import ConfigurationError, TooMuchError
from tasks.collectors import Answer, Api, Cursor, Rule, Unit, Window, ms
from tasks.collectors.values import Headers, Reply

T0 = datetime(2026, 1, 1, tzinfo=UTC)
MS, MINUTE, DAY = timedelta(milliseconds=1), timedelta(minutes=1), timedelta(days=1)


def unit(start=T0, end=T0 + DAY, cursor=None) -> Unit:
    return Unit(1, 1, "shop", "trades", "A", start, end, cursor)


def window(limit=100, **options) -> Window:
    return Window(**({"start": "from", "end": "to", "limit": limit} | options))


def reply(count) -> Reply:
    return Reply(None, [0] * count, Headers({}), "https://shop.example/trades", None)


def after(page, asked, checkpoint, count):
    """Where to go on after an answer of so many rows, as an endpoint does."""
    return page.cut(asked, checkpoint, reply(count)) or page.following(asked, checkpoint, reply(count))


def test_all_of_the_window_at_first():
    """One call where it is enough."""
    page, asked = window(unit="iso", size_param="max"), unit()
    first = page.first(asked)
    sent = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "max": "100"}
    assert page.params(asked, first) == sent
    assert set(page.sends()) == sent.keys()
    assert after(page, asked, first, 99) is None


def test_a_full_answer_is_asked_for_by_half():
    """And what is left of the range after it, wider again where rows are few."""
    page, asked = window(unit="iso"), unit()
    half = after(page, asked, page.first(asked), 100)
    assert page.params(asked, half)["to"] == "2026-01-01T12:00:00Z"
    quarter = after(page, asked, half, 100)
    assert page.params(asked, quarter)["to"] == "2026-01-01T06:00:00Z"
    busy, quiet = after(page, asked, quarter, 60), after(page, asked, quarter, 10)
    assert list(page.params(asked, busy).values()) == ["2026-01-01T06:00:00Z", "2026-01-01T12:00:00Z"]
    assert list(page.params(asked, quiet).values()) == ["2026-01-01T06:00:00Z", "2026-01-01T18:00:00Z"]


def test_what_no_answer_holds_is_an_error():
    """It says so, and loses nothing."""
    page, asked = window(limit=2), unit(end=T0 + MS)
    with pytest.raises(TooMuchError, match=r"shop\.trades gave 2 rows for .*cannot be had by time"):
        page.cut(asked, page.first(asked), reply(2))


def test_times_are_rounded_outwards():
    """An API that knows whole seconds is asked for all of them."""
    page = window(unit="s")
    asked = unit(T0 + timedelta(seconds=1.5), T0 + timedelta(seconds=8.25))
    assert page.params(asked, page.first(asked)) == {"from": "1767225601", "to": "1767225609"}


@given(
    times=st.lists(st.integers(0, 4000), max_size=200),
    start=st.integers(0, 4000),
    length=st.integers(1, 4000),
    limit=st.integers(1, 20),
    newest_first=st.booleans(),
    inclusive=st.booleans(),
)
def test_every_row_is_read_or_an_error_says_so(times, start, length, limit, newest_first, inclusive):
    """Whatever end an API keeps when it cuts an answer, and whether it counts the range's end in."""
    endpoint = trades(limit=limit)
    asked = unit(T0 + start * MS, T0 + (start + length) * MS)
    rows = [{"id": n, "at": int((T0 + t * MS).timestamp() * 1000)} for n, t in enumerate(times)]
    rows.sort(key=lambda row: row["at"], reverse=newest_first)
    found, checkpoint, calls = {}, endpoint.first(asked), 0
    while checkpoint is not None:
        sent = endpoint.request(asked, checkpoint).params
        first, last = int(sent["from"]), int(sent["to"])
        served = [row for row in rows if first <= row["at"] < last + inclusive][:limit]
        try:
            page = endpoint.read(asked, checkpoint, answer(served))
        except TooMuchError:
            assert last - first == 1
            assert len(served) == limit
            return
        found |= {row["data"]["id"]: row for row in page.rows}
        checkpoint, calls = page.next, calls + 1
        assert calls <= 2 * length + 50
    assert sorted(found) == [n for n, t in enumerate(times) if start <= t < start + length]


def answer(rows, status=200) -> Answer:
    return Answer(status, {}, json.dumps(rows).encode(), 0.1)


def trades(limit=100, **options):
    api = Api("shop", "https://shop.example", rules=[Rule("too_much", status=413)])

    @api.endpoint(
        "/trades",
        key="id",
        **({"page": window(limit=limit), "cursor": Cursor("at", lag="1m", chunk="1d")} | options),
    )
    def trades(row, unit):
        return {"id": row["id"], "at": ms(row["at"])}

    return api.endpoints["trades"]


def test_a_server_may_say_that_it_is_too_much():
    """Then it is asked for less, too."""
    endpoint, asked = trades(), unit()
    page = endpoint.read(asked, endpoint.first(asked), answer({}, 413))
    assert page.rows == []
    assert int(endpoint.request(asked, page.next).params["to"]) == int((T0 + DAY / 2).timestamp() * 1000)
    asked = unit(end=T0 + MS)
    with pytest.raises(TooMuchError, match="413"):
        endpoint.read(asked, endpoint.first(asked), answer({}, 413))


def test_the_window_of_a_run():
    """From the cursor less its lag, or one chunk back, until now; never empty."""
    endpoint, now = trades(), T0 + DAY
    assert endpoint.window("", None, now) == (T0, now)
    assert endpoint.window("", "2026-01-01T01:00:00.000000Z", now) == (T0 + 59 * MINUTE, now)
    assert endpoint.window("", "2027-01-01T01:00:00.000000Z", now) == (now - timedelta(seconds=1), now)
    assert trades(cursor=Cursor("at")).window("", None, now) == (T0, now)
    assert endpoint.takes_range
    assert list(endpoint.chunks(T0, T0 + 1.5 * DAY)) == [(T0, T0 + DAY), (T0 + DAY, T0 + 1.5 * DAY)]
    assert endpoint.finished(unit(), None) is None


def test_a_cursor_beyond_the_horizon_is_told(caplog):
    """What can no longer be had is a gap, and nobody finds it by chance."""
    endpoint = trades(cursor=Cursor("at", horizon="2d"))
    assert endpoint.window("", "2025-12-25T00:00:00.000000Z", T0) == (T0 - 2 * DAY, T0)
    assert "shop.trades" in caplog.text
    assert "2025-12-25T00:00:00Z and 2025-12-30T00:00:00Z can no longer be had" in caplog.text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: window(start=""), "Window needs `start` and `end`"),
        (lambda: window(end=""), "Window needs `start` and `end`"),
        (lambda: window(limit=0), "Window.limit is 0"),
        (lambda: window(unit="us"), "Window.unit is 'us'; it is one of ms, s, iso, offset, naive, http"),
        (lambda: trades(cursor=None), r"shop\.trades: cursor is missing; Window needs the field"),
        (lambda: trades().page.first(unit(end=None)), r"shop\.trades reads by time and needs a window"),
    ],
)
def test_mistakes(make, said):
    """In one sentence."""
    with pytest.raises(ConfigurationError, match=said):
        make()
