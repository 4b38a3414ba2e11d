"""Most calls are plain, and scripts decide those by themselves: they say what the others and memory say.

Whatever has just happened to a circuit, a gate or a bucket, plain calls follow it, across each of the times at
which what happened is over.
"""

from dataclasses import replace
from itertools import count

import pytest

from resilience.store import CircuitState, Delay, Grant, Kind, Move, Report, Request, Route, Told
from resilience.store.memory import MemoryStore
from resilience.store.redis import RedisStore
from tests.integration.test_stores_agree import BURSTY, CIRCUITS, GUESSED, HEAVY, QUICK, START_US, TWO

SHORT, STRICT = CIRCUITS[0], CIRCUITS[3]
ROUTES = {
    "plain": Route("a", (SHORT,), (BURSTY,), ()),
    "two": Route("a", (SHORT, STRICT), (HEAVY, QUICK), ()),
    "adaptive": Route("a", (STRICT,), (GUESSED,), ()),
    "seats": Route("a", (STRICT,), (QUICK,), (TWO,)),
    "circuit": Route("a", (SHORT,), (), ()),
    "bucket": Route("a", (), (BURSTY,), ()),
    "banned": Route("a", (SHORT,), (BURSTY,), (), "api", (), ("account",)),
}


class Pair:
    """A store in memory and one in Redis, on one clock."""

    def __init__(self, url, route):
        self.now, self.route, self.ids = START_US, route, count()
        clock = {"actor": "it", "now_us": lambda: self.now}
        self.stores = MemoryStore(**clock), RedisStore(url, **clock)
        self.both("mark_fresh", ["a"])

    def both(self, question, *arguments):
        ours, theirs = [getattr(store, question)(*arguments) for store in self.stores]
        assert ours == theirs
        return ours

    def admit(self, *, live=True, ticket=None, weight=1, patience_us=0):
        id_ = f"call-{next(self.ids)}"
        return self.both("admit", Request(self.route, id_, weight, live, ticket, patience_us))

    def settle(self, grant, kind=Kind.SUCCESS, retry_after_us=None, **words):
        return self.both("settle", Report(grant, kind, retry_after_us, **words))

    def started(self, **words):
        """A call that may start, however long it has to wait."""
        for _ in range(100):
            answer = self.admit(**words)
            if isinstance(answer, Grant):
                return answer
            self.now += answer.wait_us if isinstance(answer, Delay) else answer.until_us - self.now
        raise AssertionError(answer)

    def call(self, kind=Kind.SUCCESS, retry_after_us=None, **words):
        self.settle(self.started(), kind, retry_after_us, **words)

    def look(self):
        self.both("circuits", self.route.circuits)
        self.both("limits", (*self.route.rates, *self.route.seats))


def recovers(pair):
    for _ in range(3):
        pair.settle(pair.started(), Kind.FAILURE)
    for _ in range(6):
        pair.call()


def fails(pair):
    pair.call(Kind.FAILURE)


def throttled(pair):
    pair.call(Kind.THROTTLED)


def throttled_for(pair):
    pair.call(Kind.THROTTLED, 2_000_000)


def throttled_again(pair):
    """The first of two that open a strict circuit; a success between them begins anew."""
    pair.call(Kind.THROTTLED, 0)
    pair.now += 1_500_000
    pair.call()
    pair.call(Kind.THROTTLED, 0)


def banned(pair):
    pair.call(Kind.BANNED, 3_000_000)


def slow(pair):
    pair.call(latency_us=2_500_000)
    pair.call(latency_us=1_000_001)


def ignored(pair):
    pair.call(Kind.IGNORED)


def told(pair):
    pair.call(told=tuple(Told(index, 5, 3_000_000) for index, _ in enumerate(pair.route.rates)))


def adjusted(pair):
    for spec in pair.route.rates:
        pair.both("adjust", spec, 0.5)


def paused(pair):
    pair.both("move", [Move(SHORT, CircuitState.DISABLED, "ada", "to see", pair.now + 2_000_000)])


def forced(pair):
    pair.both("move", [Move(STRICT, CircuitState.FORCED_OPEN, "ada", "to see", pair.now + 2_000_000)])


def late(pair):
    """Calls of another era come in, one that held no permit and one that nobody asked for."""
    grant = pair.started()
    pair.both("move", [Move(spec, CircuitState.CLOSED, "ada", "anew") for spec in pair.route.circuits])
    pair.settle(grant)
    never = (-1,) * len(grant.eras)
    pair.settle(replace(grant, request=replace(grant.request, id="unasked"), eras=never, started_us=0))


def released(pair):
    pair.both("release", pair.started())


def queued(pair):
    answers = [pair.admit(patience_us=10**12) for _ in range(80)]
    tickets = [answer.ticket for answer in answers if isinstance(answer, Delay)]
    pair.now += 900_000
    for ticket in tickets[:3]:
        pair.admit(ticket=ticket)


def backfilled(pair):
    """Live work is seen, and long ago; backfills pass what they leave."""
    for wait_us in (0, 7_000_000, 12_000_000, 7_000_000):
        pair.call()
        pair.now += wait_us
        for _ in range(25):
            pair.now += 100_000
            pair.admit(live=False)


def heavy(pair):
    pair.admit(weight=3)


def long_ago(pair):
    pair.now += 90_000_000_000


AFTER = [recovers, fails, throttled, throttled_for, throttled_again, banned, slow, ignored, told, adjusted]
AFTER += [paused, forced, late, released, queued, backfilled, heavy, long_ago]


@pytest.mark.parametrize("happens", AFTER, ids=lambda happens: happens.__name__)
@pytest.mark.parametrize("route", ROUTES)
def test_plain_calls_after(each_redis_url, route, happens):
    """Every answer, every transition, every figure."""
    pair = Pair(each_redis_url, ROUTES[route])
    for _ in range(3):
        pair.call()
    happens(pair)
    for wait_us in (0, 1, 700, 999_299, 1_000_000, 1_000_000, 999_999, 1, 1_000_000, 6_000_000, 61_000_000):
        pair.now += wait_us
        for _ in range(2):
            answer = pair.admit()
            if isinstance(answer, Grant):
                pair.settle(answer)
        pair.look()
    happens(pair)
    pair.call()
    grant = pair.started()
    for _ in range(4):
        _, answer = pair.both(
            "settle_and_admit",
            Report(grant, Kind.SUCCESS),
            Request(pair.route, f"page-{pair.now}", 1, live=True),
        )
        pair.now += 200_000
        if not isinstance(answer, Grant):
            break
        grant = answer
    pair.look()
    ours, theirs = [[replace(event, id="") for event in store.events("a")] for store in pair.stores]
    assert ours == theirs
    pair.stores[1].close()
