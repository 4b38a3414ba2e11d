"""What the guard decides, whichever store it asks, blocking or awaited. The clock is the test's own."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from resilience.breaker import CircuitBreaker
from resilience.errors import (
    ConfigurationError,
    DatabaseError,
    InvalidCredentialsError,
    NotFoundError,
    RateLimitError,
    Scope,
    ServerError,
    ValidationError,
)
from resilience.guard import Ask, CallResult, CircuitState, Go, Guard, Kind, Refuse, Wait
from resilience.guard_async import AsyncGuard
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Lane, Limit
from resilience.store import Ban, Override, Remembered, Spent
from resilience.store.memory import MemoryStore
from resilience.store.redis import RedisStore
from tests.integration.conftest import SERVERS

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
GOOD = CallResult.of(None, latency_s=0.1)
BAD = CallResult.of(ServerError(), latency_s=0.1)

STORES = ["memory", *sorted(SERVERS, reverse=True)]
WAYS = [*STORES, *(f"{store}, async" for store in STORES)]


class Awaited:
    """An AsyncGuard whose questions are awaited one by one, in a loop of their own."""

    def __init__(self, store):
        self.guard, self.loop = AsyncGuard(store), asyncio.new_event_loop()

    def __getattr__(self, question):
        ask = getattr(self.guard, question)
        return lambda *parts, **words: self.loop.run_until_complete(ask(*parts, **words))

    def close(self):
        self.loop.run_until_complete(self.guard.store.close())
        self.loop.close()


class World:
    """A guard, its store and their clock."""

    def __init__(self, make_store, make_guard=Guard):
        self.now_us = 1_700_000_000_000_000
        self.make_store, self.make_guard, self.guard = make_store, make_guard, None
        self.remember(None)

    def remember(self, recall):
        """Ask this about circuits that the store does not know."""
        self.close()
        self.store = self.make_store(now_us=lambda: self.now_us, recall=recall)
        self.guard = self.make_guard(self.store)

    def lose(self):
        """The store forgets everything."""
        if isinstance(self.store, RedisStore):
            self.store._command(("FLUSHALL",))
        else:
            self.remember(None)

    def close(self):
        if isinstance(self.guard, Awaited):
            self.guard.close()
        if self.guard and isinstance(self.store, RedisStore):
            self.store.close()

    def sleep(self, seconds):
        self.now_us += round(seconds * 1e6)

    @property
    def now(self):
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.now_us)

    def circuit(self, name="klines", *, listeners=(), **policy):
        return CircuitBreaker(
            name=name, api="binance", policy=BreakerPolicy(**policy), store=self.store, listeners=listeners
        )

    def ask(self, *parts, **words):
        circuits = tuple(part for part in parts if isinstance(part, CircuitBreaker))
        limits = tuple(part for part in parts if isinstance(part, RateLimiter))
        return Ask("binance", circuits, limits, **words)

    def go(self, *parts, ticket=None, **words):
        verdict = self.guard.admit(self.ask(*parts, **words), ticket=ticket)
        assert isinstance(verdict, Go), verdict
        return verdict.lease

    def wait(self, *parts, ticket=None, **words):
        verdict = self.guard.admit(self.ask(*parts, **words), ticket=ticket)
        assert isinstance(verdict, Wait), verdict
        return verdict

    def refuse(self, *parts):
        verdict = self.guard.admit(self.ask(*parts))
        assert isinstance(verdict, Refuse), verdict
        return verdict

    def settle(self, lease, result):
        return [(change.old, change.new) for change in self.guard.settle(lease, result)]

    def call(self, *parts, result=GOOD, **words):
        return self.settle(self.go(*parts, **words), result)

    def trip(self, circuit):
        for _ in range(5):
            self.call(circuit, result=BAD)

    def state(self, circuit):
        return self.guard.circuits([circuit])[circuit.circuit].state


@pytest.fixture(params=WAYS)
def world(request, private_redis):
    """Nobody was running before: buckets are full."""
    world = blank(request, private_redis)
    world.store.mark_fresh(["binance"])
    yield world
    world.close()


@pytest.fixture(params=WAYS)
def lost_world(request, private_redis):
    """The store was found empty, and nobody knows why."""
    world = blank(request, private_redis)
    yield world
    world.close()


def blank(request, private_redis):
    store, _, way = request.param.partition(", ")
    make_store = MemoryStore if store == "memory" else partial(RedisStore, private_redis(store))
    return World(make_store, Awaited if way else Guard)


def limit(spec, *, key="ip", weight_max=1, lease=35, **words):
    lease = timedelta(seconds=lease)
    return RateLimiter(spec, Limit(spec, **words), api="binance", key=key, weight_max=weight_max, lease=lease)


# circuits


# What calls say, a letter each: good, bad, slow, 429 with a wait of a second, without one; or a wait of 1, 60,
# 90 seconds. Then the states that the circuit went through, with the reasons.
LATE = CallResult.of(None, latency_s=10.5)
LETTERS = {
    "g": GOOD,
    "b": BAD,
    "s": LATE,
    "t": CallResult.of(RateLimitError(retry_after_s=1), latency_s=0.1),
    "n": CallResult.of(RateLimitError(), latency_s=0.1),
    "i": CallResult.of(NotFoundError(), latency_s=0.1),
}
WAITS = {".": 1, "-": 60, "=": 90}
TRIPPED = "closed > open: consecutive failures"
TRIED = "open > half_open: open time over"
STORIES = {
    "good calls change nothing": ({}, "gggggggggg", []),
    "five failures in a row": ({}, "bbbbb", [TRIPPED]),
    "a success in between": ({}, "bbbbgbbbb", []),
    "half of twenty": ({"failures": None}, "gb" * 10, ["closed > open: failure rate"]),
    "half of nineteen are too few": ({"failures": None}, "bg" * 9 + "b", []),
    "recovers": ({}, "bbbbb-gg", [TRIPPED, TRIED, "half_open > closed: probes succeeded"]),
    "one of three may fail": ({}, "bbbbb-bgg", [TRIPPED, TRIED, "half_open > closed: probes succeeded"]),
    "two of three may not": ({}, "bbbbb-bgb", [TRIPPED, TRIED, "half_open > open: probes failed"]),
    "strict": (
        {"reopen_on": "first_failure"},
        "bbbbb-gb",
        [TRIPPED, TRIED, "half_open > open: probes failed"],
    ),
    "reopened for longer": (
        {},
        "bbbbb-bb=gg",
        [TRIPPED, TRIED, "half_open > open: probes failed", TRIED, "half_open > closed: probes succeeded"],
    ),
    "the first success closes": (
        {"half_open_calls": 1, "half_open_successes": 1},
        "bbbbb-g",
        [TRIPPED, TRIED, "half_open > closed: probes succeeded"],
    ),
    "a bad symbol says nothing": ({}, "bbbbiiiiib", [TRIPPED]),
    "a bad symbol is no probe": (
        {},
        "bbbbb-iiiigg",
        [TRIPPED, TRIED, "half_open > closed: probes succeeded"],
    ),
    "a 429 with a wait is the limiter's": ({}, "t.t.g.t.t.g.t.t.", []),
    "429s that go on after their wait": ({"failures": 2}, "t.t.t.t", [TRIPPED]),
    "429s of calls in flight tell nothing new": ({"failures": 2}, "tttttttttt", []),
    "429s that never count": ({"failures": 2, "rate_limited_trips": None}, "t.t.t.t.t.t", []),
    "every 429 counts": ({"failures": 2, "count_rate_limited": True}, "tt", [TRIPPED]),
    "a 429 without a wait is a failure": ({"failures": 2}, "nn", [TRIPPED]),
    "half of the calls are slow": ({"slow_rate": 0.5, "min_calls": 4}, "ggss", ["closed > open: slow calls"]),
    "a slow probe has failed": (
        {"slow_rate": 0.5, "min_calls": 4},
        "ggss-ss",
        ["closed > open: slow calls", TRIED, "half_open > open: probes failed"],
    ),
    "slow calls may be ignored": ({}, "s" * 30, []),
}


@pytest.mark.parametrize("story", STORIES)
def test_transitions(world, story):
    """What is done, what becomes of it: exactly these transitions, and in the stream the same."""
    policy, letters, expected = STORIES[story]
    klines, heard = world.circuit(**policy), []
    klines.on_transition(lambda change: heard.append(f"{change.old} > {change.new}: {change.reason}"))
    for letter in letters:
        if letter in WAITS:
            world.sleep(WAITS[letter])
        else:
            ask = Ask("binance", (klines,), (), gate=None)
            world.guard.settle(world.guard.admit(ask).lease, LETTERS[letter])
    assert heard == expected
    assert [
        f"{event.old} > {event.new}: {event.reason}" for event in world.store.events("binance")
    ] == expected


def test_a_longer_wait_of_the_server_wins(world):
    """An outage announced for three hours is not probed after a minute."""
    klines = world.circuit(failures=1)
    world.call(klines, result=CallResult.of(ServerError(retry_after_s=10_800), latency_s=0.1))
    world.sleep(10_799)
    assert world.refuse(klines).retry_at == world.now + timedelta(seconds=1)
    world.sleep(1)
    assert world.call(klines, result=CallResult.of(ServerError(retry_after_s=1), latency_s=0.1)) == []
    world.call(klines, result=BAD)
    assert world.refuse(klines).retry_at == world.now + timedelta(seconds=90)


def test_what_was_decided_comes_back_first(world):
    """A store that knows nothing of a circuit asks before anything is admitted, and only then."""
    asked, decided = [], {"klines": Override(CircuitState.FORCED_OPEN, "ada", "an audit")}

    def recall(api, name):
        asked.append((api, name))
        return decided.get(name)

    world.remember(recall)
    klines, trades = world.circuit(), world.circuit("trades")
    for _ in range(3):
        assert world.refuse(klines).reason == "forced_open"
        world.call(trades)
    assert asked == [("binance", "klines"), ("binance", "trades")]
    assert klines.get_status()["forced"]["why"] == "an audit"
    klines.reset()
    world.call(klines)
    assert len(asked) == 2


def test_what_cannot_be_recalled_is_not_admitted(world):
    """A database that is away must not let a forced circuit be called."""

    def recall(api, name):
        raise DatabaseError

    world.remember(recall)
    with pytest.raises(DatabaseError):
        world.guard.admit(world.ask(world.circuit()))


def test_unknown_circuit_is_closed(world):
    """Nobody has asked yet."""
    assert world.state(world.circuit()) is CLOSED


def test_consecutive_failures_open(world):
    """The fifth failure in a row opens the circuit, and only the call that did it is told."""
    klines = world.circuit()
    told = [world.call(klines, result=BAD) for _ in range(5)]
    assert told == [[], [], [], [], [(CLOSED, OPEN)]]


def test_success_forgets_failures(world):
    """Four failures, one success, four failures: still closed."""
    klines = world.circuit(rate=None)
    for result in [BAD] * 4 + [GOOD] + [BAD] * 4:
        world.call(klines, result=result)
    assert world.state(klines) is CLOSED


def test_failure_rate_opens(world):
    """Half of twenty calls within the window are enough, without five in a row."""
    klines = world.circuit()
    told = [change for i in range(20) for change in world.call(klines, result=(GOOD, BAD)[i % 2])]
    assert told == [(CLOSED, OPEN)]


def test_failure_rate_forgets(world):
    """What lies before the window counts no more."""
    klines = world.circuit(failures=None)
    for _ in range(19):
        world.call(klines, result=BAD)
    world.sleep(61)
    assert world.call(klines, result=BAD) == []


def test_failure_rate_window_slides(world):
    """Calls from all parts of the window count together."""
    klines = world.circuit(failures=None)
    told = []
    for _ in range(20):
        told += world.call(klines, result=BAD)
        world.sleep(2.7)
    assert told == [(CLOSED, OPEN)]


def test_bad_symbol_never_opens(world):
    """A 404 says nothing about the service."""
    klines = world.circuit()
    for _ in range(50):
        assert world.call(klines, result=CallResult.of(NotFoundError(), latency_s=0.1)) == []


def test_open_refuses_until_its_time(world):
    """A refusal names the time of the next try and what led to it."""
    klines = world.circuit()
    world.trip(klines)
    world.sleep(10)
    refusal = world.refuse(klines)
    assert refusal.retry_at == world.now + timedelta(seconds=50)
    assert (refusal.circuit, refusal.reason, refusal.failure_count) == ("klines", "open", 5)
    assert refusal.error().retry_at == refusal.retry_at


def test_open_time_over_reads_half_open(world):
    """Nobody has to ask for the circuit to be half-open when its time is over."""
    klines = world.circuit()
    world.trip(klines)
    world.sleep(60)
    view = world.guard.circuits([klines])["klines"]
    assert (view.state, view.free_permits) == (HALF_OPEN, 3)


def test_half_open_lets_three_through(world):
    """However many ask; the fourth waits two seconds and keeps nothing."""
    klines = world.circuit()
    world.trip(klines)
    world.sleep(60)
    for _ in range(3):
        world.go(klines)
    verdict = world.wait(klines)
    assert (verdict.seconds, verdict.ticket, verdict.reason) == (2.0, None, "half_open")
    assert world.guard.circuits([klines])["klines"].free_permits == 0


def test_two_good_probes_close(world):
    """And the third one's result comes too late to matter."""
    klines = world.circuit()
    world.trip(klines)
    world.sleep(60)
    probes = [world.go(klines) for _ in range(3)]
    assert [world.settle(probe, GOOD) for probe in probes] == [[], [(HALF_OPEN, CLOSED)], []]


def test_second_bad_probe_opens(world):
    """One of three may fail; with two failed, two successes are out of reach."""
    klines = world.circuit()
    world.trip(klines)
    world.sleep(60)
    probes = [world.go(klines) for _ in range(3)]
    told = [world.settle(probe, result) for probe, result in zip(probes, (BAD, GOOD, BAD), strict=True)]
    assert told == [[], [], [(HALF_OPEN, OPEN)]]


def test_killed_probers_permit_returns(world):
    """A permit that nobody gives back ends with its lease, and its late result counts for nothing."""
    klines = world.circuit()
    world.trip(klines)
    world.sleep(60)
    killed = [world.go(klines) for _ in range(3)]
    world.sleep(34.9)
    world.wait(klines)
    world.sleep(0.1)
    world.go(klines)
    assert world.settle(killed[0], BAD) == world.settle(killed[1], BAD) == []
    assert world.state(klines) is HALF_OPEN


def test_ignored_probe_frees_its_permit(world):
    """A 404 neither closes nor opens; someone else may probe."""
    klines = world.circuit()
    world.trip(klines)
    world.sleep(60)
    for _ in range(10):
        world.call(klines, result=CallResult.of(NotFoundError(), latency_s=0.1))
    assert world.guard.circuits([klines])["klines"].free_permits == 3


def test_latecomer_says_nothing(world):
    """What started before the circuit opened does not count once it is half-open or closed again."""
    klines = world.circuit()
    early = [world.go(klines) for _ in range(8)]
    world.trip(klines)
    world.sleep(60)
    probe = world.go(klines)
    assert [world.settle(lease, BAD) for lease in early] == [[]] * 8
    world.settle(probe, GOOD)
    assert world.call(klines) == [(HALF_OPEN, CLOSED)]


def fail_recovery(world, klines):
    probes = [world.go(klines) for _ in range(2)]
    for probe in probes:
        world.settle(probe, BAD)


@pytest.mark.parametrize(
    ("growth", "expected"), [(1.5, [60, 90, 100, 100]), (1, [60, 60, 60, 60]), (1.2, [60, 72, 86.4, 100])]
)
def test_open_time_grows(world, growth, expected):
    """By half for every recovery that failed, or as the policy says, up to its most."""
    klines = world.circuit(open_max=timedelta(seconds=100), growth=growth)
    world.trip(klines)
    lengths = []
    for _ in range(4):
        lengths.append((world.refuse(klines).retry_at - world.now).total_seconds())
        world.sleep(lengths[-1])
        fail_recovery(world, klines)
    assert lengths == expected


def reopen(world, klines):
    world.trip(klines)
    return (world.refuse(klines).retry_at - world.now).total_seconds()


def recover(world, klines, after):
    world.sleep(after)
    for probe in [world.go(klines), world.go(klines)]:
        world.settle(probe, GOOD)


def test_growth_is_kept_through_slow_start(world):
    """A service that falls over as soon as it is used again is left alone for longer."""
    klines = world.circuit()
    recover(world, klines, after=reopen(world, klines))
    world.sleep(9.9)
    assert reopen(world, klines) == 90


def test_growth_ends_when_closed_for_good(world):
    """After the slow start it is a new illness."""
    klines = world.circuit()
    recover(world, klines, after=reopen(world, klines))
    world.sleep(10)
    assert reopen(world, klines) == 60


def test_forced_open_refuses_until_then(world):
    """Whatever the calls say; then the circuit is closed."""
    klines = world.circuit()
    klines.force(CircuitState.FORCED_OPEN, by="ops", why="an audit", until=world.now + timedelta(hours=3))
    world.sleep(2 * 3600)
    assert world.refuse(klines).retry_at == world.now + timedelta(hours=1)
    world.sleep(3600)
    world.go(klines)


def test_disabled_lets_everything_through(world):
    """And counts nothing."""
    klines = world.circuit()
    klines.force(CircuitState.DISABLED, by="ops", why="it errs")
    world.trip(klines)
    world.trip(klines)
    klines.close()
    assert world.guard.circuits([klines])["klines"].failure_count == 0


def test_one_open_circuit_refuses_all(world):
    """And neither the other circuit's permit nor a limit is spent."""
    klines, trades, seats = world.circuit(), world.circuit("trades"), limit("1 at once")
    world.trip(klines)
    world.sleep(60)
    world.trip(trades)
    world.refuse(klines, trades, seats)
    assert world.guard.circuits([klines])["klines"].free_permits == 3
    world.go(seats)


# slow start


def test_circuits_of_several_levels(world):
    """Endpoint, host, account and symbol in one decision: each counts for itself, any of them refuses."""
    host = world.circuit("host", failures=4)
    account = world.circuit("account:main", failures=9, rate=None)
    levels = {
        (endpoint, symbol): (world.circuit(endpoint), host, account, world.circuit(symbol, failures=2))
        for endpoint in ("klines", "trades")
        for symbol in ("BTC", "ETH")
    }
    assert world.call(*levels["klines", "BTC"], result=BAD) == []
    assert world.call(*levels["klines", "BTC"], result=BAD) == [(CLOSED, OPEN)]
    assert world.refuse(*levels["trades", "BTC"]).circuit == "BTC"
    world.call(*levels["klines", "ETH"], result=BAD)
    assert world.settle(world.go(*levels["trades", "ETH"]), BAD) == [(CLOSED, OPEN), (CLOSED, OPEN)]
    assert world.refuse(*levels["klines", "ETH"]).circuit == "host"
    views = world.guard.circuits([host, account, levels["klines", "ETH"][0], levels["trades", "ETH"][0]])
    assert [view.failure_count for view in views.values()] == [4, 4, 3, 1]


def rate_of(world, klines, bucket, seconds=2.0):
    """Calls that start in so many seconds, asked for at every hundredth."""
    started = 0
    for _ in range(round(seconds * 100)):
        if isinstance(world.guard.admit(world.ask(klines, bucket, lane=Lane.BACKFILL)), Go):
            started += 1
        world.sleep(0.01)
    return started / seconds


def test_slow_start(world):
    """A service that has just come back gets a quarter, then half of the limit."""
    klines, bucket = world.circuit(), limit("1000/100s")
    recover(world, klines, after=reopen(world, klines))
    rate_of(world, klines, bucket, 1.0)
    assert rate_of(world, klines, bucket, 4.0) == pytest.approx(9.9 / 4, abs=0.4)
    rate_of(world, klines, bucket, 1.0)
    assert rate_of(world, klines, bucket, 4.0) == pytest.approx(9.9 / 2, abs=0.4)
    rate_of(world, klines, bucket, 1.0)
    assert rate_of(world, klines, bucket, 4.0) == pytest.approx(9.9, abs=0.4)


# rate limits


def test_burst_then_pace(world):
    """One per cent at once, the rest at an even pace."""
    bucket = limit("1000/100s")
    for _ in range(10):
        world.go(bucket)
    assert world.wait(bucket, lane=Lane.BACKFILL).seconds == pytest.approx(1 / 9.9, rel=0.02)


def test_weight_counts(world):
    """A call of weight five waits five times as long as one of weight one."""
    bucket = limit("100/100s", weight_max=5)
    world.go(bucket, weight=5)
    assert world.wait(bucket, weight=5, lane=Lane.BACKFILL).seconds == pytest.approx(5 / 0.95, rel=0.01)
    assert world.wait(bucket, weight=1, lane=Lane.BACKFILL).seconds == pytest.approx(1 / 0.95, rel=0.01)


def test_undeclared_weight_is_an_error(world):
    """It would wait for ever."""
    with pytest.raises(ConfigurationError, match="weight_max"):
        world.guard.admit(world.ask(limit("100/1m"), weight=5))


def test_ticket_is_redeemed_without_a_second_charge(world):
    """The place was paid for when it was reserved."""
    bucket = limit("60/1m")
    world.go(bucket)
    verdict = world.wait(bucket)
    assert verdict.ticket
    world.sleep(verdict.seconds)
    world.go(bucket, ticket=verdict.ticket)
    assert world.wait(bucket).seconds == pytest.approx(60 / 59, rel=0.01)


def test_asking_early_returns_the_rest(world):
    """With the same ticket, and without another reservation."""
    bucket = limit("60/1m")
    world.go(bucket)
    first = world.wait(bucket)
    world.sleep(0.3)
    again = world.wait(bucket, ticket=first.ticket)
    assert again.ticket == first.ticket
    assert again.seconds == pytest.approx(first.seconds - 0.3)
    assert world.wait(bucket).seconds == pytest.approx(first.seconds - 0.3 + 60 / 59, rel=0.01)


def test_tickets_form_a_queue(world):
    """Every one has its own time, an interval after the one before."""
    bucket = limit("60/1m")
    world.go(bucket)
    waits = [world.wait(bucket).seconds for _ in range(5)]
    assert waits == pytest.approx([(i + 1) * 60 / 59 for i in range(5)], rel=0.01)


def test_newcomer_does_not_overtake(world):
    """At a slot's time the one who holds the ticket starts, whoever asks first."""
    bucket = limit("60/1m")
    world.go(bucket)
    verdict = world.wait(bucket)
    world.sleep(verdict.seconds)
    world.wait(bucket)
    world.go(bucket, ticket=verdict.ticket)


def test_unknown_ticket_is_void(world):
    """Redis lost it: the call asks as if it came without."""
    bucket = limit("60/1m")
    world.go(bucket, ticket="lost")
    verdict = world.wait(bucket, ticket="lost-too")
    world.sleep(verdict.seconds)
    world.go(bucket, ticket=verdict.ticket)


def test_used_ticket_is_void(world):
    """A message delivered twice does not start two calls on one slot."""
    bucket = limit("60/1m")
    world.go(bucket)
    verdict = world.wait(bucket)
    world.sleep(verdict.seconds)
    world.go(bucket, ticket=verdict.ticket)
    world.wait(bucket, ticket=verdict.ticket)


def test_late_ticket_starts_if_there_is_room(world):
    """Nobody else came meanwhile."""
    bucket = limit("60/1m")
    world.go(bucket)
    verdict = world.wait(bucket)
    world.sleep(verdict.seconds + 30)
    world.go(bucket, ticket=verdict.ticket)


def test_late_tickets_do_not_exceed_the_limit(world):
    """Twenty tickets come half a minute late, all at once: one starts, the others queue again."""
    bucket = limit("60/1m")
    world.go(bucket)
    tickets = [world.wait(bucket).ticket for _ in range(20)]
    world.sleep(50)
    world.go(bucket, ticket=tickets[0])
    waits = [world.wait(bucket, ticket=ticket).seconds for ticket in tickets[1:]]
    assert waits == pytest.approx([(i + 1) * 60 / 59 for i in range(19)], rel=0.01)


def test_slightly_late_ticket_disturbs_nobody(world):
    """Late by less than a call's worth: it starts, and the next one starts on time."""
    bucket = limit("60/1m")
    world.go(bucket)
    first, second = world.wait(bucket), world.wait(bucket)
    world.sleep(first.seconds + 0.9)
    world.go(bucket, ticket=first.ticket)
    world.sleep(second.seconds - first.seconds - 0.9)
    world.go(bucket, ticket=second.ticket)


def test_late_ticket_does_not_push_those_on_time(world):
    """It finds the bucket empty and goes to the end of a short queue."""
    bucket = limit("600/1m", burst=1)
    world.go(bucket)
    first, second, third = (world.wait(bucket) for _ in range(3))
    world.sleep(second.seconds)
    world.go(bucket, ticket=second.ticket)
    world.sleep(0.05)
    again = world.wait(bucket, ticket=first.ticket)
    assert again.seconds == pytest.approx(0.15, abs=0.01)
    world.sleep(0.06)
    world.go(bucket, ticket=third.ticket)
    world.sleep(0.1)
    world.go(bucket, ticket=first.ticket)


def test_burst_is_slack_for_latecomers(world):
    """With a burst to spare, one who comes a little late takes nobody's place."""
    bucket = limit("1000/100s")
    for _ in range(10):
        world.go(bucket)
    first, second = world.wait(bucket), world.wait(bucket)
    world.sleep(second.seconds)
    world.go(bucket, ticket=first.ticket)
    world.go(bucket, ticket=second.ticket)


def test_only_the_binding_limit_is_reserved(world):
    """The other is asked when the ticket is redeemed."""
    slow, quick = limit("60/1m", key="slow"), limit("60/1s", key="quick")
    world.go(slow)
    verdict = world.wait(slow, quick)
    assert verdict.key == "60/1m"
    world.go(quick)
    world.sleep(verdict.seconds)
    world.go(slow, quick, ticket=verdict.ticket)


def test_a_second_limit_may_add_to_the_wait(world):
    """The ticket keeps its slot in the one, and gets another in the other."""
    slow, quick = limit("60/1m", key="slow"), limit("120/1m", key="quick")
    world.go(slow)
    first = world.wait(slow, quick)
    world.sleep(first.seconds)
    world.go(quick)
    second = world.wait(slow, quick, ticket=first.ticket)
    assert (second.key, second.ticket) == ("120/1m", first.ticket)
    world.sleep(second.seconds)
    world.go(slow, quick, ticket=second.ticket)


def test_all_or_nothing(world):
    """A call that has to wait for a seat spends nothing of the bucket."""
    bucket, seats = limit("60/1m"), limit("1 at once")
    holder = world.go(seats)
    for _ in range(5):
        world.wait(bucket, seats)
    world.settle(holder, GOOD)
    world.go(bucket, seats)


def test_release_refunds_the_newest_slot(world):
    """Nothing was sent, so the next call need not wait."""
    bucket, seats = limit("60/1m"), limit("1 at once")
    world.guard.release(world.go(bucket, seats))
    world.go(bucket, seats)


def test_release_refunds_only_the_newest_slot(world):
    """Another call has built on the older one's slot."""
    bucket = limit("1000/100s", burst=2)
    older = world.go(bucket)
    world.go(bucket)
    world.guard.release(older)
    world.wait(bucket)


def test_release_frees_the_permit(world):
    """A probe that was never sent lets another one probe."""
    klines = world.circuit()
    world.trip(klines)
    world.sleep(60)
    for _ in range(10):
        world.guard.release(world.go(klines))


def test_settle_and_admit_is_both(world):
    """The next page starts as the one before is settled: even with a single seat."""
    klines, seats = world.circuit(), limit("1 at once")
    lease = world.go(klines, seats)
    for _ in range(4):
        told, verdict = world.guard.settle_and_admit(lease, BAD, world.ask(klines, seats))
        assert (told, type(verdict)) == ((), Go)
        lease = verdict.lease
    told, verdict = world.guard.settle_and_admit(lease, BAD, world.ask(klines, seats))
    assert [change.new for change in told] == [OPEN]
    assert isinstance(verdict, Refuse)
    world.go(seats)


# calls in flight


def test_seats(world):
    """Five at once; the sixth waits without a ticket."""
    seats = limit("5 at once")
    leases = [world.go(seats) for _ in range(5)]
    verdict = world.wait(seats)
    assert (verdict.ticket, verdict.reason) == (None, "seats")
    assert 0.5 <= verdict.seconds <= 2
    world.settle(leases[0], GOOD)
    world.go(seats)


def test_killed_callers_seat_returns(world):
    """When its lease is over, and not before."""
    seats = limit("1 at once", lease=35)
    world.go(seats)
    world.sleep(34.9)
    world.wait(seats)
    world.sleep(0.1)
    world.go(seats)


def test_sharers_do_not_disturb_each_other(world):
    """Two accounts have a limit each."""
    world.go(limit("60/1m", key="account-1"))
    world.go(limit("60/1m", key="account-2"))
    world.wait(limit("60/1m", key="account-1"))


# lanes


def test_backfill_never_reserves(world):
    """It is told how long, but has no place."""
    bucket = limit("60/1m")
    world.go(bucket, lane=Lane.BACKFILL)
    assert world.wait(bucket, lane=Lane.BACKFILL).ticket is None
    assert world.wait(bucket).seconds == pytest.approx(60 / 59, rel=0.01)


def test_backfill_waits_behind_reservations(world):
    """What live work has booked is not free."""
    bucket = limit("60/1m")
    world.go(bucket)
    ticket = world.wait(bucket)
    world.sleep(ticket.seconds)
    world.wait(bucket, lane=Lane.BACKFILL)
    world.go(bucket, ticket=ticket.ticket)


def backfill(world, bucket, seconds):
    started = 0
    for _ in range(round(seconds * 50)):
        started += isinstance(world.guard.admit(world.ask(bucket, lane=Lane.BACKFILL)), Go)
        world.sleep(0.02)
    return started


def test_backfill_takes_all_while_nobody_else_is_there(world):
    """The reserve counts only while there is live work."""
    assert backfill(world, limit("1000/100s", reserve=0.4), 10) >= 99


def test_backfill_leaves_the_reserve_to_live_work(world):
    """For ten seconds after it was last seen."""
    bucket = limit("1000/100s", reserve=0.4)
    world.go(bucket)
    backfill(world, bucket, 3)
    assert backfill(world, bucket, 5) == pytest.approx(9.9 * 0.6 * 5, abs=2)
    world.sleep(2)
    backfill(world, bucket, 2)
    assert backfill(world, bucket, 5) == pytest.approx(9.9 * 5, abs=2)


# gates


def throttled(retry_after_s=None):
    return CallResult.of(RateLimitError(retry_after_s=retry_after_s), latency_s=0.1)


def test_gate_closes_for_everyone(world):
    """One 429 holds back every call of its sharer, without a ticket, and no other's."""
    klines, bucket, seats = world.circuit(), limit("600/1m"), limit("50 at once")
    world.call(klines, bucket, seats, result=throttled(7))
    verdict = world.wait(world.circuit("trades"), limit("10/1s"))
    assert (verdict.seconds, verdict.ticket, verdict.reason) == (7.0, None, "gate")
    world.go(klines, limit("600/1m", key="another host"))
    assert world.state(klines) is CLOSED


def test_gate_opens_paced(world):
    """The calls that waited start one after the other, not as a burst."""
    bucket = limit("6000/100s", burst=60)
    world.call(bucket, result=throttled(7))
    world.sleep(7)
    verdict = world.wait(bucket)
    assert verdict.seconds >= 1 / 60
    world.sleep(verdict.seconds)
    world.go(bucket, ticket=verdict.ticket)
    world.wait(bucket)


def test_old_tickets_do_not_pass_a_gate(world):
    """They were promised before the server asked for silence."""
    bucket = limit("60/1m")
    lease = world.go(bucket)
    tickets = [world.wait(bucket).ticket for _ in range(20)]
    world.settle(lease, throttled(5))
    assert world.wait(bucket, ticket=tickets[0]).ticket is None
    world.sleep(5)
    waits = [world.wait(bucket, ticket=ticket).seconds for ticket in tickets[:3]]
    assert waits == pytest.approx([60 / 59, 2 * 60 / 59, 3 * 60 / 59], rel=0.01)


def test_429_without_a_wait_doubles(world):
    """A minute, two, four, up to fifteen; a success ends the row."""
    bucket = limit("600/1m")
    waits = []
    for _ in range(6):
        lease = world.go(bucket)
        world.settle(lease, throttled())
        waits.append(world.wait(bucket).seconds)
        world.sleep(waits[-1] + 1)
    assert waits == [60, 120, 240, 480, 900, 900]
    world.call(bucket)
    world.sleep(1)
    world.call(bucket, result=throttled())
    assert world.wait(bucket).seconds == 60


def test_calls_in_flight_tell_nothing_new(world):
    """Ten calls hit the same wall: one incident, one minute."""
    bucket = limit("6000/1m")
    for lease in [world.go(bucket) for _ in range(10)]:
        world.settle(lease, throttled())
    assert world.wait(bucket).seconds == 60


def test_longest_wait_wins(world):
    """A shorter Retry-After of another call does not open the gate earlier; a longer one keeps it closed."""
    bucket = limit("6000/1m")
    leases = [world.go(bucket) for _ in range(3)]
    waits = []
    for lease, seconds in zip(leases, (20, 5, 40), strict=True):
        world.settle(lease, throttled(seconds))
        waits.append(world.wait(bucket).seconds)
    assert waits == [20, 20, 40]


def test_ban_closes_the_gate_too(world):
    """418 as 429."""
    bucket = limit("6000/1m")
    world.call(bucket, result=CallResult(Kind.BANNED, 0.1, retry_after_s=3600))
    assert world.wait(bucket).seconds == 3600


def test_gate_without_limits(world):
    """An API that declares none is held back as a whole."""
    klines = world.circuit()
    world.call(klines, result=throttled(9))
    assert world.wait(world.circuit("trades")).seconds == 9


# what the server says


def says(**headers):
    named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
    return CallResult.of(None, latency_s=0.1, headers=named)


def test_server_says_less_is_left(world):
    """Someone else uses the limit: nothing more than what is left may start at once."""
    bucket = limit("6000/1m", used="X-Used")
    world.call(bucket, result=says(X_Used=5998))
    world.go(bucket)
    world.go(bucket)
    world.wait(bucket)


def test_server_says_nothing_is_left_until(world):
    """Silence until the server's window ends."""
    bucket = limit("6000/1m", remaining="X-Left", reset="X-Reset")
    world.call(bucket, result=says(X_Left=0, X_Reset=30))
    assert world.wait(bucket).seconds > 30


def test_server_never_raises_the_limit(world):
    """What it says is left may be more than we allow ourselves."""
    bucket = limit("60/1m", remaining="X-Left")
    world.call(bucket, result=says(X_Left=6000))
    world.wait(bucket)


def test_server_speaks_of_two_limits_at_once(world):
    """One for the minute and one for the day: each corrects its own, whichever stands first."""
    minute, day = limit("600/1m", remaining="X-Minute"), limit("864000/1d", remaining="X-Day")
    world.call(minute, day, result=says(X_Minute=600, X_Day=1))
    world.go(minute, day)
    assert world.wait(minute, day).key == day.name
    world.call(minute, result=says(X_Minute=0))
    assert world.wait(minute).key == minute.name


def test_server_names_its_limits_itself(world):
    """A limit that names no headers is found by the families, in which the day's quota is not the minute's."""
    bucket = limit("600/1m")
    world.call(bucket, result=says(X_RateLimit_Remaining=0, X_RateLimit_Reset=3600))
    world.go(bucket)
    world.call(bucket, result=says(X_RateLimit_Remaining=0, X_RateLimit_Reset=30))
    assert world.wait(bucket).seconds > 30


# a store that was lost


def test_lost_bucket_starts_empty(lost_world):
    """The server still remembers the calls of the last window."""
    bucket = limit("1000/100s")
    verdict = lost_world.wait(bucket)
    assert verdict.seconds >= 1 / 9.9
    lost_world.sleep(verdict.seconds)
    lost_world.go(bucket, ticket=verdict.ticket)
    lost_world.wait(bucket)


def test_lost_seats_wait_one_lease(lost_world):
    """Calls that were in flight then may still be."""
    seats = limit("5 at once", lease=35)
    assert lost_world.wait(seats).seconds == 35
    lost_world.sleep(35)
    lost_world.go(seats)


def test_new_limit_of_a_known_api_starts_full(lost_world):
    """The store has seen every call to this API for longer than the limit's window."""
    lost_world.wait(limit("60/1m"))
    lost_world.sleep(120)
    for _ in range(10):
        lost_world.go(limit("1000/100s", key="a new account"))


def test_flush_does_not_double_the_rate(lost_world):
    """Whenever the store is lost, no window holds more than the limit."""
    bucket, started = limit("200/10s", burst=20), []
    for step in range(4000):
        if step in {1500, 1510, 2600}:
            lost_world.lose()
        if isinstance(lost_world.guard.admit(lost_world.ask(bucket, lane=Lane.BACKFILL)), Go):
            started.append(lost_world.now_us)
        lost_world.sleep(0.01 if step % 300 else 3)
    assert most_in_window(started, 10_000_000) <= 200
    assert len(started) > 700


def most_in_window(times, window_us):
    return max(sum(1 for at in times if begin <= at <= begin + window_us) for begin in times)


# listeners


class Ears:
    def __init__(self):
        self.heard = []

    def state_change(self, breaker, old, new):
        self.heard.append(("state_change", old.name, new.name))

    def success(self, breaker):
        self.heard.append(("success",))

    def failure(self, breaker, error):
        self.heard.append(("failure", type(error).__name__))


def test_listeners_hear_each_transition_once(world):
    """Two processes know the circuit; the one that causes a transition tells its listeners."""
    ears = Ears(), Ears()
    here, there = [world.circuit(listeners=[each], failures=2) for each in ears]
    world.call(here, result=BAD)
    world.call(there, result=BAD)
    world.sleep(60)
    world.call(here)
    world.call(there)
    assert ears[0].heard == [
        ("failure", "ServerError"),
        ("state_change", "open", "half_open"),
        ("success",),
    ]
    assert ears[1].heard == [
        ("failure", "ServerError"),
        ("state_change", "closed", "open"),
        ("success",),
        ("state_change", "half_open", "closed"),
    ]


def test_every_key_ends(each_redis_url):
    """Nothing stays in Redis for ever, and one slot holds all of an API."""
    world = World(partial(RedisStore, each_redis_url))
    world.store.mark_fresh(["binance"])
    klines, seats = world.circuit(), limit("5 at once")
    bucket = limit("600/1m", reserve=0.2, weight_max=3)
    world.trip(klines)
    world.sleep(60)
    lease = world.go(klines, bucket, seats)
    world.go(limit("5/1m"))
    world.wait(limit("5/1m"))
    world.go(klines, bucket, seats, lane=Lane.BACKFILL)
    world.settle(lease, throttled(5))
    world.circuit("other").force(CircuitState.DISABLED, by="ops", why="it errs")
    world.guard.settle(world.go(world.circuit("other")), BAD)
    world.circuit("throttled").record_failure(RateLimitError(retry_after_s=5))
    window, day = limit("5/1m", key="w", algorithm="window", reserve=0.5), limit("5/1d", key="w")
    paced = limit("5/1s", key="w", adaptive=True)
    world.guard.settle(world.go(window, day, paced), throttled())
    world.store.adjust(paced.spec, 0.5)
    world.store.restore(
        "binance", Remembered((Ban("host", round(2e15), 1),), (Spent(day.spec.key + "2", 1, 3),))
    )
    names = world.store._command(("KEYS", "*"))
    assert {name.decode().split(":")[2] for name in names} == {
        *("circuit", "permits", "override", "events", "bucket", "seats", "gate", "ticket", "since"),
        *("window", "restored"),
    }
    assert all(name.startswith(b"penstock:{binance}:") for name in names)
    ends = {name.decode(): world.store._command(("TTL", name.decode())) for name in names}
    ban = ends.pop("penstock:{binance}:gate:host")
    assert ban > 86_400
    assert all(0 < end <= 35 * 86_400 for end in ends.values())


def test_429s_that_are_only_told_of(world):
    """Nobody knows when their calls began: after the last wait one is news, and lasts longer; before, it is not."""
    bucket, told = limit("60/1m"), Guard(world.store)
    throttled = CallResult.of(RateLimitError(), latency_s=0.1)
    waits = []
    for _ in range(3):
        told.report(world.ask(bucket), throttled)
        told.report(world.ask(bucket), throttled)
        waits.append(world.wait(bucket).seconds)
        world.sleep(waits[-1])
    assert waits == [60, 120, 240]


@pytest.mark.parametrize(("error", "waits"), [(RateLimitError(), 20), (ServerError(), None)])
def test_a_wait_in_a_header_that_the_limit_names(world, error, waits):
    """Of a quota that is used up, a 429 asks to wait until it starts anew; other errors close no gate."""
    bucket = limit("6000/1m", remaining="X-Left", reset="X-Reset")
    lease = world.go(bucket)
    headers = {"X-Left": "0", "X-Reset": "20"}
    world.settle(lease, CallResult.of(error, latency_s=0.1, headers=headers))
    verdict = world.wait(bucket)
    assert (verdict.seconds if verdict.reason == "gate" else None) == waits


def test_circuits_of_a_symbol_and_an_account(world):
    """Each counts the errors that speak of it, and no others; the endpoint's counts neither."""
    endpoint = world.circuit(failures=2)
    symbol, account = (
        CircuitBreaker(
            name=scope, api="binance", policy=BreakerPolicy(failures=2), store=world.store, scope=scope
        )
        for scope in (Scope.SYMBOL, Scope.ACCOUNT)
    )
    every = (endpoint, symbol, account)

    def states():
        return [world.state(each) for each in every]

    def fail(error, *circuits):
        for _ in range(2):
            world.call(*circuits, result=CallResult.of(error, latency_s=0.1))

    fail(ValidationError(), *every)
    assert states() == [CLOSED, OPEN, CLOSED]
    fail(InvalidCredentialsError(), endpoint, account)
    assert states() == [CLOSED, OPEN, OPEN]
    symbol.reset()
    account.reset()
    fail(ServerError(), *every)
    assert states() == [OPEN, CLOSED, CLOSED]


def test_each_documents_waits_for_a_429(world):
    """How long one that names no wait closes the gate, at first and at most, and what it leaves of a rate."""
    bucket = limit(
        "100/10s",
        adaptive=True,
        default_retry_after=timedelta(seconds=4),
        default_retry_after_max=timedelta(seconds=10),
        cut=0.25,
    )
    waits, rates = [], []
    for _ in range(3):
        world.settle(world.go(bucket), CallResult.of(RateLimitError(), latency_s=0.1))
        waits.append(world.wait(bucket).seconds)
        rates.append(1 / world.store.limits([bucket.spec])[0].stretch)
        world.sleep(waits[-1] + 60)
    assert waits == [4, 8, 10]
    assert rates == pytest.approx([0.25, 0.0625, 0.0625])  # a sixteenth is the least
