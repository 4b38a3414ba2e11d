"""Moralis: transfers and prices of ERC-20 tokens. Symbols are `chain:address`, such as `eth:0xdac17f95…`.

Documented (docs.moralis.com/data-api, pages on rate limits, pricing and the Token API, read 2026-11): 40
requests per second and account on the small plans, 80 and 200 on larger ones, counted over four seconds that
roll: here 160 in four. What a plan allows in a month is counted in compute units, which differ by call: to
stay within it, add a budget of calls, such as `"20000/month"`, to the limits in the settings. 429 names no
wait; who goes on is kept out by the firewall (1020). Pages of 100, and `cursor` is null on the last. Numbers
may be texts: amounts are kept as texts, for they can have 78 digits.
"""

from collections.abc import Callable
from typing import Any

from tasks.collectors import Api, ApiKey, Cursor, Limit, Rule, Token, Unit, iso, number, whole
from tasks.data import moralis_prices, moralis_transfers

moralis = Api(
    "moralis",
    "https://deep-index.moralis.io/api/v2.2",
    auth=ApiKey(secret="MORALIS_API_KEY", header="X-API-Key"),
    limits=[Limit("160/4s", per="account", reserve=0.3)],
    rules=[
        Rule("banned", status=(403, 429), body=r"\b1020\b", retry_after="15m"),
        Rule("restart", status=400, body="(?i)cursor"),
    ],
)

TOKEN = r"(?P<chain>[a-z0-9-]{2,20}):(?P<address>0x[0-9a-f]{40})"  # noqa: S105 - a pattern
_FLAGS = {"true": True, "false": False, True: True, False: False}


def _if_there(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


@moralis.endpoint(
    "/erc20/{address}/transfers",
    symbols=[],
    symbol_pattern=TOKEN,
    params={"chain": "{chain}", "order": "ASC"},
    page=Token(param="cursor", at="cursor", size_param="limit", size=100),
    rows="result",
    cursor=Cursor("at", lag="10m", chunk="7d", param="from_date", until="to_date"),
    table=moralis_transfers,
    key=("chain", "transaction_hash", "log_index"),
    every="5m",
)
def transfers(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn a transfer as Moralis gives it into ours; `value` is in the token's smallest part."""
    return {
        "chain": unit.symbol.partition(":")[0],
        "transaction_hash": row["transaction_hash"],
        "log_index": whole(row["log_index"]),
        "token": row["address"].lower(),
        "at": iso(row["block_timestamp"]),
        "block": whole(row["block_number"]),
        "sender": row["from_address"],
        "receiver": row["to_address"],
        "value": str(whole(row["value"])),
        "decimals": _if_there(whole, row.get("token_decimals")),
        "possible_spam": _FLAGS[row["possible_spam"]],
    }


@moralis.endpoint(
    "/erc20/{address}/price",
    symbols=[],
    symbol_pattern=TOKEN,
    params={"chain": "{chain}"},
    rows=lambda body: [body],
    table=moralis_prices,
    key=("chain", "token", "block"),
    every="5m",
)
def prices(row: Any, unit: Unit) -> dict[str, Any]:
    """The price of a token at the newest block, one row for each block that was seen."""
    return {
        "chain": unit.symbol.partition(":")[0],
        "token": row["tokenAddress"].lower(),
        "block": whole(row["toBlock"]),
        "usd": number(row["usdPrice"]),
        "native": _if_there(lambda price: str(whole(price["value"])), row.get("nativePrice")),
        "exchange": row.get("exchangeName"),
        "liquidity_usd": _if_there(number, row.get("pairTotalLiquidityUsd")),
    }
