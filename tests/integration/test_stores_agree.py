"""The memory store says what the Redis scripts do: the same questions at the same times get the same answers."""

import os
from collections import deque
from dataclasses import replace
from datetime import timedelta

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from resilience.breaker import CircuitBreaker
from resilience.errors import Scope
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Limit
from resilience.store import (
    CircuitState,
    Closed,
    Delay,
    Grant,
    Kind,
    Move,
    Override,
    Remembered,
    Report,
    Request,
    Route,
    Spent,
    Told,
    Unrestored,
    Unwritten,
)
from resilience.store.memory import MemoryStore
from resilience.store.redis import RedisStore

START_US = 1_700_000_000_000_000

SHORT = BreakerPolicy(
    failures=2,
    rate=0.5,
    window=timedelta(seconds=10),
    min_calls=4,
    open_for=timedelta(seconds=3),
    open_max=timedelta(seconds=6),
    permit_lease=timedelta(seconds=4),
    slow_start_step=timedelta(seconds=2),
)
BY_RATE = BreakerPolicy(failures=None, rate=0.34, min_calls=3, half_open_calls=1, half_open_successes=1)
PLAIN = BreakerPolicy(failures=3, rate=None, open_for=timedelta(seconds=1))
STRICT = BreakerPolicy(
    failures=3,
    rate=None,
    min_calls=2,
    slow_rate=0.5,
    slow_after=timedelta(seconds=1),
    open_for=timedelta(seconds=2),
    reopen_on="first_failure",
    rate_limited_trips=2,
)
COUNTING = BreakerPolicy(failures=2, count_rate_limited=True, half_open_calls=5, half_open_successes=3)
DECIDED = {
    "plain": Override(CircuitState.FORCED_OPEN, "ops", "until it is lifted"),
    "counting": Override(CircuitState.DISABLED, "ops", "for long", START_US + 10**12),
}


def circuit(name, policy, scope=Scope.SERVICE):
    return CircuitBreaker(name=name, api="a", policy=policy, scope=scope).spec


def limit(spec, *, key="ip", weight_max=1, lease=5, **words):
    limited = Limit(spec, **words)
    lease = timedelta(seconds=lease)
    return RateLimiter(spec, limited, api="a", key=key, weight_max=weight_max, lease=lease).spec


CIRCUITS = (
    circuit("short", SHORT),
    circuit("by-rate", BY_RATE),
    circuit("plain", PLAIN),
    circuit("strict", STRICT),
    circuit("counting", COUNTING),
    circuit("symbol", SHORT, Scope.SYMBOL),
)
QUICK = limit("10/1s", key="account")
HEAVY = limit("100/1m", weight_max=3, used="X-Used", reserve=0.3)
BURSTY = limit("50/10s", burst=10, remaining="X-Left", reserve=0.5)
TWO = limit("2 at once", key="account")
GUESSED = limit("40/10s", key="account", adaptive=True, remaining="X-Left", min_rate=0.5)
GROWING = limit(
    "20/10s",
    key="other",
    adaptive=True,
    max_rate=5,
    cut=0.7,
    default_retry_after=timedelta(seconds=3),
    default_retry_after_max=timedelta(seconds=9),
)
MINUTE = limit("30/1m", algorithm="window", used="X-Used", reserve=0.5, weight_max=3)
SECOND = limit("4/1s", key="account", algorithm="window")
DAY = limit("70/1d", midnight="America/New_York", reserve=0.2, weight_max=3)
MONTH = limit("300/month", key="account", weight_max=3)
AMOUNT = {QUICK: 10, HEAVY: 100, BURSTY: 50, GUESSED: 40, GROWING: 50}
COUNT = {MINUTE: 30, SECOND: 4, DAY: 70, MONTH: 300}
EVERY = (QUICK, HEAVY, BURSTY, TWO, GUESSED, GROWING, MINUTE, SECOND, DAY, MONTH)

ROUTES = (
    Route("a", CIRCUITS[:1], (QUICK,), ()),
    Route("a", CIRCUITS[:2], (HEAVY, QUICK), ()),
    Route("a", (CIRCUITS[2],), (BURSTY,), (TWO,)),
    Route("a", (), (HEAVY,), ()),
    Route("a", (), (BURSTY, HEAVY, QUICK), ()),
    Route("a", CIRCUITS, (), ()),
    Route("a", CIRCUITS[3:4], (), (), None),
    Route("a", CIRCUITS[4:], (), ()),
    Route("a", (), (GUESSED,), ()),
    Route("a", CIRCUITS[:1], (GUESSED, GROWING, QUICK), (), None, (), ("ip",)),
    Route("a", (), (), (), None, (MINUTE,)),
    Route("a", (), (BURSTY,), (TWO,), "api", (SECOND, MINUTE, DAY), ("key",)),
    Route("a", (CIRCUITS[2],), (GUESSED, HEAVY), (), "api", (DAY, MONTH)),
    Route("a", CIRCUITS[3:4], (), (), "api", (), ("ip",)),
)

waits = st.sampled_from(
    [0, 1, 900, 10_000, 101_011, 400_000, 1_000_000, 2_500_000, 7_000_000, 61_000_000, 301_000_000]
)
kinds = st.sampled_from([*[Kind.SUCCESS] * 3, *[Kind.FAILURE] * 3, *Kind])
# What the server says of a limit: what remains (None: nothing is said) and when it starts anew.
quotas = st.tuples(
    st.sampled_from([None, None, 0, 1, 2.5, 30, 90]), st.sampled_from([0, 0, 2_000_000, 30_000_000])
)
# Gates that were closed while the store was away: for how long yet, and what of that is a ban.
gates = st.builds(
    Closed,
    st.just("a"),
    st.sampled_from(["api", "ip", "account"]),
    st.sampled_from([1, 2_000_000, 90_000_000]),
    st.sampled_from([0, 0, 1_000_000]),
    st.integers(0, 3),
)
reports = st.tuples(
    kinds,
    st.sampled_from([None, None, 0, 500_000, 3_000_000]),
    st.lists(quotas, max_size=3),
    st.sampled_from([0, 1000, 600_000, 1_000_000, 1_000_001, 2_500_000]),
    st.sampled_from([Scope.NONE, Scope.SERVICE, Scope.SYMBOL]),
)
asks = st.tuples(
    st.sampled_from(ROUTES),
    st.sampled_from([1, 1, 2, 3]),
    st.booleans(),
    st.sampled_from([None, 0, 0, -1, 3]),
    st.sampled_from([10**12, 10**12, 0, 300_000]),
)


class BothStores(RuleBasedStateMachine):
    """Everything happens twice, once in each store."""

    url = ""
    ledger = False

    def __init__(self):
        super().__init__()
        self.written = {}
        self.bans = {}
        self.now = START_US
        self.count = 0
        self.tickets = []
        self.leases = deque()
        self.started = {spec: [] for spec in (*AMOUNT, *COUNT)}
        self.connection = redis.Redis.from_url(self.url)
        self.connection.flushall()
        self.recall = None
        self.stores = ()

    def teardown(self):
        if self.stores:
            self.stores[1].close()
        self.connection.close()

    def both(self, question, *arguments):
        ours, theirs = [getattr(store, question)(*arguments) for store in self.stores]
        assert ours == theirs
        return ours

    def make(self, kind, **words):
        return kind(**words, recall=self.recall, actor="it", now_us=lambda: self.now)

    def ask(self, request, answer=None):
        """Ask, and do first what the stores want to be done."""
        answer = answer or self.both("admit", request)
        while isinstance(answer, Unrestored | Unwritten):
            if isinstance(answer, Unrestored):
                self.both("restore", "a", self.remembered())
            else:
                self.allot(answer)
            answer = self.both("admit", request)
        return answer

    def remembered(self):
        spent = [Spent(spec.key, begin, amount) for (spec, begin), amount in self.written.items()]
        return Remembered(tuple(self.bans.values()), tuple(spent))

    def allot(self, unwritten):
        place = unwritten.budget, unwritten.begin_us
        before = self.written.get(place, 0)
        self.written[place] = min(before + unwritten.wanted, unwritten.budget.amount)
        self.both("allot", *place, self.written[place] - before)

    def tell(self, settled):
        self.bans.update({ban.sharer: ban for ban in settled.bans})

    @initialize(fresh=st.booleans(), recalls=st.booleans(), ledger=st.booleans())
    def start(self, fresh, recalls, ledger):
        self.ledger = ledger
        if recalls:
            self.recall = lambda api, name: DECIDED.get(name)
        self.stores = self.make(MemoryStore), self.make(RedisStore, url=self.url)
        if fresh:
            self.both("mark_fresh", ["a"])

    @rule(wait_us=waits)
    def wait(self, wait_us):
        self.now += wait_us

    @rule(ask=asks)
    def admit(self, ask):
        request = self.request(*ask)
        self.take(request, self.ask(request))

    @rule(ask=asks, times=st.integers(2, 12))
    def admit_many(self, ask, times):
        for _ in range(times):
            self.admit(ask)

    @rule(report=reports)
    def settle(self, report):
        if self.leases:
            self.tell(self.both("settle", self.report(*report)))

    @rule(report=reports, ask=asks)
    def settle_and_admit(self, report, ask):
        if self.leases:
            request = self.request(*ask)
            settled, answer = self.both("settle_and_admit", self.report(*report), request)
            self.tell(settled)
            self.take(request, self.ask(request, answer))

    @rule(seconds=st.sampled_from([None, 1, 3]), ask=asks, times=st.integers(1, 8))
    def hit_the_gate(self, seconds, ask, times):
        """A 429, and everyone is back when it is over."""
        if self.leases:
            self.both("settle", self.report(Kind.THROTTLED, seconds and seconds * 1_000_000, [], 0))
            self.now += (seconds or 60) * 1_000_000
            self.admit_many(ask, times)

    @rule(seconds=st.sampled_from([None, 1, 100_000]), wait_us=waits)
    def ban(self, seconds, wait_us):
        if self.leases:
            self.tell(self.both("settle", self.report(Kind.BANNED, seconds and seconds * 1_000_000, [], 0)))
            self.now += wait_us

    @rule(hours=st.integers(1, 30))
    def sleep(self, hours):
        self.now += hours * 3_600_000_000

    @rule(spec=st.sampled_from((QUICK, GUESSED, GROWING)), factor=st.sampled_from([0.5, 0.07, 1, 1]))
    def adjust(self, spec, factor):
        self.both("adjust", spec, factor)

    @rule(
        owed=st.lists(
            st.tuples(st.sampled_from(EVERY), st.sampled_from([0, 70_000])), unique_by=lambda each: each[0]
        ),
        closed=st.lists(gates, max_size=2),
    )
    def repay(self, owed, closed):
        """The store was away; others spent something meanwhile, and servers closed gates."""
        self.both("repay", owed, 3_000_000, closed)

    @rule(route=st.sampled_from(ROUTES), kind=st.sampled_from(Kind), seconds=st.sampled_from([None, 1, 100]))
    def tell_without_asking(self, route, kind, seconds):
        """Somebody says how a call went that nobody was asked about."""
        self.count += 1
        request = Request(route, f"unasked-{self.count}", 1, live=True)
        never = [-1 for _ in route.circuits]
        grant = Grant(request, 0, tuple(never), tuple(era >= 0 for era in never), (), ())
        self.tell(self.both("settle", Report(grant, kind, seconds and seconds * 1_000_000)))

    @rule()
    def look_at_limits(self):
        self.both("limits", EVERY)

    @rule(route=st.sampled_from(ROUTES), times=st.integers(2, 8), late_us=waits, backwards=st.booleans())
    def queue(self, route, times, late_us, backwards):
        """Several wait for their slots and come at about the same time."""
        asked = [
            Request(route, f"queue-{self.count}-{n}", 1, live=True, ledger=self.ledger) for n in range(times)
        ]
        answers = [self.ask(request) for request in asked]
        for request, answer in zip(asked, answers, strict=True):
            self.take(request, answer)
        self.count += 1
        waits_us = [(answer.wait_us, answer.ticket) for answer in answers if isinstance(answer, Delay)]
        if waits_us:
            self.now += max(waits_us)[0] // 2 + late_us
        for n, (_, ticket) in enumerate(sorted(waits_us, key=str, reverse=backwards)):
            request = Request(
                route, f"redeem-{self.count}-{n}", 1, live=True, ticket=ticket, ledger=self.ledger
            )
            self.take(request, self.ask(request))

    @rule()
    def release(self):
        if self.leases:
            grant = self.leases.pop()
            self.both("release", grant)
            for spec in (*grant.request.route.rates, *grant.request.route.windows):
                self.started[spec].remove((grant.started_us, grant.request.weight))

    @rule(
        moved=st.lists(st.tuples(st.sampled_from(CIRCUITS), st.sampled_from(CircuitState), waits), max_size=3)
    )
    def move(self, moved):
        moves = []
        for spec, state, wait_us in moved:
            lasting = state in {CircuitState.FORCED_OPEN, CircuitState.DISABLED}
            until_us = self.now + wait_us if lasting and wait_us else 0
            moves.append(Move(spec, state, "somebody", "to see", until_us))
        self.both("move", moves)

    @rule(index=st.integers(0, len(CIRCUITS) - 1), report=reports, times=st.integers(1, 4))
    def record(self, index, report, times):
        """A call that nobody asked about."""
        route = Route("a", CIRCUITS[index : index + 1], (), (), None)
        for _ in range(times):
            grant = Grant(
                self.request(route, 1, live=True, age=None, patience_us=0), 0, (-1,), (False,), (), ()
            )
            kind, retry_after_us, _, latency_us, scope = report
            self.both("settle", Report(grant, kind, retry_after_us, (), latency_us, scope))

    @rule()
    def look(self):
        self.both("circuits", CIRCUITS)

    @invariant()
    def transitions(self):
        """Both tell the same, and say where each began that the one before ended.

        In one question a circuit may come back from what was decided while another's time is over: which of
        the two is told first is left open.
        """
        if not self.stores:
            return
        ours, theirs = [
            sorted(
                [replace(event, id="") for event in store.events("a")],
                key=lambda event: (event.at_us, event.circuit),  # of one circuit they stay in order
            )
            for store in self.stores
        ]
        assert ours == theirs
        last = {}
        for event in ours:
            assert event.old is last.get(event.circuit, event.old)
            assert event.new is not event.old
            last[event.circuit] = event.new

    @rule()
    def lose(self):
        """Redis comes back empty."""
        self.connection.flushall()
        self.stores = self.make(MemoryStore), self.stores[1]

    def request(self, route, weight, live, age, patience_us):
        self.count += 1
        ticket = (
            self.tickets[age] if age is not None and -len(self.tickets) <= age < len(self.tickets) else None
        )
        if {QUICK, GUESSED, GROWING, SECOND} & {*route.rates, *route.windows}:
            weight = 1
        return Request(route, f"call-{self.count}", weight, live, ticket, patience_us, self.ledger)

    def report(self, kind, retry_after_us, quotas, latency_us, scope=Scope.NONE):
        grant = self.leases.popleft()
        limits = (*grant.request.route.rates, *grant.request.route.windows)
        told = [
            Told(index, remaining, reset_us)
            for index, (remaining, reset_us) in enumerate(quotas[: len(limits)])
            if remaining is not None
        ]
        return Report(grant, kind, retry_after_us, tuple(told), latency_us, scope)

    def take(self, request, answer):
        if isinstance(answer, Grant):
            self.leases.append(answer)
            for spec in request.route.rates:
                self.started[spec].append((self.now, request.weight))
                self.check_windows(spec)
            for spec in request.route.windows:
                self.started[spec].append((self.now, request.weight))
                self.check_phase(spec)
        elif getattr(answer, "ticket", None) and answer.ticket not in self.tickets:
            self.tickets.append(answer.ticket)

    def check_windows(self, spec):
        """However it came about, no window holds more than the limit."""
        begin = self.now - spec.window_us
        assert sum(weight for at, weight in self.started[spec] if at >= begin) <= AMOUNT[spec]

    def check_phase(self, spec):
        """No window of the clock or calendar does either; of budgets only with somewhere to write them down."""
        begin, _ = spec.bounds(self.now, self.now)
        if self.ledger or not spec.saved:
            assert sum(weight for at, weight in self.started[spec] if at >= begin) <= COUNT[spec]


def test_same_answers(each_redis_url):
    """Whatever is asked, in whatever order; and no window of any phase holds more than a limit."""
    machine = type("BothStoresOf", (BothStores,), {"url": each_redis_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("PENSTOCK_TEST_EXAMPLES", "40")),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
