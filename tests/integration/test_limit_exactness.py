"""Many processes on one limit, one circuit: what they start is counted on the clock of Redis."""

import multiprocessing
import time
from datetime import timedelta
from itertools import pairwise

from resilience.breaker import CircuitBreaker
from resilience.errors import ServerError
from resilience.guard import Ask, CallResult, CircuitState, Go, Guard, Kind, Wait
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Limit
from resilience.store.redis import RedisStore

GOOD = CallResult(Kind.SUCCESS, 0.0)
AMOUNT, BURST, WINDOW_S = 100, 1, 1.0

spawn = multiprocessing.get_context("spawn")


def call_for(seconds, url, answers, at_once):
    """Start calls as fast as the limit lets, one after the other, and say when each started."""
    guard, started = Guard(RedisStore(url)), []
    ask = Ask("a", (), (RateLimiter("100/1s", Limit("100/1s"), api="a", key="ip"),))
    at_once.wait()
    end = time.monotonic() + seconds
    ticket = None
    while time.monotonic() < end:
        verdict = guard.admit(ask, ticket=ticket)
        if isinstance(verdict, Go):
            started.append(verdict.lease.grant.started_us)
            guard.settle(verdict.lease, GOOD)
            ticket = None
        else:
            ticket = verdict.ticket
            time.sleep(verdict.seconds)
    answers.put(started)


def in_processes(count, target, *arguments):
    answers, at_once = spawn.Queue(), spawn.Barrier(count)
    processes = [spawn.Process(target=target, args=(*arguments, answers, at_once)) for _ in range(count)]
    for process in processes:
        process.start()
    told = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return told


def most_in_window(times, window_us):
    """The fullest window of any phase, both ends included."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] > window_us:
            first += 1
        most = max(most, last - first + 1)
    return most


def usable(times, pace_us):
    """Starts that the limit would have let through between the first and the last, asked for without a break.

    Nobody asked while the machine kept all eight processes from running: a gap of more than two paces.
    """
    gaps = [after - before for before, after in pairwise(times)]
    return 1 + sum(min(gap, 2 * pace_us) for gap in gaps) / pace_us


def test_eight_processes_share_a_limit_exactly(each_redis_url):
    """Never more than the limit in any window of any phase.

    How much of it is used is printed only: a busy machine keeps the processes from asking. That they can use
    98 % of it is proven on a simulated clock.
    """
    times = sorted(at for told in in_processes(8, call_for, 5.0, each_redis_url) for at in told)
    used = len(times) / usable(times, 1e6 * WINDOW_S / (AMOUNT - BURST))
    print(f"\n{len(times)} starts in {(times[-1] - times[0]) / 1e6:.2f} s, {used:.1%} of limit - burst")
    assert most_in_window(times, 1_000_000 * WINDOW_S) <= AMOUNT


def probe(seconds, url, answers, at_once):
    """Probe a half-open circuit as often as it lets; a probe takes 20 ms."""
    store = RedisStore(url)
    guard, circuit = Guard(store), half_open_circuit(store)
    at_once.wait()
    end, spans = time.monotonic() + seconds, []
    while time.monotonic() < end:
        verdict = guard.admit(Ask("a", (circuit,), ()))
        if isinstance(verdict, Go):
            began = time.monotonic()
            time.sleep(0.02)
            spans.append((began, time.monotonic()))
            guard.settle(verdict.lease, CallResult(Kind.IGNORED, 0.02))
        else:
            assert isinstance(verdict, Wait)
            time.sleep(0.005)
    answers.put(spans)


def half_open_circuit(store):
    return CircuitBreaker(name="c", api="a", store=store, policy=BreakerPolicy())


def test_sixteen_processes_probe_three_at_a_time(each_redis_url):
    """However many ask, and however often."""
    store = RedisStore(each_redis_url)
    half_open_circuit(store).half_open()
    told = in_processes(16, probe, 1.5, each_redis_url)
    store.close()
    edges = sorted(edge for spans in told for began, ended in spans for edge in ((began, 1), (ended, -1)))
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    assert most == 3
    assert sum(1 for spans in told if spans) > 3


def trip(url, answers, at_once):
    """Fail five times at the same time as the others, and tell which transitions one has caused."""
    store = RedisStore(url)
    circuit = CircuitBreaker(
        name="c", api="a", store=store, policy=BreakerPolicy(open_for=timedelta(seconds=30))
    )
    guard = Guard(store)
    at_once.wait()
    verdicts = [guard.admit(Ask("a", (circuit,), ())) for _ in range(5)]
    result = CallResult.of(ServerError(), latency_s=0.0)
    told = [guard.settle(verdict.lease, result) for verdict in verdicts if isinstance(verdict, Go)]
    answers.put([change.new for changes in told for change in changes])


def test_a_transition_is_told_once(each_redis_url):
    """Whoever causes it is told; nobody else."""
    told = in_processes(4, trip, each_redis_url)
    assert [state for states in told for state in states] == [CircuitState.OPEN]
