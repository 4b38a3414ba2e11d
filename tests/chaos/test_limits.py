"""A limit that a whole fleet shares is never exceeded, and used up when it is what holds the fleet back."""

import pytest

from resilience.policy import Limit
from tests.chaos.fleet import report
from tests.chaos.test_chaos import launch
from tests.integration.test_limit_exactness import usable

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

SYMBOLS = 900
WEIGHT = 2
SPEC = Limit("60/1s")
PACE_S = WEIGHT / SPEC.rate_for(WEIGHT)
CALM_S = 10


def best_share(times):
    """What was used of the limit less burst in the best ten seconds, without gaps in which nobody asked.

    A machine that is busy with something else keeps the processes from asking, but not all the time.
    """
    spans = (
        [at for at in times if 0 <= at - since < CALM_S] for since in times if since + CALM_S <= times[-1]
    )
    return max(len(span) / usable(span, PACE_S) for span in spans)


@pytest.fixture
def symbols():
    """How many units."""
    return SYMBOLS


def test_eight_processes_on_one_limit(fleet):
    """Eight worker processes at full speed: nothing over the limit in any window, and hardly anything unused."""
    fleet = fleet(workers=2, concurrency=4, environment={"POND_LIMIT": SPEC.spec}, latency_ms=20)
    fleet.upstream.control("binance", limits={"amount": SPEC.amount, "window_s": SPEC.window_s})
    result, _ = fleet.wait_for_close(launch())
    stats = fleet.upstream.stats("binance")
    arrivals = sorted(fleet.upstream.arrivals("binance"))
    # From the second on, so that neither the start of the fleet nor the end of the work is counted.
    first, last = arrivals[0] + 5, arrivals[-1] - 3
    steady = [at for at in arrivals if first <= at < last]
    share, best = len(steady) * PACE_S / (last - first), best_share(steady)
    report(
        "limit",
        deployment=fleet.deployment,
        processes=8,
        calls=len(arrivals),
        over_the_limit=stats["limits"][0]["over_window"],
        most_in_a_window=stats["max_in_window"],
        limit=SPEC.amount,
        calls_per_second=round(len(steady) / (last - first), 2),
        share_of_limit_less_burst=round(share, 4),
        share_in_the_best_ten_seconds=round(best, 4),
        waits=result["waits"],
    )
    assert result["successful_items"] == SYMBOLS
    assert stats["limits"][0]["over_window"] == 0
    assert stats["violations"] == 0
    assert best >= 0.98
