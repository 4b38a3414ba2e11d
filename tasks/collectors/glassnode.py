"""Glassnode: daily on-chain metrics, one row for each metric, asset and day.

Documented (docs.glassnode.com/basic-api, pages on rate limits, endpoints and the API key, read 2026-11): 600
requests per minute and account, told by `x-rate-limit-*` headers whose reset is in seconds; the Light plan
has 50 calls a day: add `"50/1d"` to the limits in the settings. One answer holds the whole range. A value of
null is a gap and no zero. The newest points are revised.
"""

from typing import Any

from tasks.collectors import Api, ApiKey, Bars, Cursor, Limit, Unit, number, seconds
from tasks.data import glassnode_metrics

glassnode = Api(
    "glassnode",
    "https://api.glassnode.com",
    auth=ApiKey(secret="GLASSNODE_API_KEY", header="X-Api-Key"),
    limits=[
        Limit(
            "600/1m",
            per="account",
            remaining="x-rate-limit-remaining",
            reset="x-rate-limit-reset",
            reserve=0.3,
        )
    ],
)


def _known(body: Any) -> list[Any]:
    """All points but those that say of themselves that they have no value."""
    if not isinstance(body, list):
        raise TypeError(f"a list of points was expected, not {type(body).__name__}")
    return [point for point in body if not isinstance(point, dict) or point.get("v", "") is not None]


def _metric(path: str) -> Any:
    return glassnode.endpoint(
        path,
        symbols=["BTC", "ETH"],
        symbol_pattern=r"[A-Z0-9_.-]{1,20}",
        params={"a": "{symbol}", "i": "24h"},
        page=Bars("1d", start="s", end="u", size=1000, unit="s"),
        rows=_known,
        cursor=Cursor("at", lag="3d", chunk="700d"),
        table=glassnode_metrics,
        key=("metric", "asset", "at"),
        every="6h",
    )


def _row(metric: str, row: Any, unit: Unit) -> dict[str, Any]:
    return {"metric": metric, "asset": unit.symbol, "at": seconds(row["t"]), "value": number(row["v"])}


@_metric("/v1/metrics/market/price_usd_close")
def price(row: Any, unit: Unit) -> dict[str, Any]:
    """The closing price in US dollars."""
    return _row("market/price_usd_close", row, unit)


@_metric("/v1/metrics/addresses/active_count")
def active_addresses(row: Any, unit: Unit) -> dict[str, Any]:
    """The addresses that sent or received on that day."""
    return _row("addresses/active_count", row, unit)
