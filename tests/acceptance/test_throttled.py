"""A 429 with Retry-After on real processes: one answer holds back every worker."""

import json
import time

import pytest

from tasks.models import runs, workers

SLOTS = 8  # of two workers
WAIT_S = 5
# The first 429 is answered at once; within this it has been settled, also on a machine that is busy.
HEARD_S = 1.0


@pytest.fixture
def two_workers(fleet):
    """The fleet with one worker more, as soon as both collect."""
    fleet.start("other-worker", "worker")
    fleet.wait_for(
        lambda: (
            sum(fleet.column(workers.c.slots, workers.c.kind == "units", workers.c.stopped_at.is_(None)))
            == SLOTS
        ),
        "a second worker to be alive",
    )
    yield fleet
    assert fleet.stop("other-worker") == {"other-worker": 0}


def test_one_429_stops_every_worker(two_workers, upstream):
    """Calls in flight come home, but none of their workers calls again before the wait is over; nothing is lost."""
    fleet = two_workers
    upstream.reset("binance")
    upstream.control("binance", latency_ms=[500, 5000])  # so that workers come home one after the other
    symbols = [f"HELD{n}USDT" for n in range(3 * SLOTS)]
    ordered = fleet.command("run", "binance.klines", "--symbols", ",".join(symbols), "--detach", "--json")
    number = json.loads(ordered.stdout)[0]["run"]
    fleet.wait_for(
        lambda: upstream.stats("binance")["in_flight"] == SLOTS, "every process to have a call out"
    )
    began = time.monotonic()
    upstream.control("binance", latency_ms=0, throttle_s=WAIT_S)
    fleet.wait_for(lambda: upstream.stats("binance")["throttled"], "the first 429")
    time.sleep(HEARD_S)
    still_out = upstream.stats("binance")["in_flight"]
    fleet.wait_for(lambda: fleet.results(runs.c.id == number), "the end of the run")

    stats, arrivals = upstream.stats("binance"), sorted(upstream.arrivals("binance"))
    refused = stats["by_status"]["429"]
    first = next(at for at in arrivals if at > began)
    early = [at for at in arrivals if first <= at < began + WAIT_S]
    print(
        f"\n{refused} calls answered 429, the last {early[-1] - first:.3f} s after the first; {still_out} out then"
    )
    assert still_out > 0  # there was somebody to be held back who has heard no 429
    assert early[-1] - first <= HEARD_S
    assert refused <= len(early)  # and not one more after them
    assert refused <= SLOTS - still_out  # one at most of each process that was home
    (result,) = fleet.results(runs.c.id == number)
    assert (result["outcome"], result["successful_items"], result["errors"]) == ("ok", len(symbols), [])
    assert result["rate_limited"]
    assert (result["retries"], result["calls"]) == (0, len(symbols) + refused)
