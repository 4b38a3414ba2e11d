"""A good answer of every shipped endpoint, in the form that its documentation shows, for the tests of parsers."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.collectors import Unit

T0 = datetime(2026, 1, 1, tzinfo=UTC)
T0_S = int(T0.timestamp())


@dataclass(frozen=True)
class Body:
    """What an endpoint answers for a symbol and, where it reads by time, a window that holds all of its rows."""

    value: Any
    symbol: str = ""
    window: timedelta | None = None

    def unit(self, endpoint: str) -> Unit:
        """A unit that would be answered so."""
        end = None if self.window is None else T0 + self.window
        start = None if self.window is None else T0
        return Unit(1, 1, *endpoint.split("."), self.symbol, start, end, None)


USDT = "0xdac17f958d2ee523a2206206994597c13d831ec7"

BODIES = {
    "asana.projects": Body(
        {
            "data": [
                {
                    "gid": "1200",
                    "name": "Feed everybody",
                    "archived": False,
                    "owner": {"gid": "7", "resource_type": "user"},
                    "created_at": "2026-01-01T00:00:00.000Z",
                    "modified_at": "2026-01-02T03:04:05.678Z",
                    "due_on": "2026-02-01",
                    "notes": "",
                    "permalink_url": "https://app.asana.com/0/1200",
                }
            ],
            "next_page": None,
        },
        "1100",
    ),
    "asana.tasks": Body(
        {
            "data": [
                {
                    "gid": "12",
                    "name": "Feed the cat",
                    "completed": False,
                    "assignee": {"gid": "7", "resource_type": "user"},
                    "created_at": "2026-01-01T00:00:00.000Z",
                    "modified_at": "2026-01-02T03:04:05.678Z",
                    "due_on": "2026-02-01",
                    "notes": "",
                    "permalink_url": "https://app.asana.com/0/1200/12",
                }
            ],
            "next_page": {"offset": "eyJ0", "path": "/tasks", "uri": "https://app.asana.com/api/1.0/tasks"},
        },
        "1200",
    ),
    "binance.klines": Body(
        [
            [
                (T0_S + 60 * n) * 1000,
                "1.10",
                "1.30",
                "1.00",
                "1.20",
                "7.50",
                (T0_S + 60 * n) * 1000 + 59_999,
                "8.25",
                42,
                "3",
                "4",
                "0",
            ]
            for n in range(3)
        ],
        "BTCUSDT",
        timedelta(hours=1),
    ),
    "coinbase.candles": Body(
        [[T0_S + 60 * n, 1.1, 1.3, 1.2, 1.25, 7.5] for n in (2, 1, 0)], "BTC-USD", timedelta(hours=1)
    ),
    "glassnode.active_addresses": Body(
        [{"t": T0_S, "v": 912_345}, {"t": T0_S + 86_400, "v": None}, {"t": T0_S + 172_800, "v": 913_000}],
        "BTC",
        timedelta(days=9),
    ),
    "calendar.events": Body(
        {
            "kind": "calendar#events",
            "items": [
                {
                    "id": "e1",
                    "status": "confirmed",
                    "summary": "Walk the weir",
                    "organizer": {"email": "ann@example.com"},
                    "start": {"dateTime": "2026-01-01T09:00:00+01:00"},
                    "end": {"dateTime": "2026-01-01T10:00:00+01:00"},
                    "updated": "2026-01-01T00:00:00.000Z",
                },
                {
                    "id": "e2",
                    "status": "tentative",
                    "start": {"date": "2026-01-01"},
                    "end": {"date": "2026-01-02"},
                },
                {"id": "e3", "status": "cancelled"},
            ],
            "nextPageToken": "more",
        },
        "primary",
    ),
    "glassnode.price": Body(
        [{"t": T0_S, "v": 87_648.2196}, {"t": T0_S + 86_400, "v": None}], "BTC", timedelta(days=9)
    ),
    "gmail.messages": Body(
        {  # a message, and what profile, list and history answer
            "id": "m1",
            "threadId": "t1",
            "labelIds": ["INBOX"],
            "snippet": "Tea?",
            "internalDate": str(T0_S * 1000),
            "sizeEstimate": 1234,
            "payload": {"headers": [{"name": "From", "value": "Ada"}, {"name": "Subject", "value": "Tea"}]},
            "messages": [{"id": "m1", "threadId": "t1"}],
            "history": [{"id": "76", "messagesAdded": [{"message": {"id": "m1", "threadId": "t1"}}]}],
            "historyId": "77",
        },
        "me",
    ),
    "greenlake.devices": Body(
        {
            "items": [
                {
                    "id": "d-1",
                    "serialNumber": "SN1",
                    "deviceType": "SWITCH",
                    "model": None,
                    "createdAt": "2026-01-01T00:00:00.000Z",
                    "updatedAt": "2026-01-01T00:00:00.000Z",
                }
            ],
            "count": 1,
            "offset": 0,
            "total": 3,
        }
    ),
    "greenlake.subscriptions": Body(
        {
            "items": [
                {
                    "id": "s-1",
                    "key": "KEY1",
                    "sku": "Q9Y74AAE",
                    "quantity": "10",
                    "availableQuantity": "4",
                    "startTime": "2026-01-01T00:00:00.000Z",
                    "endTime": "2027-01-01T00:00:00.000Z",
                    "updatedAt": "2026-01-01T00:00:00.000Z",
                }
            ],
            "count": 1,
            "offset": 0,
            "total": 1,
        }
    ),
    "kraken.ohlc": Body(
        {
            "error": [],
            "result": {
                "XXBTZUSD": [
                    [T0_S + 60 * n, "1.10", "1.30", "1.00", "1.20", "1.15", "7.50000000", 42]
                    for n in range(4)
                ],
                "last": T0_S + 120,
            },
        },
        "XBTUSD",
        timedelta(hours=1),
    ),
    "lunarcrush.coins": Body(
        {
            "config": {"sort": "market_cap_rank", "total_rows": 2, "generated": T0_S},
            "data": [
                {
                    "id": 1,
                    "symbol": "BTC",
                    "name": "Bitcoin",
                    "price": 87_648.21,
                    "price_btc": 1,
                    "volume_24h": 31_500_000_000.5,
                    "market_cap": 1_750_000_000_000.25,
                    "galaxy_score": 71.5,
                    "alt_rank": 12,
                    "sentiment": 81,
                    "categories": "layer-1,bitcoin-ecosystem",
                },
                {
                    "id": 77,
                    "symbol": "NIL",
                    "name": "Nil",
                    "price": None,
                    "market_cap": None,
                    "alt_rank": 4001,
                },
            ],
        }
    ),
    "lunarcrush.hours": Body(
        {
            "config": {"bucket": "hour", "start": T0_S, "end": T0_S + 7199},
            "data": [
                {
                    "time": T0_S,
                    "open": 87_600.5,
                    "high": 87_700,
                    "low": 87_512.25,
                    "close": 87_648.21,
                    "volume_24h": 31_500_000_000.5,
                    "market_cap": 1_750_000_000_000.25,
                    "interactions": 1_234_567,
                    "contributors_active": 45_678,
                    "contributors_created": 9_876,
                    "posts_active": 98_765,
                    "posts_created": 12_345,
                    "sentiment": 81,
                    "social_dominance": 21.3456,
                    "galaxy_score": 71.5,
                    "alt_rank": 12,
                },
                {"time": T0_S + 3600, "open": 87_648.21, "galaxy_score": None},
            ],
        },
        "btc",
        timedelta(hours=2),
    ),
    "moralis.prices": Body(
        {
            "tokenName": "Tether USD",
            "tokenSymbol": "USDT",
            "tokenDecimals": "6",
            "nativePrice": {"value": "409770570506626", "decimals": 18, "name": "Ether", "symbol": "ETH"},
            "usdPrice": 0.99989207,
            "usdPriceFormatted": "0.99989207",
            "exchangeName": "Uniswap v3",
            "tokenAddress": USDT,
            "toBlock": "16314545",
            "possibleSpam": "false",
            "pairTotalLiquidityUsd": "123.45",
        },
        f"eth:{USDT}",
    ),
    "moralis.transfers": Body(
        {
            "page": 1,
            "page_size": 100,
            "cursor": "eyJhbGciOi",
            "result": [
                {
                    "token_name": "Tether USD",
                    "token_symbol": "USDT",
                    "token_decimals": "6",
                    "transaction_hash": "0x" + "2d" * 32,
                    "address": USDT,
                    "block_timestamp": "2026-01-01T10:07:54.000Z",
                    "block_number": "12526958",
                    "to_address": "0x" + "62" * 20,
                    "from_address": "0x" + "d4" * 20,
                    "value": "115792089237316195423570985008687907853269984665640564039457584007913129639935",
                    "transaction_index": 12,
                    "log_index": 2,
                    "possible_spam": "false",
                    "verified_contract": False,
                }
            ],
        },
        f"eth:{USDT}",
    ),
    "reddit.posts": Body(
        {
            "kind": "Listing",
            "data": {
                "after": "t3_1abb",
                "before": None,
                "children": [
                    {
                        "kind": "t3",
                        "data": {
                            "name": "t3_1abc",
                            "author": "heron",
                            "title": "High water",
                            "selftext": "",
                            "url": "https://example.com/gauge",
                            "score": 12,
                            "num_comments": 3,
                            "created_utc": float(T0_S),
                        },
                    }
                ],
            },
        },
        "rivers",
    ),
    "x.posts": Body(
        {
            "data": [
                {
                    "id": "2006523456789012345",
                    "text": "The gate is open.",
                    "author_id": "2244994945",
                    "created_at": "2026-01-01T10:07:54.000Z",
                    "conversation_id": "2006523456789012345",
                    "lang": "en",
                    "edit_history_tweet_ids": ["2006523456789012345"],
                    "public_metrics": {
                        "retweet_count": 3,
                        "reply_count": 1,
                        "like_count": 12,
                        "quote_count": 0,
                        "bookmark_count": 2,
                        "impression_count": 431,
                    },
                }
            ],
            "meta": {
                "result_count": 1,
                "newest_id": "2006523456789012345",
                "oldest_id": "2006523456789012345",
                "next_token": "7140dibdnow9c7btw3w",
            },
        },
        "2244994945",
    ),
    "xero.contacts": Body(
        {
            "pagination": {"page": 1, "pageSize": 1000, "pageCount": 2, "itemCount": 1001},
            "Contacts": [
                {
                    "ContactID": "5cc8cf28-567e-4d43-b287-687cfcaec47c",
                    "ContactStatus": "ACTIVE",
                    "Name": "Katherine",
                    "EmailAddress": "",
                    "IsSupplier": True,
                    "IsCustomer": False,
                    "UpdatedDateUTC": f"/Date({T0_S}000+0000)/",
                }
            ],
        },
        "04e93d48-e72f-4775-b7dd-15a041fab972",
    ),
    "xero.invoices": Body(
        {
            "pagination": {"page": 1, "pageSize": 1000, "pageCount": 1, "itemCount": 1},
            "Invoices": [
                {
                    "InvoiceID": "d4956132-ed94-4dd7-9eaa-aa22dfdf06f2",
                    "Type": "ACCREC",
                    "InvoiceNumber": "INV-0001",
                    "Status": "PAID",
                    "Contact": {"ContactID": "a3675fc4-f8dd-4f03-ba5b-f1870566bcd7"},
                    "Date": f"/Date({T0_S}000)/",
                    "DueDate": f"/Date({T0_S}000+0000)/",
                    "CurrencyCode": "NZD",
                    "Total": 40.25,
                    "AmountDue": 0,
                    "UpdatedDateUTC": f"/Date({T0_S}000+0000)/",
                }
            ],
        },
        "04e93d48-e72f-4775-b7dd-15a041fab972",
    ),
    "zoho.accounts": Body(
        {
            "data": [
                {
                    "id": "4150868000000001001",
                    "Account_Name": "Weir & Sons",
                    "Owner": {"name": "Ada", "id": "4150868000000225013", "email": "ada@weir.example"},
                    "Industry": "Utilities",
                    "Phone": None,
                    "Website": "https://weir.example",
                    "Created_Time": "2026-01-01T09:00:00+09:00",
                    "Modified_Time": "2026-01-02T03:04:05+00:00",
                }
            ],
            "info": {
                "per_page": 200,
                "count": 1,
                "page": 1,
                "more_records": False,
                "next_page_token": None,
                "page_token_expiry": None,
            },
        }
    ),
}
BODIES["x.search"] = Body(BODIES["x.posts"].value, "(pump OR sluice) lang:en")
