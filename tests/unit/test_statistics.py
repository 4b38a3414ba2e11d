"""What a limiter's statistics say of its endpoints."""

import pytest

from resilience.policy import Limit
from resilience.statistics import humanize, statistics_of
from resilience.store import LimitReading

UNTIL_US, UNTIL = 1_700_000_045_222_224, "2023-11-14T22:14:05.222224Z"


def of_endpoint(**words):
    """The statistics of a limiter with one endpoint."""
    return statistics_of("prices", Limit("10/1s"), {None: LimitReading(), "/a": LimitReading(**words)}, {})


@pytest.mark.parametrize(
    "words",
    [
        {"backoff_until_us": UNTIL_US},
        {"gate_until_us": UNTIL_US},
        {"backoff_until_us": UNTIL_US - 1, "gate_until_us": UNTIL_US},
    ],
)
def test_the_end_of_a_backoff(words):
    """The later of the two, in ISO 8601 with a Z, also for people."""
    statistics = of_endpoint(**words)
    for told in (statistics, humanize(statistics)):
        assert told["endpoints"]["/a"]["in_backoff"] is True
        assert told["endpoints"]["/a"]["backoff_until"] == UNTIL


def test_no_backoff():
    """Nothing to wait for has no end."""
    told = of_endpoint()["endpoints"]["/a"]
    assert (told["in_backoff"], told["backoff_until"]) == (False, None)
