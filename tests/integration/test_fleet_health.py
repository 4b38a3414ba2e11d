"""Tiers, health and probes of several processes that share one Redis; each has a registry of its own."""

import time
from datetime import timedelta

import pytest

from resilience.circuits import Circuits
from resilience.errors import ServerError
from resilience.health import get_system_health
from resilience.health_monitor import HealthMonitor, Probe
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Limit
from resilience.store.redis import RedisStore
from resilience.tiers import Tiers

POLICY = BreakerPolicy(failures=3, open_for=timedelta(seconds=60))


class Process:
    """What one process of the fleet has: its own objects, and the clock that a test moves."""

    def __init__(self, url, world):
        self.circuits = Circuits(RedisStore(url, now_us=lambda: world["now_us"]), policy=POLICY)
        self.world, self.called = world, []
        ways = {"best": self.best, "other": lambda: "other"}
        self.tiers = Tiers(
            "data", ways, api="shop", circuits=self.circuits, clock=lambda: world["now_us"] / 1e6
        )
        self.limiter = RateLimiter("calls", Limit("60/1m"), api="shop", store=self.circuits.store)

    def best(self):
        self.called.append("best")
        if self.world["away"]:
            raise ServerError("away")
        return "best"

    def monitor(self, budget):
        return HealthMonitor(
            self.circuits,
            [Probe(self.circuits.get("data.best", api="shop"), self.best)],
            budget=Limit(budget),
        )


@pytest.fixture
def world():
    return {"now_us": time.time_ns() // 1000, "away": False}


@pytest.fixture
def fleet(redis_url, world):
    made = [Process(redis_url, world) for _ in range(4)]
    made[0].circuits.store.mark_fresh(["shop"])
    yield made
    for each in made:
        each.circuits.store.close()


def test_what_one_learns_all_know(fleet, world):
    """Three failures, whoever has them, and nobody calls the best tier; when it is well all are back."""
    world["away"] = True
    assert [each.tiers.call() for each in fleet] == ["other"] * 4
    assert [each.called for each in fleet] == [["best"], ["best"], ["best"], []]
    assert get_system_health(fleet[3].circuits)["circuits"]["shop/data.best"]["status"] == "circuit_open"
    world["away"] = False
    world["now_us"] += 61_000_000
    assert [each.tiers.call() for each in fleet] == ["best"] * 4
    assert get_system_health(fleet[0].circuits)["status"] == "healthy"


def test_limits_of_the_fleet(fleet):
    """A 429 that one process met stands in the health of another."""
    fleet[0].limiter.record_429(30)
    seen = get_system_health(fleet[1].circuits, [fleet[1].limiter])
    assert (seen["detail"], seen["healthy"]) == ("rate_limited", True)
    assert seen["limits"]["shop/calls/all"]["limited_until"] is not None


def test_the_fleet_has_one_budget_of_probes(fleet, world):
    """Six a minute, and not six for each process."""
    monitors = [each.monitor("6/1m") for each in fleet]
    for _ in range(60):
        for monitor in monitors:
            monitor.check()
        world["now_us"] += 1_000_000
    assert 5 <= sum(len(each.called) for each in fleet) <= 6
