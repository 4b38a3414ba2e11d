"""What servers say closes gates and slows rates down, for everybody who shares a limit."""

from datetime import timedelta

import pytest

from resilience.errors import RateLimitError, ServerError
from resilience.guard import CallResult, Guard, Kind

from .world import CLOSED, limit, throttled


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


# 429s


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
