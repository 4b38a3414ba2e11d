"""The fake Glassnode, Kraken, LunarCrush, Moralis and X answer as documented and enforce what is documented."""

from datetime import UTC, datetime, timedelta

import pytest
import requests

from tests.upstream.apis import glassnode, kraken, lunarcrush, moralis, x

NOW = 1_770_000_030
DAY = 86_400
TOKEN = "0x" + "5a" * 20
KEYS = {
    "glassnode": {"X-Api-Key": "a-key"},
    "kraken": {},
    "lunarcrush": {"Authorization": "Bearer a-token"},
    "moralis": {"X-API-Key": "a-key"},
    "x": {"Authorization": "Bearer a-token"},
}
ONE = {
    "glassnode": "/v1/metrics/market/price_usd_close?a=BTC&i=24h",
    "kraken": "/0/public/OHLC?pair=XBTUSD",
    "lunarcrush": "/api4/public/coins/list/v1",
    "moralis": f"/api/v2.2/erc20/{TOKEN}/price?chain=eth",
    "x": "/2/tweets/search/recent?query=pump",
}


@pytest.fixture
def get(upstream):
    """Ask one of them, its wall clock frozen."""
    for api in KEYS:
        upstream.control(api, now=NOW)
    with requests.Session() as session:
        session.trust_env = False

        def ask(api, path=None, headers=None, **query):
            url = upstream.base(api) + (path or ONE[api])
            return session.get(url, params=query, headers=KEYS[api] | (headers or {}), timeout=10)

        yield ask


def at(seconds):
    return datetime.fromtimestamp(seconds, UTC)


@pytest.mark.parametrize("api", sorted(KEYS.keys() - {"kraken"}))
@pytest.mark.parametrize("value", ["", "BAD"])
def test_a_key_is_needed(get, upstream, api, value):
    """401 in JSON, and a wrong key counts against nobody's limit."""
    ((name, held),) = KEYS[api].items()
    answer = get(api, headers={name: held.rpartition(" ")[0] + " " + value if " " in held else value})
    assert answer.status_code == 401
    assert answer.json()
    assert upstream.stats(api)["max_in_window"] == 0


@pytest.mark.parametrize("api", sorted(KEYS))
def test_the_limit(get, upstream, api):
    """Two are let through, the third is refused in the API's own way, without Retry-After, and counted."""
    upstream.control(api, limits={"amount": 2, "window_s": 60})
    answers = [get(api) for _ in range(3)]
    refused = answers[-1]
    assert [answer.status_code for answer in answers] == [200, 200, 200 if api == "kraken" else 429]
    assert "Retry-After" not in refused.headers
    assert upstream.stats(api)["violations"] == 1
    assert refused.json().keys() <= {"error", "message", "errors", "title", "detail", "type", "status"}
    assert [answer.status_code for answer in answers[:2]] == [200, 200]


def test_an_answer_for_another_asset_or_metric(get):
    """Unknown ones are client errors."""
    assert get("glassnode", "/v1/metrics/market/price_usd_close", a="BADCOIN").status_code == 400
    assert get("glassnode", "/v1/metrics/market/price_usd_close", a="BTC", i="10m").status_code == 400
    assert get("glassnode", "/v1/metrics/market/price_usd_close", a="BTC", s="now").status_code == 400
    assert get("glassnode", "/v1/metrics/fees/volume_sum", a="BTC").status_code == 404


def test_glassnode_answers_a_range(get):
    """Days that are over, gaps as null, no page; the newest are other than they will be."""
    midnight = NOW // DAY * DAY
    body = get("glassnode", s=midnight - 50 * DAY, u=NOW).json()
    assert [point["t"] for point in body] == list(range(midnight - 50 * DAY, midnight, DAY))
    assert any(point["v"] is None for point in body)
    later = glassnode.points("market/price_usd_close", "BTC", midnight - 50 * DAY, NOW, NOW + 9 * DAY)
    assert body[:-2] == later[: len(body) - 2]
    assert body[-1] != later[len(body) - 1]


def test_glassnode_tells_its_limit_in_seconds(get):
    """Of every answer."""
    headers = get("glassnode").headers
    assert (headers["x-rate-limit-limit"], headers["x-rate-limit-remaining"]) == ("600", "599")
    assert 58 <= int(headers["x-rate-limit-reset"]) <= 60


def test_kraken_answers_the_newest_720(get):
    """Under its own name for the pair; the last one is running, and `last` is the one before."""
    result = get("kraken", since=0).json()["result"]
    rows = result["XXBTZUSD"]
    assert result.keys() == {"XXBTZUSD", "last"}
    assert len(rows) == 720
    assert rows[-1][0] == NOW // 60 * 60
    assert int(result["last"]) == rows[-2][0]
    assert rows[-1] != kraken.bar("XBTUSD", rows[-1][0], 60)
    assert rows[0] == kraken.bar("XBTUSD", rows[0][0], 60)


def test_kraken_begins_after_since(get):
    """The one that is named is not sent again."""
    since = NOW // 60 * 60 - 300
    rows = get("kraken", since=since).json()["result"]["XXBTZUSD"]
    assert [row[0] for row in rows] == [since + 60 * n for n in range(1, 6)]


def test_kraken_has_its_errors_in_a_200(get):
    """Whatever is wrong."""
    for query, said in (
        ({"pair": "BADPAIR"}, "EQuery:Unknown asset pair"),
        ({"pair": "XBTUSD", "interval": 7}, "EGeneral:Invalid arguments"),
    ):
        answer = get("kraken", "/0/public/OHLC", **query)
        assert (answer.status_code, answer.json()) == (200, {"error": [said]})
    assert get("kraken", "/0/public/SystemStatus").json()["result"]["status"] == "online"
    assert get("kraken", headers={"User-Agent": ""}).status_code == 403


def test_kraken_counts_pairs_apart(get, upstream):
    """One a second for each; another pair still goes through."""
    pairs = ["XBTUSD", "ETHUSD", "XBTUSD"]
    errors = [get("kraken", "/0/public/OHLC", pair=pair).json()["error"] for pair in pairs]
    assert errors == [[], [], ["EGeneral:Too many requests"]]
    assert upstream.stats("kraken")["violations"] == 1


def test_lunarcrush_counts_by_minute_and_by_day(get, upstream):
    """Each in its own way."""
    upstream.control("lunarcrush", limits={"day": 1})
    assert [get("lunarcrush").status_code for _ in range(2)] == [200, 429]
    refused = {limit["name"]: limit["refused"] for limit in upstream.stats("lunarcrush")["limits"]}
    assert refused == {"requests": 0, "day": 1}


def test_lunarcrush_answers_hours(get):
    """Those that begin in the range, some missing, some unknown; the one that runs too."""
    path = "/api4/public/coins/btc/time-series/v2"
    current = NOW // 3600 * 3600
    body = get("lunarcrush", path, bucket="hour", start=current - 100 * 3600, end=NOW).json()
    assert body["data"] == lunarcrush.hours("btc", current - 100 * 3600, NOW, NOW)
    assert body["data"][-1]["time"] == current
    assert 80 < len(body["data"]) < 101
    later = {row["time"]: row for row in lunarcrush.hours("btc", current - 100 * 3600, NOW, NOW + DAY)}
    changed = [row["time"] for row in body["data"] if row != later[row["time"]]]
    assert min(changed) > current - 5 * 3600
    assert get("lunarcrush", path.replace("btc", "nosuch"), bucket="hour").status_code == 404
    assert get("lunarcrush", path, bucket="minute").status_code == 400
    assert len(get("lunarcrush").json()["data"]) == len(lunarcrush.SYMBOLS)


def test_moralis_pages_by_cursor(get, upstream):
    """A hundred at most, null at the end; an old cursor is a 400."""
    path, query = f"/api/v2.2/erc20/{TOKEN}/transfers", {"chain": "eth", "order": "ASC"}
    rows, cursor, pages = [], "", 0
    while cursor is not None:
        body = get("moralis", path, **query, cursor=cursor, from_date="2024-01-01").json()
        rows, cursor, pages = rows + body["result"], body["cursor"], pages + 1
    served = moralis.transfers("eth", TOKEN, datetime(2024, 1, 1, tzinfo=UTC).timestamp(), NOW)
    assert rows == served
    assert pages == -(-len(served) // 100) > 3
    assert {type(row["block_number"]) for row in rows} == {int, str}
    assert max(len(row["value"]) for row in rows) == 78
    cursor = get("moralis", path, **query).json()["cursor"]
    upstream.control("moralis", expire_offsets=True)
    for stale in (cursor, "nonsense"):
        answer = get("moralis", path, **query, cursor=stale)
        assert (answer.status_code, answer.json()) == (400, {"message": "Invalid cursor"})


def test_moralis_ranges_and_order(get):
    """Newest first unless asked otherwise; both ends are included."""
    path = f"/api/v2.2/erc20/{TOKEN}/transfers"
    rows = moralis.transfers("polygon", TOKEN, NOW - 30 * DAY, NOW)
    first, last = (row["block_timestamp"] for row in (rows[0], rows[-1]))
    body = get("moralis", path, chain="polygon", from_date=first, to_date=last).json()
    assert body["result"] == rows[::-1]
    assert get("moralis", path, chain="moon").status_code == 400
    assert get("moralis", path, chain="eth", limit=101).status_code == 400
    assert get("moralis", path, chain="eth", from_date="soon").status_code == 400
    assert get("moralis", "/api/v2.2/erc20/0x1/price").status_code == 404


def test_moralis_prices(get):
    """One object, at the newest block."""
    assert get("moralis").json() == moralis.price("eth", TOKEN, NOW)
    assert moralis.price("eth", TOKEN, NOW) != moralis.price("eth", TOKEN, NOW + 60)


def test_x_pages_newest_first(get):
    """By a token that stays good; what came later does not move the pages."""
    fields = {"tweet.fields": "author_id,conversation_id,created_at,lang,public_metrics,referenced_tweets"}
    rows, token = [], {}
    while token is not None:
        body = get("x", max_results=100, **fields, **token).json()
        rows += body["data"]
        assert body["meta"]["result_count"] == len(body["data"])
        after = body["meta"].get("next_token")
        token = {"next_token": after} if after else None
    assert rows == x.found("tweets/search/recent", "pump", NOW)
    assert len(rows) > 250
    ids = [int(row["id"]) for row in rows]
    assert ids == sorted(ids, reverse=True)
    assert {len(row["id"]) for row in rows} == {19}


def test_x_without_a_hit(get):
    """No data at all."""
    assert get("x", "/2/tweets/search/recent", query="nothing").json() == {"meta": {"result_count": 0}}


def test_x_ranges(get):
    """A week at most; the start is included, the end is not."""
    rows = x.found("tweets/search/recent", "pump", NOW)
    start, end = (row["created_at"] for row in (rows[20], rows[10]))
    body = get("x", max_results=100, start_time=start, end_time=end).json()
    assert [row["id"] for row in body["data"]] == [row["id"] for row in rows[11:21]]
    body = get("x", max_results=100, since_id=rows[5]["id"]).json()
    assert [row["id"] for row in body["data"]] == [row["id"] for row in rows[:5]]
    answer = get("x", start_time=f"{at(NOW) - timedelta(days=8):%Y-%m-%dT%H:%M:%SZ}")
    assert answer.status_code == 400
    assert "'start_time' must be on or after" in answer.json()["errors"][0]["message"]
    for wrong in ({"max_results": 9}, {"start_time": "today"}, {"next_token": "abc"}):
        assert get("x", **wrong).status_code == 400


def test_x_timelines(get, upstream):
    """The newest of a user; a user that is not there is an error in a 200."""
    body = get("x", "/2/users/17/tweets", max_results=100, **{"tweet.fields": "created_at"}).json()
    served = x.found("users/17/tweets", "17", NOW)
    assert [row["id"] for row in body["data"]] == [row["id"] for row in served[:100]]
    assert body["data"][0].keys() == {"id", "text", "edit_history_tweet_ids", "created_at"}
    upstream.control("x", bad_symbols=["404"])
    answer = get("x", "/2/users/404/tweets")
    assert (answer.status_code, answer.json().keys()) == (200, {"errors"})
    assert answer.json()["errors"][0]["type"].endswith("resource-not-found")


def test_x_tells_its_limits(get, upstream):
    """One for each endpoint; the reset is a Unix time; a 429 has one of two forms."""
    search, timeline = get("x").headers, get("x", "/2/users/17/tweets").headers
    assert (search["x-rate-limit-limit"], search["x-rate-limit-remaining"]) == ("450", "449")
    assert (timeline["x-rate-limit-limit"], timeline["x-rate-limit-remaining"]) == ("900", "899")
    assert 890 < int(search["x-rate-limit-reset"]) - datetime.now(UTC).timestamp() < 902
    upstream.control("x", limits={"amount": 1, "window_s": 60})
    bodies = [get("x").json() for _ in range(3)][1:]
    assert [body.keys() for body in bodies] == [{"title", "detail", "type", "status"}, {"errors"}]
    assert get("x", "/2/users/17/tweets").status_code == 200
