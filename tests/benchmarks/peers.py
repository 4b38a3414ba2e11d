"""What people write without Penstock: the same calls by plain Celery tasks, with and without protection.

    celery -A tests.benchmarks.peers worker -P threads -c 32

`plain` is Celery and requests and nothing else. `guarded` adds what people combine: a sliding window of
`limits` and a circuit of pybreaker, both in Redis. Neither stores what it gets.
"""

import os
import threading

import pybreaker
import redis
import requests
from celery import Celery
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter

REDIS = os.environ["PEER_REDIS_URL"]
API = os.environ["PEER_API_URL"]

app = Celery("peers", broker=REDIS)
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

LIMIT = parse("600000/minute")
limiter = SlidingWindowCounterRateLimiter(storage_from_string(REDIS))
circuits = redis.Redis.from_url(REDIS)
# One for each thread: a session is not made for several, and a breaker holds its lock during the call.
mine = threading.local()


def session():
    if not hasattr(mine, "session"):
        mine.session = requests.Session()
    return mine.session


def breaker():
    if not hasattr(mine, "breaker"):
        storage = pybreaker.CircuitRedisStorage(pybreaker.STATE_CLOSED, circuits, namespace="peers")
        mine.breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=30, state_storage=storage)
    return mine.breaker


def fetch(symbol, start_ms, end_ms):
    """The bars of one symbol, as one page."""
    answer = session().get(
        f"{API}/api/v3/klines",
        params={"symbol": symbol, "interval": "1m", "startTime": start_ms, "endTime": end_ms, "limit": 10},
        timeout=10,
    )
    answer.raise_for_status()
    return answer.json()


@app.task(autoretry_for=(requests.RequestException,), retry_backoff=True, max_retries=5)
def plain(symbol, start_ms, end_ms):
    return len(fetch(symbol, start_ms, end_ms))


@app.task(
    bind=True,
    autoretry_for=(requests.RequestException, pybreaker.CircuitBreakerError),
    retry_backoff=True,
    max_retries=5,
)
def guarded(self, symbol, start_ms, end_ms):
    if not limiter.hit(LIMIT, "pond"):
        raise self.retry(countdown=1)
    return len(breaker().call(fetch, symbol, start_ms, end_ms))
