"""Moralis: transfers and prices of ERC-20 tokens, with numbers as texts, now and then as numbers."""

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from tests.upstream.apis.base import Answer, Api, RejectedError, Request, encode
from tests.upstream.data import LISTED_AT_S, mix, seed

CHAINS = ("eth", "polygon", "bsc")
DAY_S = 86_400
PAGE = 100


def _hex(own: int, number: int, digits: int) -> str:
    parts = "".join(f"{mix(own ^ place, number):016x}" for place in range(-(-digits // 16)))
    return f"0x{parts[:digits]}"


@lru_cache(maxsize=64)
def _day(chain: str, address: str, day_s: int) -> tuple[dict[str, Any], ...]:
    """The transfers of a day, in the order of their time; none on some days."""
    own = seed(f"{chain}:{address}")
    found = []
    for n in range(mix(own, day_s) % 3):
        bits = mix(own + 1 + n, day_s)
        at_s = day_s + n * 30_000 + bits % 30_000
        block = (at_s - LISTED_AT_S) // 12 + 9_000_000
        amount = 2**256 - 1 if bits % 23 == 0 else (bits >> 8) * 10**3 + bits % 1000
        found.append(
            {
                "token_name": "Sluice",
                "token_symbol": "SLC",
                "token_logo": None,
                "token_decimals": "18" if own % 5 else None,
                "transaction_hash": _hex(own + 10 + n, day_s, 64),
                "address": address,
                "block_timestamp": datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", ".000Z"),
                "block_number": block if bits % 7 == 0 else str(block),
                "block_hash": _hex(own + 20 + n, day_s, 64),
                "to_address": _hex(own + 30 + n, day_s, 40),
                "from_address": _hex(own + 40 + n, day_s, 40),
                "value": str(amount),
                "transaction_index": bits % 300,
                "log_index": bits % 500,
                "possible_spam": "true" if bits % 11 == 0 else False,
                "verified_contract": "false",
            }
        )
    return tuple(found)


def transfers(chain: str, address: str, since_s: float, until_s: float) -> list[dict[str, Any]]:
    """As Moralis lists them, oldest first, from one moment to another, both included."""
    first = max(LISTED_AT_S, int(since_s) // DAY_S * DAY_S)
    return [
        each
        for day_s in range(first, int(until_s) + 1, DAY_S)
        for each in _day(chain, address, day_s)
        if since_s <= datetime.fromisoformat(each["block_timestamp"]).timestamp() <= until_s
    ]


def price(chain: str, address: str, now: float) -> dict[str, Any]:
    """The price at the newest block."""
    own, block = seed(f"{chain}:{address}"), (int(now) - LISTED_AT_S) // 12 + 9_000_000
    bits = mix(own, block)
    usd = (1 + bits % 10**9) / 10**6
    return {
        "tokenName": "Sluice",
        "tokenSymbol": "SLC",
        "tokenDecimals": "18",
        "nativePrice": {
            "value": str(bits >> 4),
            "decimals": 18,
            "name": "Ether",
            "symbol": "ETH",
            "address": None,
        },
        "usdPrice": usd,
        "usdPriceFormatted": str(usd),
        "exchangeName": "Uniswap v3",
        "exchangeAddress": _hex(own, 1, 40),
        "tokenAddress": address,
        "toBlock": str(block),
        "possibleSpam": "false",
        "verifiedContract": True,
        "pairTotalLiquidityUsd": f"{bits % 10**8 / 100}",
    }


def expected(symbol: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """What has to be stored of the transfers from a moment up to another."""
    chain, _, address = symbol.partition(":")
    return [
        {
            "chain": chain,
            "transaction_hash": each["transaction_hash"],
            "log_index": each["log_index"],
            "token": address,
            "at": datetime.fromisoformat(each["block_timestamp"]),
            "block": int(each["block_number"]),
            "sender": each["from_address"],
            "receiver": each["to_address"],
            "value": each["value"],
            "decimals": each["token_decimals"] and int(each["token_decimals"]),
            "possible_spam": each["possible_spam"] == "true",
        }
        for each in transfers(chain, address, start.timestamp(), end.timestamp() - 1)
    ]


def expected_price(symbol: str, now: float) -> dict[str, Any]:
    """What has to be stored of the price at a moment."""
    chain, _, address = symbol.partition(":")
    found = price(chain, address, now)
    return {
        "chain": chain,
        "token": address,
        "block": int(found["toBlock"]),
        "usd": Decimal(str(found["usdPrice"])),
        "native": found["nativePrice"]["value"],
        "exchange": found["exchangeName"],
        "liquidity_usd": Decimal(found["pairTotalLiquidityUsd"]),
    }


class Moralis(Api):
    """40 a second for each key, over four seconds that roll; a 429 names no wait."""

    name, prefix = "moralis", "api/v2.2/"
    documented = {"amount": 160, "window_s": 4}

    def key(self, request: Request) -> str:
        key = request.headers.get("x-api-key", "")
        if not key or key.startswith("BAD"):
            raise RejectedError(401, {"message": "Token is invalid format"})
        return key

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(429, self.trouble(429))

    def trouble(self, status: int) -> bytes:
        return encode({"message": "Rate limit exceeded." if status == 429 else "Internal server error"})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        found = re.fullmatch("erc20/(0x[0-9a-fA-F]{40})/(transfers|price)", request.path)
        if not found:
            raise RejectedError(404, {"message": f"Cannot GET /{self.prefix}{request.path}"})
        address, chain = found[1].lower(), request.query.get("chain", "eth")
        if chain not in CHAINS:
            raise RejectedError(400, {"message": f"chain must be a valid enum value: {chain}"})
        if f"{chain}:{address}" in bad:
            raise RejectedError(404, {"message": "No pools found with enough liquidity"})
        if found[2] == "price":
            return encode(price(chain, address, now))
        return self._transfers(chain, address, request.query, now)

    def _transfers(self, chain: str, address: str, query: Mapping[str, str], now: float) -> bytes:
        since, until = self._moment(query, "from_date", 0.0), self._moment(query, "to_date", now)
        rows = transfers(chain, address, since, min(until, now))
        if query.get("order", "DESC").upper() == "DESC":
            rows.reverse()
        limit = query.get("limit", str(PAGE))
        if not limit.isdigit() or not 1 <= int(limit) <= PAGE:
            raise RejectedError(400, {"message": "limit must not be greater than 100"})
        scope = [self.generation, chain, address, query.get("order", "DESC").upper()]
        start = self._start(query.get("cursor"), scope)
        end = start + int(limit)
        cursor = None
        if end < len(rows):
            cursor = base64.urlsafe_b64encode(encode([*scope, end])).decode()
        page = {"page": start // int(limit), "page_size": int(limit), "cursor": cursor}
        return encode({**page, "result": rows[start:end]})

    @staticmethod
    def _start(cursor: str | None, scope: list[Any]) -> int:
        if not cursor:
            return 0
        try:
            *issued_for, start = json.loads(base64.urlsafe_b64decode(cursor))
        except (ValueError, TypeError):
            issued_for, start = [], 0
        if issued_for != scope:
            raise RejectedError(400, {"message": "Invalid cursor"})
        return int(start)

    @staticmethod
    def _moment(query: Mapping[str, str], name: str, default: float) -> float:
        text = query.get(name)
        if text is None:
            return default
        try:
            at = datetime.fromtimestamp(int(text), UTC) if text.isdigit() else datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            raise RejectedError(400, {"message": f"{name} must be a date"}) from None
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
