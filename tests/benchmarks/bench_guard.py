"""P1 to P4: what the guard costs a call, against pybreaker and `limits` as people combine them."""

import asyncio
import importlib
import importlib.util
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import pybreaker
import redis
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter

from resilience.breaker import CircuitBreaker
from resilience.guard import Ask, CallResult, Guard, Kind
from resilience.guard_async import AsyncGuard
from resilience.limiter import RateLimiter
from resilience.policy import Limit
from resilience.store.memory import MemoryStore
from resilience.store.redis import RedisStore
from tests.benchmarks.crowd import Crowd
from tests.benchmarks.measure import Result, interleaved
from workers.embedded import EmbeddedRedis

GOOD = CallResult(Kind.SUCCESS, 0.001)
CALLS = 50
PROCESSES = 16


class Guarded:
    """A call through one circuit and one rate limit that never holds it back."""

    def __init__(self, store):
        store.mark_fresh(["bench"])
        self.guard = Guard(store)
        limit = RateLimiter("r", Limit("6000000/1m", used="X-Used"), api="bench", key="ip")
        self.ask = Ask("bench", (CircuitBreaker(name="c", api="bench", store=store),), (limit,))
        self.lease = self.guard.admit(self.ask).lease

    def call(self):
        self.guard.settle(self.guard.admit(self.ask).lease, GOOD)

    def page(self):
        _, verdict = self.guard.settle_and_admit(self.lease, GOOD, self.ask)
        self.lease = verdict.lease


def each_us(action):
    """Microseconds of one call, over some."""
    began = time.perf_counter()
    for _ in range(CALLS):
        action()
    return (time.perf_counter() - began) / CALLS * 1e6


class Awaited:
    """The same call, awaited in a loop of its own: one after the other, or by tasks that ask at once."""

    def __init__(self, guarded, loops=asyncio):
        self.ask, self.loop = guarded.ask, loops.new_event_loop()
        self.guard = AsyncGuard(guarded.guard.store)

    async def calls(self, number):
        for _ in range(number):
            await self.guard.settle((await self.guard.admit(self.ask)).lease, GOOD)

    def each_us(self, tasks=1):
        """Microseconds of one call, over some."""

        async def all_tasks():
            await asyncio.gather(*(self.calls(CALLS // tasks) for _ in range(tasks)))

        began = time.perf_counter()
        self.loop.run_until_complete(all_tasks())
        return (time.perf_counter() - began) / CALLS * 1e6

    def close(self):
        self.loop.run_until_complete(self.guard.store.close())
        self.loop.close()


class Recorded(RedisStore):
    """Keeps its commands as they went to Redis."""

    def __init__(self, url):
        super().__init__(url)
        self.sent = []

    def _run(self, script, command):
        self.sent.append(command)
        return super()._run(script, command)


def commands_of(url):
    """What goes to Redis for a guarded call: admit, then settle."""
    store = Recorded(url)
    guarded = Guarded(store)
    guarded.call()  # Redis knows the scripts now
    store.sent.clear()
    guarded.call()
    store.close()
    admit, settle = store.sent
    return admit, settle


def bare_calls(url):
    """The same two commands over a socket, ready made, without the guard and without a client."""
    connection = RedisStore(url)._pool.make_connection()
    connection.connect()
    connection._sock.settimeout(None)
    admit, settle = commands_of(url)

    def ask(command, answer):
        connection._sock.sendall(command)
        assert connection._sock.recv(4096).startswith(answer)

    def call():
        ask(admit, b"$40\r\n")
        ask(settle, b":0\r\n")

    return call


def ways_of(url):
    """What each of several processes does."""
    return {"guarded": Guarded(RedisStore(url)).call, "bare": bare_calls(url)}


def scripts_us(client):
    """What Redis has spent on scripts until now."""
    return client.info("commandstats")["cmdstat_evalsha"]["usec"]


def pybreaker_in(client):
    storage = pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, client, namespace="bench")
    return pybreaker.CircuitBreaker(state_storage=storage)


def eight_threads(call):
    """Milliseconds in which eight threads make a call of 50 ms each."""
    threads = [threading.Thread(target=call, args=(lambda: time.sleep(0.05),)) for _ in range(8)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) * 1e3


def measure(quick):
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder) / "redis") as server:
        return [
            *calls(server.url, 10 if quick else 200),
            *processes(server.url, *((2, 0.3) if quick else (9, 1.0))),
            *threads(server.url, 2 if quick else 7),
        ]


def calls(url, rounds):
    """P1 to P3, a call that does nothing."""
    client, store = redis.Redis.from_url(url), RedisStore(url)
    shared, own = Guarded(store), Guarded(MemoryStore())
    theirs, simple = pybreaker_in(client), pybreaker.CircuitBreaker()
    limiter, limit = SlidingWindowCounterRateLimiter(storage_from_string(url)), parse("6000000/minute")

    def combined():
        assert limiter.hit(limit, "bench")
        theirs.call(int)

    served = []

    def call_us():
        before = scripts_us(client)
        taken = each_us(shared.call)
        served.append((scripts_us(client) - before) / CALLS)
        return taken

    actions = {
        "peer": combined,
        "page": shared.page,
        "simple": lambda: simple.call(int),
        "memory": own.call,
    }
    loops = {"awaited": "asyncio", "uvloop": "uvloop"}
    waiting = {
        name: Awaited(shared, importlib.import_module(each))
        for name, each in loops.items()
        if importlib.util.find_spec(each)
    }
    timed = {name: lambda do=do: each_us(do) for name, do in actions.items()}
    timed |= {"call": call_us, "tasks": lambda: waiting["awaited"].each_us(tasks=10)}
    timed |= {name: each.each_us for name, each in waiting.items()}
    us = interleaved(timed, rounds)
    for each in waiting.values():
        each.close()
    store.close()
    client.close()
    peer = "limits + pybreaker, Redis"
    return [
        Result("P1", "guarded call, Redis", us["call"], us["peer"], peer, "µs", at_most=0.5),
        Result("P1", "of it, the server's own time", served, us["call"], "the whole call", "µs"),
        Result("P2", "guarded page, Redis", us["page"], us["peer"], peer, "µs", at_most=0.35),
        *(
            Result("P1", what, us[name], us["call"], "blocking", "µs", at_most=1.3)
            for name, what in {"awaited": "the same, awaited", "uvloop": "the same, awaited, uvloop"}.items()
            if name in us
        ),
        Result("P1", "the same, 10 tasks at once", us["tasks"], us["call"], "blocking", "µs"),
        Result(
            "P3",
            "guarded call, memory",
            us["memory"],
            [0.0] * rounds,
            f"pybreaker takes {median(us['simple']):.0f}",
            "µs",
            at_most=20,
            compared="difference",
        ),
    ]


def processes(url, rounds, length_s):
    """P1, where many ask at once: what the guard leaves of what Redis can do."""
    with Crowd(PROCESSES, ways_of, url) as crowd:
        ways = {way: lambda way=way: crowd.rate(way, length_s) for way in ("guarded", "bare")}
        found = interleaved(ways, rounds)
    what, peer = f"guarded calls, {PROCESSES} processes at once", "its two scripts over bare sockets"
    return [Result("P1", what, found["guarded"], found["bare"], peer, "calls/s", at_least=0.85)]


def threads(url, rounds):
    """P4: a breaker must not hold its lock during the call."""
    client, store = redis.Redis.from_url(url), RedisStore(url)
    ms = interleaved(
        {
            "none": lambda: eight_threads(lambda work: work()),
            "ours": lambda: eight_threads(CircuitBreaker(name="t", api="bench", store=store).call),
            "pybreaker": lambda: eight_threads(pybreaker_in(client).call),
        },
        rounds,
    )
    store.close()
    client.close()
    what = "8 threads, 50 ms each, one breaker in Redis"
    return [
        Result("P4", what, ms["ours"], ms["none"], "no breaker", "ms", at_most=1.2),
        Result("P4", what, ms["ours"], ms["pybreaker"], "pybreaker", "ms"),
    ]
