"""What a breaker and a limiter take of a process's memory, with their state where that is in memory too."""

import gc
import tracemalloc

import pytest

from resilience.breaker import CircuitBreaker
from resilience.limiter import RateLimiter
from resilience.store.memory import MemoryStore

MANY = 1000
STORE = MemoryStore()
STORE.mark_fresh(["shop"])  # nobody was calling before: buckets need not start empty


def breaker(n):
    made = CircuitBreaker(name=f"orders {n}", api="shop", store=STORE)
    made.call(int)
    return made


def limiter(n):
    made = RateLimiter(f"orders {n}", "60/1m", api="shop", store=STORE)
    assert made.try_acquire()
    return made


def endpoints():
    whole = RateLimiter("orders", "1000000/1s", api="shop", store=STORE)

    def endpoint(n):
        assert whole.try_acquire(endpoint=f"orders {n}")

    return endpoint


def allocated():
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.parametrize(
    ("what", "make"), [("breaker", breaker), ("limiter", limiter), ("endpoint of a limiter", endpoints())]
)
def test_each_takes_four_kilobytes_at_most(what, make):
    """Of a thousand that share a store and have been used, so that they hold all they ever need."""
    make(MANY)  # what all of them share
    tracemalloc.start()
    try:
        before = allocated()
        kept = [make(n) for n in range(MANY)]
        each = (allocated() - before) / len(kept)
    finally:
        tracemalloc.stop()
    print(f"{what}: {each:.0f} bytes")
    assert each <= 4096
