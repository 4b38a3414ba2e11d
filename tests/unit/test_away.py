"""While the shared store is away each process keeps to its share; nothing is exceeded, going or coming back."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resilience.breaker import CircuitBreaker
from resilience.errors import BannedError, RateLimitError, ServerError, StoreUnavailableError
from resilience.guard import Ask, CallResult, Go, Guard, Wait
from resilience.limiter import RateLimiter
from resilience.policy import Limit
from resilience.store import CircuitState, Override
from resilience.store.away import RETRY_S, SharingStore
from resilience.store.memory import MemoryStore
from tests.unit.test_limiter import most_in_window

TIMEOUT_S = 0.5
HELD_S = TIMEOUT_S + RETRY_S + 1  # after the return nothing is admitted for so long


class Flaky(MemoryStore):
    """A store that may be away."""

    away = False

    def admit(self, request):
        self.check()
        return super().admit(request)

    def settle(self, report):
        self.check()
        return super().settle(report)

    def limits(self, specs):
        self.check()
        return super().limits(specs)

    def repay(self, debts, hold_us, gates=()):
        self.check()
        return super().repay(debts, hold_us, gates)

    def check(self):
        if self.away:
            raise StoreUnavailableError("away")


class Fleet:
    """Some processes on one store and one limit."""

    def __init__(self, limit, count=4, **words):
        self.now_us, self.started = 1_700_000_000_000_000, []
        self.limiter = RateLimiter("r", limit, api="a", key="k", **words)
        self.ask = Ask("a", (), (self.limiter,))
        self.flaky = Flaky(now_us=lambda: self.now_us)
        self.flaky.mark_fresh(["a"])
        self.guards = [
            Guard(
                SharingStore(
                    self.flaky,
                    lambda: count,
                    answers_within_s=TIMEOUT_S,
                    now_us=lambda: self.now_us,
                    clock=lambda: self.now_us / 1e6,
                )
            )
            for _ in range(count)
        ]
        self.due, self.tickets = [self.now_us] * count, [None] * count

    def call(self, seconds, luck):
        """Everybody calls as fast as the limit lets."""
        end = self.now_us + seconds * 1e6
        while self.now_us < end:
            n = min(range(len(self.due)), key=self.due.__getitem__)
            self.now_us = max(self.now_us, self.due[n])
            verdict, wait_s = self.guards[n].admit(self.ask, ticket=self.tickets[n]), 0.0
            self.tickets[n] = None
            if isinstance(verdict, Go):
                self.started.append((self.now_us, 1))
            else:
                wait_s, self.tickets[n] = min(verdict.seconds, 1.0), verdict.ticket
            self.due[n] = self.now_us + round((wait_s + luck.uniform(0.0005, 0.004)) * 1e6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.sampled_from(["100/1s", "60/1s", "8/1s"]), st.integers(1, 6))
@example(3168, "8/1s", 6)  # away for half a second, which one of the six did not see
def test_no_window_holds_more(seed, spec, count):
    """Before, while and after the store is away, however often."""
    luck, fleet = random.Random(seed), Fleet(spec, count)
    for _ in range(3):
        fleet.call(luck.uniform(0.5, 3), luck)
        fleet.flaky.away = not fleet.flaky.away
    fleet.flaky.away = False
    fleet.call(5, luck)
    assert most_in_window(fleet.started, 1_000_000) <= fleet.limiter.limit.amount


def test_the_share_is_used():
    """Nothing until the store was asked again; then hardly less than with it."""
    fleet = Fleet("100/1s", 4)
    asked_again_us = fleet.now_us + RETRY_S * 1e6
    fleet.flaky.away = True
    fleet.call(RETRY_S + 10, random.Random(1))
    assert fleet.started[0][0] >= asked_again_us
    assert len(fleet.started) > 850


def test_a_failure_of_the_same_moment_begins_no_share():
    """A thread that asks for the way back while another has only just found the store away."""
    fleet = Fleet("100/1s", 4)
    fleet.flaky.away = True
    fleet.guards[0].admit(fleet.ask)
    with pytest.raises(StoreUnavailableError):
        fleet.guards[0].store._come_back()
    fleet.now_us += 1_000_000
    assert fleet.guards[0].admit(fleet.ask).reason == "store"


def test_all_of_it_after_the_return():
    """A while of nothing, then the whole limit again."""
    fleet, luck = Fleet("100/1s", 4), random.Random(1)
    fleet.flaky.away = True
    fleet.call(5, luck)
    fleet.flaky.away = False
    fleet.call(HELD_S + 3, luck)
    before = len(fleet.started)
    fleet.call(5, luck)
    assert len(fleet.started) - before > 480


def test_a_limit_that_stops():
    """Nothing starts, and nothing is shared."""
    fleet = Fleet(Limit("100/1s", on_store_away="stop"))
    fleet.flaky.away = True
    with pytest.raises(StoreUnavailableError):
        fleet.guards[0].admit(fleet.ask)


@pytest.mark.parametrize("spec", ["3/1s", "3 at once", "100/1d"])
def test_a_share_of_nothing_stops(spec):
    """More processes than calls; a budget that nobody writes down."""
    fleet = Fleet(spec)
    fleet.flaky.away = True
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            fleet.guards[0].admit(fleet.ask)


def test_seats_get_a_lease_to_end():
    """The calls that were in flight before are known to nobody."""
    fleet = Fleet("8 at once")
    fleet.flaky.away = True
    assert fleet.guards[0].admit(fleet.ask).seconds == 35
    fleet.now_us += 35_000_000
    verdicts = [fleet.guards[0].admit(fleet.ask) for _ in range(3)]
    assert [isinstance(verdict, Go) for verdict in verdicts] == [True, True, False]
    fleet.flaky.away = False
    fleet.now_us += 3_000_000
    assert fleet.guards[0].admit(fleet.ask).seconds == pytest.approx(35, abs=0.1)
    fleet.guards[0].settle(verdicts[0].lease, CallResult.of(None, latency_s=1))  # a lease of the time before


def test_windows_wait_for_the_next():
    """What was used of the one that goes on is known to nobody; it is divided from the next one on."""
    fleet = Fleet(Limit("8/1m", algorithm="window"))
    fleet.flaky.away = True
    wait = fleet.guards[0].admit(fleet.ask)
    assert isinstance(wait, Wait)
    for guard in fleet.guards:
        guard.admit(fleet.ask)
    fleet.now_us += round(wait.seconds * 1e6)
    starts = [isinstance(guard.admit(fleet.ask), Go) for guard in fleet.guards for _ in range(5)]
    assert sum(starts) == 8
    fleet.flaky.away = False
    fleet.now_us += 3_000_000
    assert isinstance(fleet.guards[0].admit(fleet.ask), Wait)


def test_a_closed_gate_stays_closed():
    """Who was told of it keeps to it."""
    fleet = Fleet("100/1s")
    lease = fleet.guards[0].admit(fleet.ask).lease
    fleet.guards[0].settle(lease, CallResult.of(RateLimitError(retry_after_s=60), latency_s=0.1))
    assert fleet.guards[0].admit(fleet.ask).reason == "gate"
    fleet.flaky.away = True
    assert fleet.guards[0].admit(fleet.ask).reason == "gate"


def test_a_forced_circuit_stays_forced():
    """What people decided holds for each process's own state, too."""
    flaky = Flaky()
    flaky.away = True
    decided = Override(CircuitState.FORCED_OPEN, "ada", "an audit")
    guard = Guard(
        SharingStore(flaky, lambda: 1, recall=lambda api, name: decided if name == "held" else None)
    )
    held, free = (CircuitBreaker(name=name, api="a") for name in ("held", "free"))
    assert guard.admit(Ask("a", (held,), ())).reason == "forced_open"
    assert isinstance(guard.admit(Ask("a", (free,), ())), Go)


@pytest.mark.parametrize("error", [RateLimitError(retry_after_s=300), BannedError(retry_after_s=300)])
def test_a_gate_that_closes_meanwhile(error):
    """The store hears of it when it is back: nobody calls before its end, and a ban is called one."""
    fleet = Fleet("100/1s")
    fleet.flaky.away = True
    fleet.guards[0].admit(fleet.ask)
    fleet.now_us += 2_000_000
    fleet.flaky.away = True
    lease = fleet.guards[0].admit(fleet.ask).lease
    fleet.guards[0].settle(lease, CallResult.of(error, latency_s=0.1))
    assert fleet.guards[0].admit(fleet.ask).seconds == pytest.approx(300)
    fleet.flaky.away = False
    fleet.now_us += 8_000_000
    for guard in fleet.guards:
        wait = guard.admit(fleet.ask)
        assert wait.seconds == pytest.approx(292)
        assert wait.reason == ("ban" if isinstance(error, BannedError) else "gate")


def test_who_finds_it_last():
    """A process that tried just before the return, and whose next question hung: nothing is exceeded."""
    fleet, luck = Fleet("100/1s", 2), random.Random(1)
    fleet.flaky.away = True
    fleet.call(5, luck)
    fleet.flaky.away = False
    last = fleet.guards[1].store
    last._retry_at = fleet.now_us / 1e6 + RETRY_S + TIMEOUT_S
    fleet.call(HELD_S + 3, luck)
    assert most_in_window(fleet.started, 1_000_000) <= 100


class Alone:
    """One process with a circuit that opens at two failures, on a store that may be away."""

    def __init__(self):
        self.now_us = 1_700_000_000_000_000
        self.flaky = Flaky(now_us=lambda: self.now_us)
        self.flaky.mark_fresh(["a"])
        sharing = SharingStore(
            self.flaky, lambda: 1, now_us=lambda: self.now_us, clock=lambda: self.now_us / 1e6
        )
        self.breaker = CircuitBreaker(name="c", api="a", store=sharing, fail_max=2)
        self.guard, self.ask = Guard(sharing), Ask("a", (self.breaker,), ())

    def fails(self):
        lease = self.guard.admit(self.ask).lease
        self.guard.settle(lease, CallResult.of(ServerError("down"), latency_s=0.1))

    def says_that_it_fails(self):
        self.breaker.record_failure(ServerError("down"))


@pytest.mark.parametrize("fails", [Alone.fails, Alone.says_that_it_fails])
def test_a_circuit_opens_while_the_store_is_away(fails):
    """By what this process sees, whether it asked before the call or only says how it went."""
    alone = Alone()
    alone.flaky.away = True
    fails(alone)
    assert isinstance(alone.guard.admit(alone.ask), Go)
    fails(alone)
    assert alone.guard.admit(alone.ask).reason == "open"
    assert not alone.breaker.can_attempt()


def test_an_open_circuit_stays_open():
    """A process that was refused knows until when."""
    alone = Alone()
    alone.fails()
    alone.fails()
    assert alone.guard.admit(alone.ask).reason == "open"
    alone.flaky.away = True
    assert alone.guard.admit(alone.ask).reason == "open"
    alone.now_us += 61_000_000
    assert isinstance(alone.guard.admit(alone.ask), Go)


def test_the_store_goes_away_during_a_call():
    """What the call says is learned here; its answer is not lost."""
    alone = Alone()
    leases = [alone.guard.admit(alone.ask).lease for _ in range(2)]
    alone.flaky.away = True
    for lease in leases:
        alone.guard.settle(lease, CallResult.of(ServerError("down"), latency_s=0.1))
    assert alone.guard.admit(alone.ask).reason == "open"


def test_a_rate_that_was_slowed_stays_slow():
    """By hand, a server's headers or its 429s: nobody forgets it with the store."""
    fleet, luck = Fleet("100/1s", 2), random.Random(1)
    fleet.flaky.adjust(fleet.limiter.spec, 0.1)
    fleet.call(5, luck)
    fleet.flaky.away = True
    before = len(fleet.started)
    fleet.call(10, luck)
    assert len(fleet.started) - before < 110
