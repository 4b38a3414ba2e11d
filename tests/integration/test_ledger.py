"""Budgets and bans outlive Redis: SQL says what was spent, and what is forbidden."""

import pytest
import redis

from resilience.errors import BannedError
from resilience.guard import Ask, CallResult, Go, Guard, Wait
from resilience.limiter import RateLimiter
from resilience.policy import Limit
from resilience.store.memory import MemoryStore
from resilience.store.redis import RedisStore
from tasks.ledger import SqlLedger
from tests.integration.conftest import on_both

MORNING_US = 1_700_035_200_000_000  # 2023-11-15, 08:00 UTC
DAY_US = 86_400_000_000


class World:
    """Two processes on one Redis and one database, at a time of our choosing."""

    def __init__(self, url):
        self.url, self.now_us = url, MORNING_US
        self.stores = [RedisStore(url, now_us=lambda: self.now_us) for _ in range(2)]
        self.guards = [Guard(store, SqlLedger()) for store in self.stores]
        self.limiter = RateLimiter("day", Limit("250/1d"), api="a", key="account", weight_max=5)

    def ask(self, weight=1, n=0):
        return self.guards[n].admit(Ask("a", (), (self.limiter,), weight))

    def spend(self, most=1000):
        """Call until the budget is used up: how much was spent."""
        for spent in range(most):
            verdict = self.ask(n=spent % 2)
            if not isinstance(verdict, Go):
                return spent, verdict
        return most, None

    def lose_redis(self):
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def close(self):
        for store in self.stores:
            store.close()


@pytest.fixture
def world(migrated_url, installation, each_redis_url):
    world = World(each_redis_url)
    world.lose_redis()
    yield world
    world.close()


@on_both
def test_budget_is_exact(world):
    """All of it, and not one more, by whoever asks; then it waits for midnight."""
    spent, verdict = world.spend()
    assert spent == 250
    assert (verdict.reason, verdict.seconds) == ("budget", 16 * 3600)
    world.now_us = MORNING_US - MORNING_US % DAY_US + DAY_US
    assert world.spend()[0] == 250


@on_both
def test_spent_budget_survives_flushall(world):
    """Whenever Redis is lost, no more than a block is given up, and nothing is spent twice."""
    total = 0
    for _ in range(4):
        total += world.spend(most=40)[0]
        world.lose_redis()
    spent, verdict = world.spend()
    total += spent
    assert 250 - 5 * 3 <= total <= 250
    assert verdict.reason == "budget"
    reading = world.stores[0].limits([world.limiter.spec])[0]
    assert (reading.used, reading.left) == (250, 0)


@on_both
def test_restored_budget_is_shown(world):
    """After a loss the first question tells Redis what was spent."""
    world.spend(most=100)
    world.lose_redis()
    world.ask()
    assert 101 <= world.stores[0].limits([world.limiter.spec])[0].used <= 104


@on_both
def test_heavy_calls_fit_whole(world):
    """A call of weight five is not started on the last three."""
    starts = 0
    while isinstance(verdict := world.ask(weight=4), Go):
        starts += 1
    assert starts == 62
    assert verdict.reason == "budget"


@on_both
def test_ban_survives_flushall(world):
    """Nobody of the address calls before the ban is over, in whatever Redis."""
    lease = world.ask().lease
    world.guards[0].settle(lease, CallResult.of(BannedError(retry_after_s=7200), latency_s=0.1))
    world.lose_redis()
    verdict = world.ask(n=1)
    assert isinstance(verdict, Wait)
    assert (verdict.reason, verdict.key, round(verdict.seconds)) == ("ban", "account", 7200)


def test_first_ban_after_a_loss_keeps_growing(world):
    """How often it happened is remembered too."""
    for minutes in (2, 4):
        lease = world.ask().lease
        world.guards[0].settle(lease, CallResult.of(BannedError(), latency_s=0.1))
        world.lose_redis()
        assert round(world.ask().seconds) == minutes * 60
        world.now_us += minutes * 60_000_000


def test_memory_store_with_a_ledger(migrated_url, installation):
    """The hook is the guard's, whatever the store."""
    now = MORNING_US
    limiter = RateLimiter("hour", Limit("30/1d"), api="a", key="account")
    for expected in (30, 0):
        guard = Guard(MemoryStore(now_us=lambda: now), SqlLedger())
        starts = sum(isinstance(guard.admit(Ask("a", (), (limiter,))), Go) for _ in range(40))
        assert starts == expected
