"""Moralis: transfers and prices of tokens, whose numbers are texts and have up to 78 digits."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from resilience.errors import (
    BadPayloadError,
    BannedError,
    ConfigurationError,
    InvalidCredentialsError,
    NotFoundError,
    RateLimitError,
    ServerError,
    ValidationError,
)
from tasks.collectors import Answer, Unit
from tasks.collectors.moralis import moralis
from tasks.data import moralis_prices, moralis_transfers
from tests.unit.bodies import BODIES, T0, USDT

TRANSFERS, PRICES = moralis.endpoints["transfers"], moralis.endpoints["prices"]
EXAMPLES = Path(__file__).parents[3] / "shared/bodies/moralis/examples.json"
SYMBOL = f"eth:{USDT}"
PRICE = BODIES["moralis.prices"].value


def unit(start=None, end=None) -> Unit:
    return Unit(1, 1, "moralis", "transfers", SYMBOL, start, end, None)


def transfer(**changed) -> dict:
    return BODIES["moralis.transfers"].value["result"][0] | changed


def page_of(*rows, cursor=None) -> dict:
    return {"page": 1, "page_size": 100, "cursor": cursor, "result": list(rows)}


def read(body, status=200, endpoint=TRANSFERS, checkpoint=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return endpoint.read(unit(), checkpoint or {}, Answer(status, {}, data, 0.1))


def test_the_request_is_as_documented():
    """Token in the path, chain as a parameter, oldest first; a later page carries the cursor."""
    request = TRANSFERS.request(unit(), TRANSFERS.first(unit()))
    assert request.url == f"https://deep-index.moralis.io/api/v2.2/erc20/{USDT}/transfers"
    assert request.params == {"chain": "eth", "order": "ASC", "limit": "100"}
    assert TRANSFERS.request(unit(), {"token": "abc"}).params["cursor"] == "abc"
    request = PRICES.request(unit(), PRICES.first(unit()))
    assert request.url == f"https://deep-index.moralis.io/api/v2.2/erc20/{USDT}/price"
    assert request.params == {"chain": "eth"}


def test_a_later_run_and_a_backfill():
    """From the cursor, less its lag; a backfill says where its window ends too."""
    start, end = TRANSFERS.window(SYMBOL, "2026-01-01T00:10:00.000000Z", T0)
    assert (start, end) == (T0, None)
    assert TRANSFERS.request(unit(T0), {}).params["from_date"] == "2026-01-01T00:00:00Z"
    sent = TRANSFERS.request(unit(T0, datetime(2026, 1, 2, tzinfo=UTC)), {}).params
    assert (sent["from_date"], sent["to_date"]) == ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


def test_a_transfer_becomes_a_row():
    """The largest amount there is keeps all its digits."""
    page = read(page_of(transfer(), cursor="abc"))
    assert page.rows == [
        {
            "chain": "eth",
            "transaction_hash": "0x" + "2d" * 32,
            "log_index": 2,
            "token": USDT,
            "at": datetime(2026, 1, 1, 10, 7, 54, tzinfo=UTC),
            "block": 12_526_958,
            "sender": "0x" + "d4" * 20,
            "receiver": "0x" + "62" * 20,
            "value": str(2**256 - 1),
            "decimals": 6,
            "possible_spam": False,
        }
    ]
    assert (page.next, page.cursor) == ({"token": "abc"}, "2026-01-01T10:07:54.000000Z")
    assert page.rows[0].keys() == {column.name for column in moralis_transfers.columns}


@pytest.mark.parametrize(("value", "kept"), [("7", "7"), (7, "7"), ("0", "0"), (10**18, "1" + "0" * 18)])
def test_numbers_are_texts_or_numbers(value, kept):
    """The same either way."""
    row = read(page_of(transfer(value=value, block_number=12, log_index="3", token_decimals=6))).rows[0]
    assert (row["value"], row["block"], row["log_index"], row["decimals"]) == (kept, 12, 3, 6)


def test_a_token_without_decimals():
    """Some contracts do not say."""
    for given in (
        transfer(token_decimals=None),
        {k: v for k, v in transfer().items() if k != "token_decimals"},
    ):
        assert read(page_of(given)).rows[0]["decimals"] is None


def test_a_price_becomes_a_row():
    """One for each block that was seen."""
    page = read(PRICE, endpoint=PRICES)
    assert page.rows == [
        {
            "chain": "eth",
            "token": USDT,
            "block": 16_314_545,
            "usd": Decimal("0.99989207"),
            "native": "409770570506626",
            "exchange": "Uniswap v3",
            "liquidity_usd": Decimal("123.45"),
        }
    ]
    assert page.next is None
    assert page.rows[0].keys() == {column.name for column in moralis_prices.columns}
    bare = {name: PRICE[name] for name in ("tokenAddress", "toBlock", "usdPrice")}
    row = read(bare, endpoint=PRICES).rows[0]
    assert (row["native"], row["exchange"], row["liquidity_usd"]) == (None, None, None)


def test_the_examples_of_the_description():
    """Both are understood."""
    if not EXAMPLES.exists():
        pytest.skip(f"no example bodies in {EXAMPLES.parent}")
    examples = json.loads(EXAMPLES.read_text())["examples"]
    row = read(examples["erc20TransactionCollection"]).rows[0]
    assert (row["value"], row["block"], row["log_index"]) == ("650000000000000000", 12_526_958, 2)
    assert row["at"] == datetime(2021, 4, 2, 10, 7, 54, tzinfo=UTC)
    row = read(examples["erc20Price"], endpoint=PRICES).rows[0]
    assert (row["usd"], row["block"], row["native"]) == (
        Decimal("19.722370676"),
        16_314_545,
        "8409770570506626",
    )


def test_an_empty_page_with_a_cursor_goes_on():
    """Only null ends it; the same cursor again is refused."""
    assert read(page_of(cursor="abc")).next == {"token": "abc"}
    assert read(page_of()).next is None
    with pytest.raises(BadPayloadError, match="just read"):
        read(page_of(cursor="abc"), checkpoint={"token": "abc"})


def test_a_stale_cursor_begins_again():
    """Once, then it is an error."""
    stale = {"message": "Invalid cursor"}
    again = read(stale, 400, checkpoint={"token": "old"}).next
    assert "cursor" not in TRANSFERS.request(unit(), again).params
    with pytest.raises(ValidationError, match="Invalid cursor"):
        read(stale, 400, checkpoint=again)


BROKEN = {
    "nothing": b"",
    "truncated": json.dumps(page_of(transfer())).encode()[:-5],
    "null": b"null",
    "a list": [transfer()],
    "no result": {"cursor": None},
    "a result of null": {"cursor": None, "result": None},
    "a row of null": page_of(None),
    "a value of null": page_of(transfer(value=None)),
    "a value of fractions": page_of(transfer(value="1.5")),
    "a value of words": page_of(transfer(value="lots")),
    "a value of an exponent": page_of(transfer(value="1e18")),
    "a block of null": page_of(transfer(block_number=None)),
    "a block of too many": page_of(transfer(block_number=2**70)),
    "no index": page_of(transfer(log_index=None)),
    "a hash of null": page_of(transfer(transaction_hash=None)),
    "a hash of number": page_of(transfer(transaction_hash=7)),
    "an address of null": page_of(transfer(address=None)),
    "a time of null": page_of(transfer(block_timestamp=None)),
    "a time without a zone": page_of(transfer(block_timestamp="2026-01-01T10:07:54")),
    "spam perhaps": page_of(transfer(possible_spam="perhaps")),
    "spam of list": page_of(transfer(possible_spam=[])),
    "a cursor of list": {"cursor": ["abc"], "result": []},
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_body(body):
    """A BadPayloadError that names the endpoint."""
    with pytest.raises(BadPayloadError, match=r"moralis\.transfers"):
        read(body)


@pytest.mark.parametrize(
    "changed", [{"usdPrice": None}, {"usdPrice": "dear"}, {"toBlock": None}, {"nativePrice": 3}]
)
def test_a_broken_price(changed):
    """No row of null, and a list is no price."""
    for body in (PRICE | changed, [PRICE]):
        with pytest.raises(BadPayloadError, match=r"moralis\.prices"):
            read(body, endpoint=PRICES)


@pytest.mark.parametrize(
    ("status", "body", "kind", "wait_s"),
    [
        (400, {"message": "chain: invalid"}, ValidationError, None),
        (401, {"message": "Token is invalid format"}, InvalidCredentialsError, None),
        (404, {"message": "No pools found with enough liquidity"}, NotFoundError, None),
        (429, {"message": "Rate limit exceeded."}, RateLimitError, None),
        (403, b"<html>error code: 1020</html>", BannedError, 900),
        (500, {"message": "Internal"}, ServerError, None),
    ],
)
def test_documented_errors(status, body, kind, wait_s):
    """The firewall's refusal holds back everybody for a while."""
    with pytest.raises(kind) as caught:
        read(body, status)
    assert type(caught.value) is kind
    assert getattr(caught.value, "retry_after_s", None) == wait_s


@pytest.mark.parametrize(
    "symbol", ["eth", USDT, f"eth:{USDT[:-1]}", f"ETH:{USDT}", f"eth:{USDT.upper()}", ""]
)
def test_a_symbol_is_chain_and_address(symbol):
    """In small letters, so that one token has one name."""
    with pytest.raises(ConfigurationError, match=r"moralis\.transfers: .* is no symbol"):
        TRANSFERS.check_symbols([symbol])
    assert TRANSFERS.check_symbols([SYMBOL]) == (SYMBOL,)
