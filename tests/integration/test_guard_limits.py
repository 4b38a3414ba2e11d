"""What the guard decides about limits: rates and their tickets, calls in flight, lanes, a store that was lost."""

import pytest

from resilience.errors import ConfigurationError
from resilience.guard import Go, Refuse
from resilience.policy import Lane

from .world import BAD, GOOD, OPEN, limit


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
