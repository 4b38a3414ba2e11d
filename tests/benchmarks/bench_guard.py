"""What the guard costs a call, against pybreaker and a bare PING in the same run.

    python -m tests.benchmarks.bench_guard [redis://…]

Without a URL a private Redis is started. The figures are the best of several interleaved rounds, so that
neighbours on the machine disturb all of them alike; read the ratios.
"""

import sys
import tempfile
import threading
import time

import pybreaker
import redis

from resilience.breaker import CircuitBreaker
from resilience.guard import Ask, CallResult, Guard, Kind
from resilience.limiter import RateLimiter
from resilience.policy import Limit
from resilience.store.memory import MemoryStore
from resilience.store.redis import RedisStore
from tests.integration.conftest import SERVERS, start_redis

GOOD = CallResult(Kind.SUCCESS, 0.001)
ROUNDS, CALLS = 100, 50


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


def measured(actions):
    """Microseconds each, the best of the rounds."""
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(ROUNDS):
        for name, action in actions.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                action()
            best[name] = min(best[name], (time.perf_counter() - began) / CALLS * 1e6)
    return best


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


def main(url):
    client = redis.Redis.from_url(url)
    store = RedisStore(url)
    shared, own = Guarded(store), Guarded(MemoryStore())
    theirs, simple = pybreaker_in(client), pybreaker.CircuitBreaker()
    us = measured(
        {
            "PING through redis-py": client.ping,
            "pybreaker, Redis": lambda: theirs.call(int),
            "guarded call, Redis": shared.call,
            "guarded page, Redis": shared.page,
            "pybreaker, memory": lambda: simple.call(int),
            "guarded call, memory": own.call,
        }
    )
    for name, value in us.items():
        print(f"{name:24} {value:8.1f} µs")
    peer, ping = us["pybreaker, Redis"], us["PING through redis-py"]
    for target, name in (("P1", "guarded call, Redis"), ("P2", "guarded page, Redis")):
        print(f"{target}  {name}: {us[name] / peer:.2f} x pybreaker in Redis, {us[name] / ping:.2f} x PING")
    ratio = us["guarded call, memory"] / us["pybreaker, memory"]
    print(f"P3  guarded call, memory: {us['guarded call, memory']:.1f} µs, {ratio:.1f} x pybreaker")
    none = min(eight_threads(lambda work: work()) for _ in range(3))
    ours = min(eight_threads(CircuitBreaker(name="t", api="bench", store=store).call) for _ in range(3))
    locked = eight_threads(pybreaker_in(client).call)
    print(
        f"P4  8 threads x 50 ms: {ours / none:.2f} x no breaker ({ours:.0f} ms); pybreaker {locked / none:.1f} x"
    )
    store.close()
    client.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            server, address = start_redis(next(iter(SERVERS.values())), folder)
            try:
                main(address)
            finally:
                server.kill()
                server.wait()
