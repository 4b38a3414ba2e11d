"""What servers say about their limits, in their own words."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.headers import Quota, quota_from, retry_after_s
from resilience.policy import Limit

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BINANCE = Limit("6000/1m", per="ip", used="X-MBX-USED-WEIGHT-1M")
XERO = Limit("60/1m", remaining="X-MinLimit-Remaining", reset="X-MinLimit-Reset")


def test_binance_says_what_is_used():
    """The limit itself comes from the declaration."""
    quota = quota_from({"x-mbx-used-weight-1m": "5990", "Content-Type": "application/json"}, BINANCE)
    assert quota == Quota(limit=6000.0, used=5990.0)
    assert quota.left == 10


def test_more_used_than_allowed_leaves_nothing():
    """Never a negative rest."""
    assert Quota(limit=6000.0, used=6100.0).left == 0


def test_remaining_and_reset():
    """What the server says remains needs no reckoning."""
    quota = quota_from({"X-MinLimit-Remaining": "12.0", "X-MinLimit-Reset": "30"}, XERO)
    assert (quota.left, quota.reset_s) == (12.0, 30.0)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("1767323075", 30.0), ("1767323075000", 30.0), ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0), ("30", 30.0)],
)
def test_reset_in_any_unit(reset, seconds):
    """Seconds, a Unix time in seconds or milliseconds, a date."""
    headers = {
        "X-MinLimit-Remaining": "1",
        "X-MinLimit-Reset": reset,
        "Date": "Fri, 02 Jan 2026 03:04:05 GMT",
    }
    assert quota_from(headers, XERO).reset_s == seconds


def test_silence_is_no_quota():
    """Coinbase documents no such headers, and an answer may lack them."""
    assert quota_from({"X-MBX-USED-WEIGHT-1M": "5"}, Limit("10/1s")) is None
    assert quota_from({}, BINANCE) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("999999", 86_400.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:04:00 GMT", 0.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("1e5", None),
        ("Fri, 99 Jan 2026 03:05:05 GMT", None),
    ],
)
def test_retry_after(value, seconds):
    """Seconds or a date; garbage is no wait."""
    assert retry_after_s({"Retry-After": value}, NOW) == seconds


def test_retry_after_by_the_servers_clock():
    """Our clock is an hour off; the server's two dates agree with each other."""
    headers = {"retry-after": "Fri, 02 Jan 2026 04:05:05 GMT", "date": "Fri, 02 Jan 2026 04:04:05 GMT"}
    assert retry_after_s(headers, NOW) == 60.0


def test_no_retry_after():
    """Nothing said."""
    assert retry_after_s({}, NOW) is None


headers = st.dictionaries(
    st.sampled_from(
        ["Retry-After", "Date", "X-MinLimit-Remaining", "X-MinLimit-Reset", "X-MBX-USED-WEIGHT-1M"]
    ),
    st.one_of(
        st.text(max_size=40),
        st.integers().map(str),
        st.floats().map(str),
        st.datetimes().map(lambda at: at.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    ),
)


@given(headers)
def test_anything_may_stand_there(said):
    """Never an error, never a wait below zero or above a day, never less than nothing left."""
    wait = retry_after_s(said, NOW)
    assert wait is None or 0 <= wait <= 86_400
    for limit in (BINANCE, XERO):
        quota = quota_from(said, limit)
        if quota is not None:
            assert quota.left >= 0
            assert quota.reset_s is None or 0 <= quota.reset_s <= 86_400
