"""LunarCrush: what people say of coins, by the hour, and the list of all coins.

Documented (lunarcrush.com/developers/api, pages on coins, authentication and plans, read 2026-11): calls by
minute and by day differ by plan and are shown to the account only; declared is the smallest that was sold, 10
a minute and 2,000 a day. Larger plans say so in the settings, as in `limits = ["100/1m", "20000/1d"]`. Times
are in Unix seconds. Any figure may be missing for a coin that nobody speaks of, and the newest hours change.
"""

from typing import Any

from tasks.collectors import Api, Bars, Bearer, Cursor, Limit, Unit, number, seconds
from tasks.data import lunarcrush_coins, lunarcrush_hours

lunarcrush = Api(
    "lunarcrush",
    "https://lunarcrush.com/api4",
    auth=Bearer("LUNARCRUSH_API_KEY"),
    limits=[Limit("10/1m", per="account", reserve=0.3), Limit("2000/1d", per="account")],
)

_FIGURES = (
    "open", "high", "low", "close", "volume_24h", "market_cap", "interactions", "contributors_active",
    "posts_active", "sentiment", "social_dominance", "galaxy_score", "alt_rank",
)  # fmt: skip


def _figure(value: Any) -> Any:
    return None if value is None else number(value)


@lunarcrush.endpoint(
    "/public/coins/list/v1",
    rows="data",
    table=lunarcrush_coins,
    key="id",
    every="1h",
)
def coins(row: Any, unit: Unit) -> dict[str, Any]:
    """A coin as it stands now, and the original beside it."""
    del unit
    figures = ("price", "market_cap", "galaxy_score", "alt_rank")
    names = {name: row[name] for name in ("id", "symbol", "name")}
    return names | {name: _figure(row.get(name)) for name in figures} | {"data": row}


@lunarcrush.endpoint(
    "/public/coins/{symbol}/time-series/v2",
    symbols=["btc", "eth"],
    symbol_pattern=r"[a-z0-9-]{1,60}",
    params={"bucket": "hour"},
    page=Bars("1h", start="start", end="end", size=720, unit="s"),
    rows="data",
    cursor=Cursor("at", lag="6h", chunk="60d"),
    table=lunarcrush_hours,
    key=("coin", "at"),
    every="1h",
)
def hours(row: Any, unit: Unit) -> dict[str, Any]:
    """One hour of a coin."""
    return {"coin": unit.symbol, "at": seconds(row["time"])} | {
        name: _figure(row.get(name)) for name in _FIGURES
    }
