"""How well circuits are, together and each, and what probes find out."""

import asyncio
import json
import logging
import threading
from datetime import timedelta

import pytest

from resilience.circuits import Circuits
from resilience.errors import ConfigurationError, NotFoundError, ServerError, StoreUnavailableError
from resilience.health import CollectorStatus, Detail, get_system_health, health
from resilience.health_monitor import HealthMonitor, Probe
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Limit
from resilience.store import CircuitState
from resilience.store.memory import MemoryStore

HEALTHY, DEGRADED, FAILED, CIRCUIT_OPEN = CollectorStatus
POLICY = BreakerPolicy(failures=5, rate=0.9, min_calls=100, open_for=timedelta(seconds=60))
OFTEN = Limit("6000/1m")


class World:
    """Circuits with a clock of their own."""

    def __init__(self):
        self.now_us = 1_700_000_000_000_000
        store = MemoryStore(now_us=lambda: self.now_us)
        self.circuits = Circuits(store, policy=POLICY)
        self.orders, self.stock = self.circuit("orders"), self.circuit("stock")
        self.says, self.called, self.changes = None, 0, []

    def circuit(self, name):
        return self.circuits.get(name, api="shop")

    def wait(self, seconds):
        self.now_us += int(seconds * 1e6)

    def call(self, breaker, *results):
        for good in results:
            breaker.record_success() if good else breaker.record_failure(ServerError())

    def status(self, name="orders"):
        return health(self.circuits)[f"shop/{name}"].status

    def ping(self):
        self.called += 1
        if self.says is not None:
            raise self.says

    def monitor(self, *, limits=(), budget=OFTEN, **options):
        probe = Probe(self.orders, self.ping, limits)
        told = lambda before, now: self.changes.append((before.status, now.status))  # noqa: E731
        return HealthMonitor(self.circuits, [probe], budget=budget, on_change=told, **options)


@pytest.fixture
def world():
    return World()


# a circuit


@pytest.mark.parametrize(
    ("good", "bad", "status"),
    [
        (0, 0, HEALTHY),
        (20, 1, HEALTHY),
        (19, 1, HEALTHY),
        (18, 1, DEGRADED),
        (4, 4, DEGRADED),
        (3, 4, FAILED),
    ],
)
def test_status_goes_by_the_share_of_successes(world, good, bad, status):
    """95 % is well, less than half is failed."""
    world.call(world.orders, *[False] * bad, *[True] * good)
    assert world.status() is status


def test_an_open_circuit_and_its_recovery(world):
    """Half-open is degraded until it is closed."""
    world.call(world.orders, *[False] * 5)
    assert world.status() is CIRCUIT_OPEN
    world.wait(61)
    assert world.status() is DEGRADED
    for _ in range(2):
        world.orders.call(lambda: None)
    assert world.status() is HEALTHY


def test_a_bad_day_is_remembered_but_not_held_against_it(world):
    """The lifetime score stays low; the status goes by the window."""
    world.call(world.orders, *[False] * 4, True)
    world.wait(3600)
    world.call(world.orders, True)
    seen = health(world.circuits)["shop/orders"]
    assert (seen.status, seen.health_recent) == (HEALTHY, 1.0)
    assert seen.health_score == pytest.approx(2 / 6)


def test_a_circuit_held_open_is_paused(world):
    """Not broken: somebody wants it so."""
    world.orders.force(CircuitState.FORCED_OPEN, by="ops", why="maintenance")
    seen = health(world.circuits)["shop/orders"]
    assert (seen.status, seen.detail, seen.healthy) == (CIRCUIT_OPEN, Detail.PAUSED, False)


# the system


def test_the_system_is_as_well_as_what_goes_on(world):
    """One open circuit degrades it; only when none is left is it down."""
    assert get_system_health(world.circuits)["status"] == "healthy"
    world.call(world.orders, *[False] * 5)
    seen = get_system_health(world.circuits)
    assert (seen["healthy"], seen["status"]) == (True, "degraded")
    assert {name: each["status"] for name, each in seen["circuits"].items()} == {
        "shop/orders": "circuit_open",
        "shop/stock": "healthy",
    }
    world.call(world.stock, *[False] * 5)
    seen = get_system_health(world.circuits)
    assert (seen["healthy"], seen["status"]) == (False, "circuit_open")


def test_the_system_as_json(world):
    """Everything a dashboard needs, and an empty program is well."""
    assert (
        json.loads(json.dumps(get_system_health(world.circuits)))["circuits"]["shop/stock"]["health_score"]
        == 1.0
    )
    assert get_system_health(Circuits())["status"] == "healthy"


def test_limits_are_part_of_it(world):
    """An API that wants to hear nothing is rate limited, and so are its circuits; it is not ill."""
    limits = [
        RateLimiter(name, Limit("60/1m"), api=name, store=world.circuits.store) for name in ("shop", "mail")
    ]
    seen = get_system_health(world.circuits, limits)
    assert (seen["detail"], seen["limits"]["shop/shop/all"]["limited_until"]) == (None, None)
    limits[0].record_429(30)
    seen = json.loads(json.dumps(get_system_health(world.circuits, limits)))
    assert (seen["healthy"], seen["status"], seen["detail"]) == (True, "healthy", "rate_limited")
    assert seen["circuits"]["shop/orders"]["detail"] == "rate_limited"
    assert seen["limits"]["shop/shop/all"]["limited_until"] == "2023-11-14T22:13:50Z"
    assert seen["limits"]["mail/mail/all"]["limited_until"] is None
    world.wait(31)
    assert get_system_health(world.circuits, limits)["detail"] is None


# the monitor


def test_a_probe_finds_a_service_that_is_away(world):
    """Nobody else has called; the change is told once."""
    monitor = world.monitor()
    assert monitor.check()["shop/orders"].status is HEALTHY
    world.says = ServerError("away")
    for _ in range(9):
        monitor.check()
    assert world.status() is CIRCUIT_OPEN
    assert world.changes[-1] == (FAILED, CIRCUIT_OPEN)
    assert len(world.changes) == len(set(world.changes))
    assert world.called == 6  # behind an open circuit nothing is called


def test_the_first_round_tells_what_it_finds(world):
    """One failed probe of a circuit that was well before."""
    world.says = ServerError("away")
    world.monitor().check()
    assert world.changes == [(HEALTHY, FAILED)]


def test_a_probe_brings_a_circuit_back(world):
    """Two that succeed close it, without any other call."""
    monitor = world.monitor()
    world.call(world.orders, *[False] * 5)
    monitor.check()
    assert world.called == 0
    world.wait(61)
    monitor.check()
    monitor.check()
    assert world.status() is HEALTHY
    assert world.changes == [(CIRCUIT_OPEN, DEGRADED), (DEGRADED, HEALTHY)]


def test_the_budget_of_probes_is_small_and_shared(world):
    """Four a minute, however many monitors of a fleet check however often."""
    monitors = [world.monitor(budget=Limit("4/1m")) for _ in range(5)]
    for _ in range(60):
        for monitor in monitors:
            monitor.check()
        world.wait(1)
    assert 3 <= world.called <= 4


def test_a_probe_counts_in_the_limits_and_takes_no_place(world):
    """It is left out where there is no room, and whoever comes next does not wait for it."""
    limiter = RateLimiter("calls", Limit("60/1m"), api="shop", key="api")
    monitor = world.monitor(limits=(limiter,))
    for _ in range(10):
        monitor.check()
    assert world.called == 1
    world.wait(1.1)
    monitor.check()
    assert world.called == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [(TypeError("bug"), FAILED), (ConnectionResetError(), FAILED), (NotFoundError(), HEALTHY)],
)
def test_what_a_probe_may_raise(world, error, status):
    """What is none of ours is a failure; a service that says 404 is there."""
    world.says = error
    assert world.monitor().check()["shop/orders"].status is status


def test_a_probe_that_hangs_has_failed(world):
    """The round goes on."""
    go = threading.Event()
    monitor = HealthMonitor(world.circuits, [Probe(world.orders, go.wait)], timeout_s=0.01, budget=OFTEN)
    assert monitor.check()["shop/orders"].status is FAILED
    go.set()


def test_the_thread(world):
    """It checks at once and then again, and ends when told."""
    twice = threading.Semaphore(0)
    world.ping = twice.release
    with world.monitor(every_s=0.001) as monitor:
        monitor.start()
        for _ in range(2):
            assert twice.acquire(timeout=10)
            world.wait(60)
    assert not [thread for thread in threading.enumerate() if thread.name == "health"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_watching_in_an_event_loop(world, asynchronous):
    """Until it is cancelled; a probe may be a coroutine function."""
    probed = threading.Event()

    async def ping():
        await asyncio.sleep(0)
        probed.set()

    world.ping = ping if asynchronous else probed.set

    async def main():
        watching = asyncio.create_task(world.monitor().watch())
        assert await asyncio.to_thread(probed.wait, 10)
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching

    asyncio.run(main())


def test_a_coroutine_probe(world):
    """It finds out the same, and is not taken for a success where nobody awaits it."""

    async def ping():
        await asyncio.sleep(0)
        raise ServerError("away")

    world.ping = ping
    monitor = world.monitor()
    assert asyncio.run(monitor.check_async())["shop/orders"].status is FAILED
    assert world.changes == [(HEALTHY, FAILED)]
    with pytest.raises(ConfigurationError, match="has to be awaited: use `check_async`"):
        monitor.check()


def test_a_store_that_is_away_ends_no_monitor(world, monkeypatch, caplog):
    """The next round tries again; whoever checks by hand is told."""
    checked = threading.Semaphore(0)

    def away(*_):
        checked.release()
        raise StoreUnavailableError

    monitor = world.monitor(every_s=0.001)
    monkeypatch.setattr(world.circuits.store, "admit", away)
    with pytest.raises(StoreUnavailableError):
        monitor.check()
    with caplog.at_level(logging.WARNING), monitor:
        for _ in range(3):
            assert checked.acquire(timeout=10)
    assert "health is not known" in caplog.text


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_store_that_dies_during_a_probe(world, monkeypatch, caplog, asynchronous):
    """Is logged, and the other probes of the round are made."""

    def away(_):
        raise StoreUnavailableError("gone")

    monkeypatch.setattr(world.circuits.store, "settle", away)
    probes = [Probe(world.orders, world.ping), Probe(world.stock, world.ping)]
    monitor = HealthMonitor(world.circuits, probes, budget=OFTEN)
    asyncio.run(monitor.check_async()) if asynchronous else monitor.check()
    assert world.called == 2
    assert caplog.text.count("how a call went was not heard: gone") == 2


@pytest.mark.parametrize("error", [None, ServerError("away")])
def test_settling_a_probe_does_not_block_the_loop(world, monkeypatch, error):
    """The loop has to turn for the store to answer."""
    settle, turned = world.circuits.store.settle, threading.Event()

    async def main():
        loop = asyncio.get_running_loop()

        def slow(report):
            loop.call_soon_threadsafe(turned.set)
            assert turned.wait(timeout=5)
            return settle(report)

        monkeypatch.setattr(world.circuits.store, "settle", slow)
        await world.monitor().check_async()

    world.says = error
    asyncio.run(main())
    assert world.orders.view.failure_count == (0 if error is None else 1)


def test_a_probe_that_is_cancelled_says_nothing(world):
    """And gives its permit back."""

    async def main():
        started = asyncio.Event()

        async def hang():
            started.set()
            await asyncio.Event().wait()

        world.ping = hang
        checking = asyncio.create_task(world.monitor().check_async())
        await started.wait()
        lent = world.orders.view.free_permits
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking
        return lent

    world.orders.half_open()
    before = world.orders.view
    assert asyncio.run(main()) == before.free_permits - 1
    assert world.orders.view == before


def test_no_time_between_rounds(world):
    """Would be a busy loop."""
    with pytest.raises(ConfigurationError, match="every_s is 0"):
        world.monitor(every_s=0)
