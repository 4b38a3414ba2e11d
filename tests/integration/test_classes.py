"""Collectors that are classes: in the fleet, and by themselves."""

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from resilience.errors import ConfigurationError
from tasks import backfill, schedules
from tasks.base import BaseCollector, _spec
from tasks.collectors.registry import endpoint_of, load
from tasks.models import records
from tasks.models import schedules as schedules_table
from tasks.models import units as units_table
from tasks.runs import close, plan, request
from tasks.testing import FakeCollector

from .classy import Ticker, ticker
from .conftest import connect, on_both

DATABASES = ("sqlite",)
QUEUE = "collect.ticker"
DAY = datetime(2026, 1, 5, tzinfo=UTC)
ONE = b'{"rows": [{"id": 1, "price": 0.10}, {"id": 2}]}'


@pytest.fixture
def prices(fleet, scripted):
    """The collector in the fleet, its server answering with two rows."""
    fleet.configure(
        {"ticker": {"base_url": scripted.url, "retry": {"base_s": 0.01}}},
        PENSTOCK_COLLECTORS="tests.integration.classy:ticker",
        TICKER_KEY="ticker-secret-key",
    )
    connect(fleet.inbox.app)
    scripted.answers = [(200, {}, ONE)]
    return scripted


def stored(fleet):
    return [row["data"] for row in fleet.installation.rows(records)]


@on_both
def test_a_collection_is_a_unit(fleet, prices, inbox):
    """Its rows and its outcome, by one guarded call with the bearer token."""
    run = fleet.run("ticker.collect", None)
    assert inbox.deliver(QUEUE) == ("SUCCESS", {"unit": 0, "outcome": "stored", "records": 2})
    assert stored(fleet) == [{"id": 1, "price": 0.1}, {"id": 2}]
    [(path, headers)] = prices.requests
    assert (path, headers["Authorization"]) == ("/prices?of=BTC", "Bearer ticker-secret-key")
    row = fleet.unit(run)
    assert (row["calls"], row["records"]) == (1, 2)


def test_a_backfill_is_cut_into_days(fleet, prices, inbox):
    """Each a unit, which fails alone; the last one is shorter."""
    prices.answers = [(200, {}, b'[{"id": 1}]'), (404, {}, b"{}"), (200, {}, b'[{"id": 3}]')]
    run = request(
        backfill.order(endpoint_of("ticker.collect"), DAY, datetime(2026, 1, 7, 12, tzinfo=UTC), None)
    )
    plan(run=run)
    inbox.drain(f"{QUEUE}.backfill")
    assert [path for path, _ in prices.requests] == [
        "/past?from=5&days=1.0&batch_size=100",
        "/past?from=6&days=1.0&batch_size=100",
        "/past?from=7&days=0.5&batch_size=100",
    ]
    assert [row["outcome"] for row in fleet.units(run)] == ["stored", "failed", "stored"]
    assert [row["id"] for row in stored(fleet)] == [1, 3]


def test_a_failure_that_it_tells_of(fleet, prices, inbox, caplog):
    """Its rows are not kept, and the unit says why."""
    prices.answers = [(200, {}, b'{"rows": [{"id": 1}], "error": "only a part"}')]
    run = fleet.run("ticker.collect", None)
    assert inbox.deliver(QUEUE)[1]["outcome"] == "failed"
    row = fleet.unit(run)
    assert (row["reason"], row["error"]["message"]) == ("collection", "ticker: only a part")
    assert stored(fleet) == []
    assert "by a mistake" not in caplog.text


def test_a_failed_call_is_tried_again(fleet, prices, inbox):
    """By the rules of units, with the numbers of its config."""
    prices.answers = [(503, {}, b"{}"), (200, {}, ONE)]
    run = fleet.run("ticker.collect", None)
    assert inbox.deliver(QUEUE)[0] == "RETRY"
    assert fleet.unit(run)["attempts"] == 1
    assert inbox.deliver(QUEUE)[1]["records"] == 2
    assert ticker.api.retry.attempts == 2
    assert (ticker.api.breaker.failures, ticker.api.breaker.open_for.total_seconds()) == (5, 300)
    assert ticker.api.timeout_s == 30
    assert [limit.spec for limit in ticker.api.limits] == ["600/1m"]


def test_status_counts_what_the_fleet_has_done(fleet, prices, inbox):
    """Runs, calls, rows and the last error, with circuit and limit; JSON-safe."""
    fleet.run("ticker.collect", None)
    inbox.drain(QUEUE)
    prices.answers = [(404, {}, b"gone")]
    run = fleet.run("ticker.collect", None)
    inbox.drain(QUEUE)
    for each in (1, run):
        close(each)
    status = ticker.get_status()
    assert status["status"] == "healthy"
    assert status["total_requests"] == 2
    assert (status["successful_requests"], status["failed_requests"]) == (1, 1)
    assert (status["data_points_collected"], status["collections_completed"]) == (2, 2)
    assert "gone" in status["last_error"]
    assert status["started_at"] < status["last_success"] < status["last_collection"]
    assert status["total_runtime"] > 0
    health = ticker.health_check()
    assert list(health) == [
        "healthy", "status", "detail", "collector_name", "is_running", "circuit_breaker", "rate_limiter", "statistics",
    ]  # fmt: skip
    assert (health["healthy"], health["is_running"], health["statistics"]) == (True, False, status)
    assert health["circuit_breaker"]["circuit"] == "ticker.collect"
    assert health["rate_limiter"]["limit"] == "600/1m"
    json.dumps(health)


def test_start_and_stop(fleet, prices, inbox):
    """They enable and disable the schedule; stop waits for units that run, for as long as it is told."""
    schedules.sync()
    assert not ticker.is_running
    ticker.start()
    assert ticker.is_running
    [row] = fleet.installation.rows(schedules_table)
    assert (row["name"], row["every_s"]) == ("ticker.collect", 30)
    fleet.run("ticker.collect", None)
    assert ticker.stop()
    assert not ticker.is_running
    fleet.installation.change(units_table, state="running")
    assert not ticker.stop(timeout=0)
    threading.Timer(0.1, fleet.installation.change, (units_table,), {"state": "waiting"}).start()
    assert ticker.stop(timeout=20)


def test_without_workers_but_with_the_fleets_guard(fleet, prices):
    """`with` runs it here: retried by the rules, stored, and counted."""
    prices.answers = [(503, {}, b"{}"), (200, {}, ONE), (200, {}, b'[{"id": 7}]')]
    mine = Ticker(collector_name="ticker", api_url=prices.url, api_key="TICKER_KEY", config=ticker.config)
    with mine:
        done = mine.collect()
        assert (done["success"], done["data_points"], done["errors"]) == (True, 2, [])
        past = mine.backfill(DAY, datetime(2026, 1, 6, tzinfo=UTC))
        assert past["time_range"] == {"start": "2026-01-05T00:00:00Z", "end": "2026-01-06T00:00:00Z"}
        assert (past["success"], past["data_points"]) == (True, 1)
        status = mine.get_status()
        assert (status["total_requests"], status["failed_requests"], status["collections_completed"]) == (
            3,
            1,
            2,
        )
    assert [row["id"] for row in stored(fleet)] == [1, 2, 7]


def test_calls_and_rows_outside_of_a_run(fleet, prices):
    """Inside of `with`, for trying things out."""
    prices.answers = [(200, {}, b'{"price": 0.10}'), (204, {}, b""), (404, {}, b"{}")]
    mine = Ticker(collector_name="ticker", api_url=prices.url, api_key="TICKER_KEY", config=ticker.config)
    with mine:
        assert mine._make_request("/price") == {"price": Decimal("0.10")}
        assert mine._make_request("/nothing") is None
        with pytest.raises(Exception, match="answered 404"):
            mine._make_request("/gone")
        assert mine.store([{"id": 3}]) == 1
        assert (mine.get_status()["total_requests"], mine.get_status()["failed_requests"]) == (3, 1)
    assert [row["id"] for row in stored(fleet)] == [3]
    with pytest.raises(ConfigurationError, match="ticker is not connected"):
        mine._make_request("/price")


def test_a_mistake_is_told_and_logged(fleet, prices, caplog):
    """The loop of a program goes on."""

    class Broken(Ticker):
        def collect_data(self):
            raise TypeError("no such thing")

    mine = Broken(collector_name="broken", api_url=prices.url, api_key="TICKER_KEY")
    with mine:
        assert mine.collect()["errors"] == ["no such thing"]
        assert mine.backfill(DAY, DAY)["data_points"] == 0
    assert "broken.collect failed by a mistake" in caplog.text


def test_a_day_that_fails_is_told(fleet):
    """The others go on."""

    class OneBadDay(FakeCollector):
        def backfill_historical(self, start_time, end_time, **kwargs):
            if start_time.day == 6:
                return {"success": False, "errors": ["holiday"]}
            return super().backfill_historical(start_time, end_time, **kwargs)

    with OneBadDay(collector_name="days", backfill_points=3) as fake:
        done = fake.backfill(DAY, datetime(2026, 1, 8, tzinfo=UTC))
    assert (done["success"], done["data_points"]) == (False, 6)
    assert done["errors"] == ["2026-01-06 00:00: days: holiday"]


def test_what_is_wrong_is_said():
    """Where the collector is made, or named."""
    with pytest.raises(ValueError, match="api_key is missing"):
        Ticker(collector_name="ticker")
    with pytest.raises(ConfigurationError, match="takes the name of a secret"):
        Ticker(collector_name="ticker", api_key="k-4711")
    with pytest.raises(ConfigurationError, match=r"classy:Ticker is a class: make a collector of it"):
        load(["tests.integration.classy:Ticker"], {})
    with pytest.raises(TypeError, match="abstract"):
        BaseCollector(collector_name="x")
    with pytest.raises(ConfigurationError, match=r"x\.collect: key is missing"):
        type("Keyless", (FakeCollector,), {"key": ()})(collector_name="x")
    with pytest.raises(ConfigurationError, match="rate_limit is 0"):
        Ticker(collector_name="ticker", api_key="TICKER_KEY", rate_limit=0)
    assert [_spec(rate) for rate in (10.0, 1, 0.5, 0.0001)] == ["600/1m", "60/1m", "1800/1h", "1/1h"]


def test_without_any_server(tmp_path):
    """A script of its own: no Redis is known, and the database is made."""
    script = (
        "from tasks.testing import FakeCollector\n"
        "with FakeCollector() as fake:\n"
        "    print(fake.collect()['data_points'], fake.is_running, fake.stop())\n"
        "print(FakeCollector().get_status()['data_points_collected'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"PENSTOCK_STATE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "10 False True\n0\n"), done.stderr
    assert (tmp_path / "penstock.db").exists()
