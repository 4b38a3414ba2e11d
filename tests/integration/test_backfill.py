"""A backfill: a range becomes windows, windows become units, and what is stored is exact."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import ConfigurationError
from tasks.backfill import UNITS_MAX, order
from tasks.collectors.registry import endpoint_of
from tasks.data import ohlcv
from tasks.models import cursors, runs
from tasks.runs import plan, request
from tests.upstream import data

from .conftest import on_both

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)
BACKFILL = "collect.binance.backfill"
DATABASES = ("sqlite",)


@pytest.fixture
def klines(fleet):
    """The endpoint as the installation has it."""
    return endpoint_of("binance.klines")


@on_both
def test_every_bar_of_the_range_is_stored_once(fleet, klines, inbox):
    """Nine days of two symbols, unaligned ends: windows of seven days, pages of a thousand bars."""
    start, end = START + timedelta(seconds=30), START + 9 * DAY + timedelta(minutes=3, seconds=59)
    run = request(order(klines, start, end, ["BTCUSDT", "ETHUSDT"], now=NOW))
    plan(run=run)
    assert len(fleet.units(run)) == 4
    inbox.drain(BACKFILL, "ctl")
    result = fleet.result(run)
    expected = {
        (symbol, row[0])
        for symbol in ("BTCUSDT", "ETHUSDT")
        for row in data.klines(
            symbol,
            int((START + timedelta(minutes=1)).timestamp()) * 1000,
            int(end.timestamp()) // 60 * 60_000,
            60_000,
        )
    }
    found = [
        (row["symbol"], int(row["open_time"].timestamp() * 1000)) for row in fleet.installation.rows(ohlcv)
    ]
    assert len(found) == len(expected) == 2 * (9 * 1440 + 2)
    assert set(found) == expected
    assert (result["outcome"], result["records"], result["total_items"]) == ("ok", len(expected), 4)
    assert fleet.installation.rows(cursors) == []


def test_the_run_of_a_backfill(fleet, klines, inbox):
    """It parks, leaves live work first, and has a day."""
    made = order(klines, START, START + DAY, None, now=NOW)
    assert made.symbols == ("BTCUSDT", "ETHUSDT")
    row = fleet.the_run(request(made))
    assert (row["kind"], row["lane"], row["on_open"], row["priority"]) == ("backfill", "backfill", "park", 0)
    assert (row["start_at"], row["end_at"]) == (START, START + DAY)
    assert (row["deadline_at"] - row["requested_at"]).total_seconds() == pytest.approx(86_400, abs=0.1)


def test_running_it_again_changes_nothing(fleet, klines, inbox):
    """Overlaps are harmless."""
    stored = []
    for _ in range(2):
        run = request(order(klines, START, START + timedelta(hours=2), ["BTCUSDT"], now=NOW))
        plan(run=run)
        inbox.drain(BACKFILL, "ctl")
        assert fleet.result(run)["records"] == 120
        stored.append(fleet.installation.rows(ohlcv))
    assert len(stored[0]) == 120
    assert stored[0] == stored[1]


def test_tasks_have_no_windows(fleet, inbox):
    """Asana is asked for everything that was modified since the start: one unit a project."""
    made = order(endpoint_of("asana.tasks"), START, NOW, [data.PROJECTS[0]], now=NOW)
    run = request(made)
    plan(run=run)
    [unit] = fleet.units(run)
    assert (unit["start_at"], unit["end_at"]) == (START, NOW)


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (START, START, "--end 2026-01-01 00:00 is not after --start 2026-01-01 00:00"),
        (START + DAY, START, "the range is empty"),
        (START, NOW + timedelta(minutes=1), "the range ends in the future"),
        (NOW + DAY, NOW + 2 * DAY, "the range ends in the future"),
        (START, START + timedelta(seconds=50), "no bar of 1m lies completely in the range"),
    ],
)
def test_a_range_that_is_wrong(fleet, klines, start, end, said):
    """One sentence, and nothing is written."""
    with pytest.raises(ConfigurationError, match=said):
        order(klines, start, end, None, now=NOW)
    assert fleet.installation.rows(runs) == []


@pytest.mark.parametrize("symbol", ["btc usdt", "", "BTC/USDT"])
def test_a_symbol_that_is_wrong(fleet, klines, symbol):
    """Is refused before anything is written."""
    with pytest.raises(ConfigurationError, match="is no symbol"):
        order(klines, START, NOW, [symbol], now=NOW)


def test_an_endpoint_without_times(fleet):
    """There is nothing to cut."""
    from tasks.collectors import Api

    shop = Api("shop", "https://shop.example")

    @shop.endpoint("/orders", key="id")
    def orders(row, unit):
        return row

    with pytest.raises(ConfigurationError, match=r"shop\.orders cannot be backfilled"):
        order(shop.endpoints["orders"], START, NOW, None, now=NOW)


def test_too_many_units(fleet, klines):
    """More than a million are a mistake in the range; planning them would take the machine down."""
    names = [f"C{n}" for n in range(UNITS_MAX // 4)]
    with pytest.raises(ConfigurationError, match="1,250,000 units"):
        order(klines, START, NOW, names, now=NOW)


@given(
    start=st.datetimes(datetime(2021, 1, 1), datetime(2025, 12, 1), timezones=st.just(UTC)),
    length=st.timedeltas(timedelta(minutes=2), 40 * DAY),
)
def test_windows_cover_the_range(start, length):
    """Without a gap, without an overlap, no longer than a chunk, whole bars only."""
    from tasks.collectors.binance import binance

    windows = list(binance.endpoints["klines"].chunks(start, start + length))
    firsts, lasts = [first for first, _ in windows], [last for _, last in windows]
    assert firsts[1:] == lasts[:-1]
    assert timedelta(0) <= firsts[0] - start < timedelta(minutes=1)
    assert timedelta(0) <= start + length - lasts[-1] < timedelta(minutes=1)
    for first, last in windows:
        assert timedelta(0) < last - first <= 7 * DAY
        assert first.second == first.microsecond == last.second == last.microsecond == 0
