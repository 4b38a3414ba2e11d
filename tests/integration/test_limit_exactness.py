"""Many processes on one limit, one circuit: what they start is counted on the clock of Redis."""

import multiprocessing
import os
import signal
import threading
import time
from datetime import timedelta
from itertools import pairwise

import pytest
import redis

from resilience.breaker import CircuitBreaker
from resilience.errors import ServerError
from resilience.guard import Ask, CallResult, CircuitState, Go, Guard, Kind, Wait
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy
from resilience.store.redis import RedisStore

GOOD = CallResult(Kind.SUCCESS, 0.0)
AMOUNT, BURST = 100, 1
WINDOW_US = 1_000_000
PACE_US = WINDOW_US / (AMOUNT - BURST)
CALM_US = 5_000_000

spawn = multiprocessing.get_context("spawn")


@pytest.fixture(params=[4, pytest.param(20, marks=pytest.mark.chaos)], ids="{}s".format)
def seconds(request):
    """How long processes call; a share is asserted of the long runs only."""
    return request.param


def limiter(store=None):
    return RateLimiter("r", f"{AMOUNT}/1s", api="a", key="ip", store=store)


def call_until_told(url, skew_s, tell, at_once, over):
    """Start calls as fast as the limit lets; tell when, on the clock of Redis, and when the machine was late.

    The clock that the store asks is off by `skew_s`: nothing may depend on it.
    """
    true_ns = time.time_ns
    time.time_ns = lambda: true_ns() + int(skew_s * 1e9)
    guard, ask, ticket = Guard(RedisStore(url)), Ask("a", (), (limiter(),)), None
    at_once.wait()
    due_us = true_ns() // 1000
    while not over.is_set():
        verdict = guard.admit(ask, ticket=ticket)
        now_us = true_ns() // 1000
        if now_us - due_us > PACE_US:
            tell.send((due_us, now_us))
        due_us, ticket = now_us, None
        if isinstance(verdict, Go):
            tell.send(verdict.lease.grant.started_us)
            guard.settle(verdict.lease, GOOD)
        else:
            ticket, wait_s = verdict.ticket, min(verdict.seconds, 0.5)
            due_us += round(wait_s * 1e6)
            time.sleep(wait_s)
    tell.send(None)


class Callers:
    """Eight processes that call, each with a clock of its own; all times are Redis's, in µs."""

    def __init__(self, url, skews=(0,) * 8):
        self.url = url
        self.at_once, self.over = spawn.Barrier(len(skews) + 1), spawn.Event()
        self.times, self.late, self.processes, self.readers = [], [], [], []
        for skew_s in skews:
            mine, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(
                target=call_until_told, args=(url, skew_s, theirs, self.at_once, self.over)
            )
            process.start()
            theirs.close()
            reader = threading.Thread(target=self._read, args=(mine,))
            reader.start()
            self.processes.append(process)
            self.readers.append(reader)

    def _read(self, pipe):
        with pipe:
            try:
                while (told := pipe.recv()) is not None:
                    (self.late if isinstance(told, tuple) else self.times).append(told)
            except EOFError:
                pass  # it was killed

    def run(self, seconds, meanwhile=lambda callers: None):
        """Let them call for so long; what happens halfway is over at `changed`, and they end at `ended`."""
        self.at_once.wait()
        time.sleep(seconds / 2)
        meanwhile(self)
        self.changed = self.now()
        time.sleep(seconds / 2)
        self.ended = self.now()
        self.over.set()
        for each in (*self.processes, *self.readers):
            each.join(30)
        self.times.sort()

    def now(self):
        with redis.Redis.from_url(self.url) as client:
            s, us = client.time()
        return s * 1_000_000 + us

    def check_no_window_holds_more(self):
        """Of any phase, and whatever has happened."""
        assert most_in_window(self.times, WINDOW_US) <= AMOUNT

    def check_used_up(self, name, since=None, until=None, pace_us=PACE_US):
        """At least 98 % of limit - burst between these two, or from the first start to the end.

        In a few seconds it is only printed: one moment in which the machine was busy would decide.
        """
        since, until = since or self.times[0], until or self.ended
        starts = [at for at in self.times if since < at <= until]
        lost_us = self._lost([since, *starts, until], pace_us)
        share, spent_us = len(starts) * pace_us / (until - since - lost_us), until - since
        print(
            f"\n{name}: {len(starts)} starts in {spent_us / 1e6:.2f} s, {len(starts) * pace_us / spent_us:.1%}"
            f" of limit - burst, {share:.1%} without {lost_us / 1e6:.2f} s in which the machine was late"
        )
        assert share >= 0.98 or spent_us < CALM_US

    def _lost(self, starts, pace_us):
        """Time beyond two paces between starts, where a process came late to its turn: no limit held it back."""
        gaps = [(before, after) for before, after in pairwise(starts) if after - before > 2 * pace_us]
        return sum(
            after - before - 2 * pace_us
            for before, after in gaps
            if any(due < after and late > before for due, late in self.late)
        )


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


def test_eight_processes_share_a_limit_exactly(each_redis_url, seconds):
    """Never more than the limit in any window of any phase, and hardly anything of it left unused."""
    callers = Callers(each_redis_url)
    callers.run(seconds)
    callers.check_used_up("eight processes")
    callers.check_no_window_holds_more()


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


def trip_and_recover(seconds, url, answers, at_once):
    """Call as fast as it lets, now failing, now well; tell which transitions this process has caused."""
    store = RedisStore(url, actor=f"process {os.getpid()}")
    policy = BreakerPolicy(
        failures=3,
        rate=None,
        open_for=timedelta(milliseconds=20),
        open_max=timedelta(milliseconds=20),
        permit_lease=timedelta(seconds=5),
        slow_start_step=timedelta(0),
    )
    circuit, told = CircuitBreaker(name="c", api="a", store=store, policy=policy), []
    circuit.on_transition(lambda change: told.append((change.old, change.new, change.reason, change.at)))
    at_once.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        # All processes see the same weather: it changes every tenth of a second.
        bad = int(time.time() * 10) % 2
        if circuit.can_attempt():
            circuit.record_failure() if bad else circuit.record_success()
        else:
            time.sleep(0.005)
    answers.put((store._actor, told))


def test_the_stream_holds_each_transition_once(each_redis_url):
    """Sixteen processes trip and recover one circuit; what each was told is what the stream says it did."""
    told = dict(in_processes(16, trip_and_recover, 2.0, each_redis_url))
    store = RedisStore(each_redis_url)
    events = store.events("a")
    store.close()
    assert len(events) == sum(map(len, told.values())) > 10
    for actor, heard in told.items():
        own = [(event.old, event.new, event.reason, event.at_us) for event in events if event.actor == actor]
        assert own == [(*what, round(at.timestamp() * 1e6)) for *what, at in heard]
    assert all(before.new is after.old for before, after in pairwise(events))
    legal = {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}
    assert {(event.old, event.new) for event in events} == legal


def lend_and_die(seconds, url, answers, at_once):
    """Probe, and say when each probe began and ended; every third process is killed while it holds a permit."""
    store = RedisStore(url)
    circuit = CircuitBreaker(
        name="c", api="a", store=store, policy=BreakerPolicy(permit_lease=timedelta(milliseconds=300))
    )
    at_once.wait()
    end, dies = time.monotonic() + seconds, os.getpid() % 3 == 0
    spans = []
    while time.monotonic() < end:
        verdict = circuit.guard.admit(Ask("a", (circuit,), ()))
        if not isinstance(verdict, Go):
            time.sleep(0.005)
            continue
        began_us = verdict.lease.grant.started_us
        if dies:
            answers.put([(began_us, began_us + 300_000)])
            answers.close()
            answers.join_thread()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        circuit.guard.settle(verdict.lease, CallResult(Kind.IGNORED, 0.02))
        spans.append((began_us, began_us + 20_000))
    answers.put(spans)


def test_no_more_than_three_probe_where_some_are_killed(each_redis_url):
    """A killed prober's permit counts until its lease is over, and then it is lent again."""
    store = RedisStore(each_redis_url)
    half_open_circuit(store).half_open()
    store.close()
    told = in_processes(16, lend_and_die, 5.0, each_redis_url)
    edges = sorted(edge for spans in told for began, ended in spans for edge in ((began, 1), (ended, -1)))
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    assert most == 3
    assert sum(map(len, told)) > 20
