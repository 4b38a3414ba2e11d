"""The fake APIs answer as documented, enforce their limits, misbehave when told to, and serve the same data always."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import requests

from tests.upstream import data
from tests.upstream.apis import ALL
from tests.upstream.client import ROOT, Upstream
from tests.upstream.meter import Meter

NOW = 1_770_000_030  # half a minute into a bar
MINUTE = 60_000
BEARER = {"Authorization": "Bearer a-token"}


@pytest.fixture(scope="module")
def server():
    with Upstream(seed=7) as upstream:
        yield upstream


@pytest.fixture
def upstream(server):
    """The one process of this module, as if just started, its wall clock frozen."""
    server.reset()
    for api in ("binance", "coinbase", "asana"):
        server.control(api, now=NOW)
    return server


@pytest.fixture
def http():
    with requests.Session() as session:
        session.trust_env = False
        yield session


def klines(http, upstream, **query):
    query = {"symbol": "BTCUSDT", "interval": "1m", **query}
    return http.get(upstream.base("binance") + "/api/v3/klines", params=query, timeout=10)


def candles(http, upstream, product="BTC-USD", **query):
    return http.get(upstream.base("coinbase") + f"/products/{product}/candles", params=query, timeout=10)


def asana(http, upstream, path="tasks", headers=BEARER, **query):
    return http.get(upstream.base("asana") + f"/api/1.0/{path}", params=query, headers=headers, timeout=10)


def test_klines_are_the_generated_rows(http, upstream):
    """A window of finished bars is row for row what the data module says."""
    start = (NOW - 86_400) // 60 * MINUTE
    answer = klines(http, upstream, startTime=start, endTime=start + 10 * MINUTE - 1)
    assert answer.json() == data.klines("BTCUSDT", start, start + 10 * MINUTE, MINUTE)
    assert len(answer.json()) == 10
    assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "2"
    assert answer.headers["Content-Type"] == "application/json"


def test_last_kline_is_unfinished(http, upstream):
    """The newest row is the running bar, with figures that the finished bar will not have."""
    rows = klines(http, upstream, limit=3).json()
    current = NOW // 60 * MINUTE
    assert [row[0] for row in rows] == [current - 2 * MINUTE, current - MINUTE, current]
    assert rows[-1] == data.kline("BTCUSDT", current, MINUTE, NOW * 1000)
    assert rows[-1] != data.kline("BTCUSDT", current, MINUTE)
    assert rows[:-1] == data.klines("BTCUSDT", current - 2 * MINUTE, current, MINUTE)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, (NOW // 60 - 499, 500)),
        ({"limit": 1000}, (NOW // 60 - 999, 1000)),
        ({"limit": 5000}, (NOW // 60 - 999, 1000)),
        ({"startTime": (NOW - 7200) * 1000, "limit": 7}, ((NOW - 7200) // 60 + 1, 7)),
        ({"endTime": (NOW - 7200) * 1000, "limit": 7}, ((NOW - 7200) // 60 - 6, 7)),
        ({"startTime": (NOW + 120) * 1000}, (None, 0)),
        ({"startTime": 0, "limit": 2}, (data.LISTED_AT_S // 60, 2)),
        ({"endTime": 1000}, (None, 0)),
    ],
)
def test_klines_window(http, upstream, query, expected):
    """Defaults, limit, start, end, the future and the time before the listing."""
    rows = klines(http, upstream, **query).json()
    first = rows[0][0] // MINUTE if rows else None
    assert (first, len(rows)) == expected


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"symbol": "BADCOIN"}, -1121),
        ({"symbol": "btcusdt"}, -1121),
        ({"symbol": "TOLDBAD"}, -1121),
        ({"symbol": None}, -1102),
        ({"interval": "1x"}, -1120),
        ({"limit": "0"}, -1100),
        ({"startTime": "soon"}, -1100),
    ],
)
def test_klines_errors(http, upstream, query, code):
    """Bad parameters are a 400 with Binance's number."""
    upstream.control("binance", bad_symbols=["TOLDBAD"])
    answer = klines(http, upstream, **query)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert "X-MBX-USED-WEIGHT-1M" in answer.headers


def test_bad_symbol_message(http, upstream):
    """The body of a bad symbol is the documented one."""
    assert klines(http, upstream, symbol="BADCOIN").json() == {"code": -1121, "msg": "Invalid symbol."}


def test_binance_ping_and_time(http, upstream):
    """The two health paths weigh 1 each."""
    base = upstream.base("binance") + "/api/v3"
    assert http.get(f"{base}/ping", timeout=5).json() == {}
    answer = http.get(f"{base}/time", timeout=5)
    assert answer.json() == {"serverTime": NOW * 1000}
    assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "2"


def test_binance_refuses_then_bans(http, upstream):
    """Over the weight: 429 with Retry-After; who calls on is banned with 418, and each refusal is a violation."""
    upstream.control("binance", limits={"amount": 10, "window_s": 12})
    statuses = [klines(http, upstream, limit=1).status_code for _ in range(5)]
    refused = klines(http, upstream, limit=1)
    time.sleep(0.3)  # longer than what counts as on its way
    banned = klines(http, upstream, limit=1)
    stats = upstream.stats("binance")
    assert statuses == [200] * 5
    assert (refused.status_code, refused.json()["code"]) == (429, -1003)
    assert 1 <= int(refused.headers["Retry-After"]) <= 12
    assert refused.headers["X-MBX-USED-WEIGHT-1M"] == "10"
    assert banned.status_code == 418
    assert int(banned.headers["Retry-After"]) == 24
    assert (stats["violations"], stats["max_in_window"]) == (2, 14)
    assert stats["by_status"] == {"200": 5, "429": 1, "418": 1}
    assert stats["limits"][0]["over_window"] == 2


def test_window_slides(http, upstream):
    """After the promised wait there is room again; a client within the limit is never counted."""
    upstream.control("binance", limits={"amount": 4, "window_s": 2})
    assert [klines(http, upstream, limit=1).status_code for _ in range(3)] == [200, 200, 429]
    time.sleep(2.05)
    assert klines(http, upstream, limit=1).status_code == 200
    assert upstream.stats("binance")["violations"] == 1


@pytest.mark.parametrize("seed", range(5))
def test_meter_agrees_with_counting_by_hand(seed):
    """No window of any phase is granted more than the amount, none is refused that would fit, and the waits are right."""
    rng, now, arrived, granted = random.Random(seed), 1000.0, [], []
    meter = Meter("weight", 20, 5)
    for _ in range(2000):
        now += rng.expovariate(5)
        weight = rng.choice([1, 2, 5])
        arrived.append((now, weight))
        meter.arrive("ip", weight, now)
        wait_s = meter.take("ip", weight, now)
        fits = sum(w for at, w in granted if at > now - 5) + weight <= 20
        assert (wait_s == 0) == fits
        if fits:
            granted.append((now, weight))
        else:
            later = now + wait_s
            assert sum(w for at, w in granted if at > later - 5 + 1e-9) + weight <= 20
    assert meter.refused == len(arrived) - len(granted) > 0
    assert meter.max_in_window == max(
        sum(w for at, w in arrived[: n + 1] if at > end - 5) for n, (end, _) in enumerate(arrived)
    )


def test_documented_limits_are_the_default(upstream):
    """Nobody has to rescale anything to be held to what is documented."""
    limits = {name: upstream.stats(name)["limits"] for name in ("binance", "coinbase", "asana")}
    assert (limits["binance"][0]["amount"], limits["binance"][0]["window_s"]) == (6000, 60)
    assert (limits["coinbase"][0]["amount"], limits["coinbase"][0]["burst"]) == (10, 15)
    assert (limits["asana"][0]["amount"], limits["asana"][1]["amount"]) == (150, 50)


def test_candles_are_the_generated_rows(http, upstream):
    """Newest first, gaps left out, low before high, times as ISO 8601 or as numbers."""
    end = NOW // 60 * 60 - 600
    start = end - 299 * 60
    iso = {"start": datetime.fromtimestamp(start, UTC).isoformat(), "end": f"{end}"}
    rows = candles(http, upstream, granularity=60, **iso).json()
    assert rows == data.candles("BTC-USD", start, end + 60, 60)
    assert 250 < len(rows) < 300
    assert rows[0][0] > rows[-1][0]
    assert all(row[1] <= min(row[3], row[4]) <= max(row[3], row[4]) <= row[2] for row in rows)


def test_newest_candle_is_unfinished(http, upstream):
    """The first row may be the running bucket, and it will change."""
    current = next(at for at in range(NOW // 60 * 60, NOW + 6000, 60) if data.candle("BTC-USD", at, 60))
    upstream.control("coinbase", now=current + 30)
    newest = candles(http, upstream, granularity=60).json()[0]
    assert newest == data.candle("BTC-USD", current, 60, current + 30)
    assert newest != data.candle("BTC-USD", current, 60)


def test_row_before_an_unaligned_start(http, upstream):
    """A start inside a bucket brings that bucket too."""
    at = next(at for at in range(NOW // 60 * 60 - 6000, NOW, 60) if data.candle("BTC-USD", at, 60))
    rows = candles(http, upstream, granularity=60, start=at + 10, end=at + 300).json()
    assert rows[-1][0] == at


def test_more_than_300_candles_are_rejected(http, upstream):
    """Three hundred buckets are served, one more is an error and not a shorter answer."""
    start = NOW // 60 * 60 - 60_000
    assert candles(http, upstream, granularity=60, start=start, end=start + 299 * 60).status_code == 200
    answer = candles(http, upstream, granularity=60, start=start, end=start + 300 * 60)
    assert (answer.status_code, list(answer.json())) == (400, ["message"])


def test_quiet_products_have_empty_windows(http, upstream):
    """An empty page in the middle of a range is no end of the data."""
    end = NOW // 60 * 60
    counts = [
        len(data.candles("QUIET1-USD", at, at + 300 * 60, 60)) for at in range(end - 50 * 18_000, end, 18_000)
    ]
    assert 0 in counts
    assert sum(counts) > 0


@pytest.mark.parametrize(
    ("product", "query", "status"),
    [
        ("BADCOIN-USD", {}, 404),
        ("TOLDBAD-USD", {}, 404),
        ("btc-usd", {}, 404),
        ("BTC-USD", {"granularity": 61}, 400),
        ("BTC-USD", {"start": "soon", "end": "later"}, 400),
        ("BTC-USD", {"start": NOW, "end": NOW - 60}, 400),
    ],
)
def test_candles_errors(http, upstream, product, query, status):
    """Unknown products are a 404, wrong parameters a 400, both with a message."""
    upstream.control("coinbase", bad_symbols=["TOLDBAD-USD"])
    answer = candles(http, upstream, product, **query)
    assert answer.status_code == status
    assert status == 400 or answer.json() == {"message": "NotFound"}


def test_coinbase_time(http, upstream):
    """The health path tells the API's clock."""
    body = http.get(upstream.base("coinbase") + "/time", timeout=5).json()
    assert datetime.fromisoformat(body["iso"]).timestamp() == body["epoch"] == NOW


def test_coinbase_bucket(http, upstream):
    """A burst of fifteen passes, then the rate; the 429 says nothing about the wait."""
    upstream.control("coinbase", limits={"amount": 1, "window_s": 60})
    answers = [http.get(upstream.base("coinbase") + "/time", timeout=5) for _ in range(17)]
    assert [answer.status_code for answer in answers] == [200] * 15 + [429] * 2
    assert answers[-1].json() == {"message": "Public rate limit exceeded"}
    assert "Retry-After" not in answers[-1].headers
    stats = upstream.stats("coinbase")
    assert stats["violations"] == 2
    assert stats["limits"][0]["over_window"] == 16


def test_asana_wants_a_token(http, upstream):
    """No token, the wrong kind, a bad one: 401, and nothing counts against a limit."""
    for headers in ({}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer BADTOKEN"}):
        answer = asana(http, upstream, project="1", headers=headers)
        assert (answer.status_code, list(answer.json())) == (401, ["errors"])
    assert upstream.stats("asana")["max_in_window"] == 0


def test_tasks_by_token_paging(http, upstream):
    """Pages of at most 100 linked by opaque tokens hold every task once, and the last one says so."""
    project = max(data.PROJECTS, key=data.task_count)
    fields = "name,modified_at,completed,assignee.name,projects.name"
    rows, query, pages = [], {"project": project, "limit": 70, "opt_fields": fields}, 0
    while query:
        body = asana(http, upstream, **query).json()
        rows += body["data"]
        pages += 1
        query = body["next_page"] and {**query, "offset": body["next_page"]["offset"]}
    expected = data.tasks(project, NOW)
    assert pages == -(-len(expected) // 70) > 1
    assert [row["gid"] for row in rows] == [task["gid"] for task in expected]
    assert [row["modified_at"] for row in rows] == [task["modified_at"] for task in expected]
    assert all(isinstance(row["gid"], str) for row in rows)
    assert rows[0].keys() == {"gid", "name", "modified_at", "completed", "assignee", "projects"}
    assert next(row["assignee"] for row in rows if row["assignee"]).keys() == {"gid", "name"}


def test_next_page_links(http, upstream):
    """The token comes with a path and an address that hold it."""
    link = asana(http, upstream, project=max(data.PROJECTS, key=data.task_count), limit=1).json()["next_page"]
    assert link["path"].startswith("/tasks?project=")
    assert link["uri"].endswith(link["path"])
    assert link["offset"] in link["path"]


def test_pages_are_of_one_moment(http, upstream):
    """A task edited while one pages does not move a row to another page."""
    project = max(data.PROJECTS, key=data.task_count)
    query = {"project": project, "limit": 100, "opt_fields": "modified_at"}
    offset = asana(http, upstream, **query).json()["next_page"]["offset"]
    upstream.control("asana", now=NOW + 40 * 86_400)
    second = asana(http, upstream, **query, offset=offset).json()["data"]
    assert [row["modified_at"] for row in second] == [
        row["modified_at"] for row in data.tasks(project, NOW)[100:200]
    ]


def test_modified_since_is_inclusive(http, upstream):
    """A task modified exactly then is sent; one edited before is not."""
    project = data.PROJECTS[0]
    times = sorted(task["modified_at"] for task in data.tasks(project, NOW))
    since = times[len(times) // 2]
    body = asana(http, upstream, project=project, modified_since=since, opt_fields="modified_at").json()
    assert sorted(row["modified_at"] for row in body["data"]) == [at for at in times if at >= since]
    assert since in [row["modified_at"] for row in body["data"]]


def test_compact_task(http, upstream):
    """Without opt_fields a task is compact and does not say when it was modified."""
    row = asana(http, upstream, project=data.PROJECTS[0]).json()["data"][0]
    assert row.keys() == {"gid", "name", "resource_type", "resource_subtype"}


def test_offset_tokens_expire(http, upstream):
    """An expired or foreign token is a 400, not a first page."""
    project, other = sorted(data.PROJECTS, key=data.task_count)[-2:]
    offset = asana(http, upstream, project=project, limit=10).json()["next_page"]["offset"]
    assert asana(http, upstream, project=project, limit=10, offset=offset).status_code == 200
    assert asana(http, upstream, project=other, limit=10, offset=offset).status_code == 400
    assert asana(http, upstream, project=project, limit=10, offset="nonsense").status_code == 400
    upstream.control("asana", expire_offsets=True)
    answer = asana(http, upstream, project=project, limit=10, offset=offset)
    assert (answer.status_code, list(answer.json())) == (400, ["errors"])


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 400),
        ({"project": "abc"}, 404),
        ({"project": "666"}, 404),
        ({"project": "1", "limit": 0}, 400),
        ({"project": "1", "limit": 101}, 400),
        ({"project": "1", "modified_since": "yesterday"}, 400),
    ],
)
def test_tasks_errors(http, upstream, query, status):
    """Errors are a list of messages."""
    upstream.control("asana", bad_symbols=["666"])
    answer = asana(http, upstream, **query)
    assert answer.status_code == status
    assert answer.json()["errors"][0]["message"]


def test_projects(http, upstream):
    """The projects come in pages too."""
    first = asana(http, upstream, "projects", limit=10).json()
    second = asana(http, upstream, "projects", limit=10, offset=first["next_page"]["offset"]).json()
    assert [row["gid"] for row in first["data"] + second["data"]] == data.PROJECTS
    assert second["next_page"] is None


def test_asana_limit_is_per_token(http, upstream):
    """One token used up is a 429 with Retry-After; another one still goes through."""
    upstream.control("asana", limits={"amount": 3, "window_s": 60})
    answers = [asana(http, upstream, "projects") for _ in range(4)]
    other = asana(http, upstream, "projects", headers={"Authorization": "Bearer another"})
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert answers[-1].json()["errors"][0]["message"]
    assert other.status_code == 200
    assert upstream.stats("asana")["violations"] == 1


def test_asana_at_once(upstream):
    """More calls at once than allowed: those too many are refused and counted."""
    upstream.control("asana", limits={"at_once": 3}, latency_ms=1000)

    def call(_):
        with requests.Session() as session:
            return asana(session, upstream, "projects").status_code

    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(call, range(6)))
    stats = upstream.stats("asana")
    assert statuses == [200] * 3 + [429] * 3
    assert (stats["max_in_flight"], stats["violations"], stats["in_flight"]) == (6, 3, 0)


def test_latency(http, upstream):
    """A fixed latency, and one between two bounds, delays every answer."""
    for latency_ms in (120, [120, 140]):
        upstream.control("binance", latency_ms=latency_ms)
        began = time.monotonic()
        klines(http, upstream, limit=1)
        assert time.monotonic() - began >= 0.12


def test_error_rate_is_seeded(http, upstream):
    """The same seed strikes the same requests."""
    runs = []
    for _ in range(2):
        upstream.reset("binance")
        upstream.control("binance", error_rate=0.5, error_status=502)
        runs.append([klines(http, upstream, limit=1).status_code for _ in range(20)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {200, 502}


def test_fail_next(http, upstream):
    """So many requests fail and no more."""
    upstream.control("coinbase", fail_next=2, error_status=500)
    answers = [candles(http, upstream, granularity=60) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 500, 200]
    assert answers[0].json() == {"message": "Internal server error"}


def test_outage_ends_by_itself(http, upstream):
    """A load balancer's page for as long as told, then data again; limits are counted all along."""
    upstream.control("binance", outage_s=1)
    answer = klines(http, upstream, limit=1)
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "text/html")
    assert answer.text.startswith("<html>")
    time.sleep(1.05)
    assert klines(http, upstream, limit=1).status_code == 200
    assert upstream.stats("binance")["max_in_window"] == 4


def test_throttle_is_no_violation(http, upstream):
    """An injected 429 carries its wait, and callers that run into it break no limit."""
    upstream.control("binance", throttle_s=30)
    answers = [klines(http, upstream, limit=1) for _ in range(3)]
    upstream.control("binance", throttle_s=0)
    stats = upstream.stats("binance")
    assert [answer.status_code for answer in answers] == [429] * 3
    assert 20 < int(answers[0].headers["Retry-After"]) <= 30
    assert (stats["throttled"], stats["violations"], stats["max_in_window"]) == (3, 0, 0)
    assert klines(http, upstream, limit=1).status_code == 200


def test_bare_throttle(http, upstream):
    """A 429 that says nothing."""
    upstream.control("asana", throttle_bare_s=5)
    answer = asana(http, upstream, project="1")
    assert answer.status_code == 429
    assert answer.headers.keys() == {"content-type", "content-length", "date"}


def test_reset(http, upstream):
    """The connection is reset without an answer, and the server lives on."""
    upstream.control("binance", reset_rate=1)
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        klines(http, upstream, limit=1)
    upstream.control("binance", reset_rate=0)
    assert klines(http, upstream, limit=1).status_code == 200
    assert upstream.stats("binance")["by_status"] == {"reset": 1, "200": 1}


def test_truncated_json(http, upstream):
    """Half the body arrives as if it were whole."""
    upstream.control("binance", truncate_rate=1)
    answer = klines(http, upstream, limit=5)
    assert (answer.status_code, int(answer.headers["Content-Length"])) == (200, len(answer.content))
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.content)


def test_html_and_null(http, upstream):
    """A 200 is no promise."""
    upstream.control("coinbase", html_200=True)
    answer = candles(http, upstream, granularity=60)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html")
    upstream.control("coinbase", html_200=False, null_200=True)
    assert candles(http, upstream, granularity=60).json() is None


def test_drip(http, upstream):
    """A byte at a time never trips a read timeout that is longer than one byte's wait."""
    upstream.control("binance", drip=0.05)
    began = time.monotonic()
    answer = http.get(upstream.base("binance") + "/api/v3/time", timeout=1)
    assert answer.json() == {"serverTime": NOW * 1000}
    assert time.monotonic() - began > 0.05 * len(answer.content)


def test_drip_ends_with_its_reader(http, upstream):
    """Who hangs up frees the server at the next byte."""
    upstream.control("binance", drip=0.05)
    answer = http.get(
        upstream.base("binance") + "/api/v3/klines",
        stream=True,
        timeout=5,
        params={"symbol": "BTCUSDT", "interval": "1m"},
    )
    assert upstream.stats("binance")["in_flight"] == 1
    answer.close()
    deadline = time.monotonic() + 5
    while upstream.stats("binance")["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert upstream.stats("binance")["in_flight"] == 0


def test_stats_and_arrivals(http, upstream):
    """Every request is in the counts, the arrivals and the last minute."""
    for _ in range(3):
        klines(http, upstream, limit=1)
    stats, arrivals = upstream.stats("binance"), upstream.arrivals("binance")
    assert stats["requests"] == len(arrivals) == sum(stats["last_minute"]) == 3
    assert arrivals == sorted(arrivals)
    assert abs(arrivals[-1] - time.monotonic()) < 10
    assert stats["first_at"] <= stats["last_at"]
    assert upstream.stats("coinbase")["requests"] == 0


def test_all_stats_at_once(http, upstream):
    """One question for all APIs."""
    body = http.get(f"{upstream.url}/control", timeout=5).json()
    assert body.keys() == {api.name for api in ALL}


@pytest.mark.parametrize("wanted", [{"latencies": 3}, {"error_rate": 2}, {"limits": {"weight": 1}}])
def test_control_rejects_what_it_does_not_know(upstream, wanted):
    """A typing error in a test is not a test without faults."""
    with pytest.raises(ValueError, match=r"unknown|between 0 and 1"):
        upstream.control("binance", **wanted)


@pytest.mark.parametrize(
    "path", ["/", "/binance/klines", "/binance/api/v3/depth", "/bitfinex/0", "/control/bitfinex"]
)
def test_unknown_paths(http, upstream, path):
    """Only what is used is there."""
    assert http.get(upstream.url + path, timeout=5).status_code == 404


def test_data_is_the_same_in_another_process():
    """Nothing depends on hash seeds, the day or what was asked before."""
    code = (
        "from tests.upstream import data; print([data.kline('ETHUSDT', 1700000040000, 60000),"
        "data.candles('ETH-USD', 1700000000, 1700003600, 60), data.tasks('42', 1.77e9)])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "9"},
    ).stdout
    here = [
        data.kline("ETHUSDT", 1700000040000, 60000),
        data.candles("ETH-USD", 1700000000, 1700003600, 60),
        data.tasks("42", 1.77e9),
    ]
    assert printed.strip() == str(here)
    assert here[0][1:6] != data.kline("BTCUSDT", 1700000040000, 60000)[1:6]


def test_tasks_move_on():
    """Later, tasks have been edited; none was lost, and an untouched one is unchanged."""
    project = data.PROJECTS[0]
    before = {task["gid"]: task for task in data.tasks(project, NOW)}
    after = {task["gid"]: task for task in data.tasks(project, NOW + 7200)}
    edited = {gid for gid in before if after[gid]["modified_at"] > before[gid]["modified_at"]}
    assert before.keys() <= after.keys()
    assert 0 < len(edited) < len(before)
    assert all(after[gid] == before[gid] for gid in before.keys() - edited)


def test_a_port_in_use_is_an_error(server):
    """A second server on the same port says so at once instead of hanging."""
    with pytest.raises(RuntimeError, match="did not start"):
        Upstream(port=int(server.url.rpartition(":")[2]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_quietly(number):
    """Ctrl-C and a plain kill leave no traceback."""
    command = [sys.executable, "-m", "tests.upstream"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("upstream http://127.0.0.1:")
        process.send_signal(number)
        assert process.communicate(timeout=10) == ("", "")


def test_dies_with_its_parent():
    """SIGKILL of the owner leaves no process behind."""
    code = (
        "import time; from tests.upstream.client import Upstream; u = Upstream();"
        "print(u.process.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(owner.stdout.readline())
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 5
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
