"""What the guard decides about circuits, whichever store it asks, blocking or awaited."""

from datetime import timedelta
from functools import partial

import pytest

from resilience.breaker import CircuitBreaker
from resilience.errors import (
    DatabaseError,
    InvalidCredentialsError,
    NotFoundError,
    RateLimitError,
    Scope,
    ServerError,
    ValidationError,
)
from resilience.guard import Ask, CallResult, Go
from resilience.policy import BreakerPolicy, Lane
from resilience.store import Ban, CircuitState, Override, Remembered, Spent
from resilience.store.redis import RedisStore

from .world import BAD, CLOSED, GOOD, HALF_OPEN, OPEN, World, limit, throttled

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
