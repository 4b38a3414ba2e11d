"""What servers say about their limits, in their own words."""

from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilience import headers as dialects
from resilience.errors import ConfigurationError
from resilience.guard import Ask, CallResult, Go, Guard, Kind, Wait
from resilience.headers import Dialect, Quota, quota_from, quotas_in, retry_after_s, wait_of
from resilience.limiter import RateLimiter
from resilience.policy import Limit
from resilience.store.memory import MemoryStore

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HERE = "Fri, 02 Jan 2026 03:04:05 GMT"
BINANCE = Limit("6000/1m", per="ip", headers=dialects.BINANCE_MINUTE)
BY_NAME = Limit("60/1m", remaining="X-Left", reset="X-Reset")
MINUTE, DAY = Limit("60/1m"), Limit("5000/1d")
IN_MS = Limit("60/1m", headers=Dialect(remaining="X-Left", reset="X-Reset", unit="ms"))
DAY_S = 86_400


def test_binance_says_what_is_used():
    """The limit itself comes from the declaration."""
    quota = quota_from({"x-mbx-used-weight-1m": "5990", "Content-Type": "application/json"}, BINANCE)
    assert quota == Quota(limit=6000, used=5990)
    assert quota.left == 10


def test_more_used_than_allowed_leaves_nothing():
    """Never a negative rest."""
    assert Quota(limit=6000.0, used=6100.0).left == 0
    assert quota_from({"X-Left": "-3"}, BY_NAME).left == 0


def test_remaining_and_reset():
    """What the server says remains needs no reckoning."""
    quota = quota_from({"X-Left": "12.0", "X-Reset": "30"}, BY_NAME)
    assert (quota.left, quota.reset_s) == (12.0, 30.0)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("30", 30.0),
        ("30.5", 30.5),
        ("1767323075", 30.0),
        ("1767323075000", 30.0),
        ("1767323075000000", 30.0),
        ("1767323075000000000", 30.0),
        ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0),
        ("Friday, 02-Jan-26 03:04:35 GMT", 30.0),
        ("2026-01-02T03:04:35Z", 30.0),
        ("2026-01-02T05:04:35.500+02:00", 30.5),
        ("2026-01-02 03:04:35", 30.0),
        ("6s", 6.0),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("999999", 86_400.0),
        ("2099-01-01", 86_400.0),
        ("2026-01-02T03:04:00Z", 0.0),
        ("0", 0.0),
        ("1970-01-01", None),
        ("1000000001", None),
        ("-30", None),
        ("soon", None),
        ("30 seconds", None),
        ("1e3", None),
        ("٣٠", None),
    ],
)
def test_reset_in_any_form(reset, seconds):
    """The form says what it is; what has long passed or cannot be read says nothing."""
    assert quota_from({"X-Left": "1", "X-Reset": reset, "Date": HERE}, BY_NAME).reset_s == seconds


def test_milliseconds_have_to_be_declared():
    """Nobody could tell them from seconds; points in time are the same in any unit."""
    assert quota_from({"X-Left": "1", "X-Reset": "2500"}, IN_MS).reset_s == 2.5
    assert quota_from({"X-Left": "1", "X-Reset": "1767323075", "Date": HERE}, IN_MS).reset_s == 30


def test_silence_is_no_quota():
    """Coinbase documents no such headers, and an answer may lack them."""
    assert quota_from({"X-MBX-USED-WEIGHT-1M": "5"}, Limit("10/1s")) is None
    assert quota_from({}, BINANCE) is None
    assert quota_from({"X-Left": "many"}, BY_NAME) is None


# as the services send them


REDDIT = {"x-ratelimit-remaining": "996.0", "x-ratelimit-used": "4", "x-ratelimit-reset": "498"}
X = {"x-rate-limit-limit": "450", "x-rate-limit-remaining": "449", "x-rate-limit-reset": "1767323945"}
GLASSNODE = {"x-rate-limit-limit": "600", "x-rate-limit-remaining": "0", "x-rate-limit-reset": "42"}
HPE = {"X-RateLimit-Limit": "160", "X-RateLimit-Remaining": "12", "X-RateLimit-Reset": "2026-01-02T03:04:45Z"}
IETF = {"RateLimit-Limit": "100, 100;w=60", "RateLimit-Remaining": "50", "RateLimit-Reset": "5"}


@pytest.mark.parametrize(
    ("said", "limit", "quota"),
    [
        (REDDIT, Limit("100/1m"), None),
        (REDDIT, Limit("1000/10m"), Quota(None, None, 996, 498)),
        (X, Limit("450/15m"), Quota(450, None, 449, 900)),
        (GLASSNODE, Limit("600/1m"), Quota(600, None, 0, 42)),
        (HPE, Limit("160/1m"), Quota(160, None, 12, 40)),
        (IETF, Limit("100/1m"), Quota(100, None, 50, 5)),
        (HPE, Limit("5 at once"), None),
        ({"X-MinLimit-Remaining": "58"}, Limit("60/1m", headers=dialects.XERO_MINUTE), Quota(60, None, 58)),
        ({"X-DayLimit-Remaining": "9"}, Limit("5000/1d", headers=dialects.XERO_DAY), Quota(5000, None, 9)),
        (
            {"X-AppMinLimit-Remaining": "9999"},
            Limit("10000/1m", headers=dialects.XERO_APP_MINUTE),
            Quota(10000, None, 9999),
        ),
        (
            {"X-API-CREDITS-REMAINING": "2400"},
            Limit("5000/1d", headers=dialects.ZOHO_CREDITS),
            Quota(5000, None, 2400),
        ),
    ],
)
def test_services(said, limit, quota):
    """Seconds, Unix times and ISO times under names that look alike; a longer window is another limit's."""
    assert quota_from({**said, "Date": HERE}, limit) == quota


def test_drafts():
    """Two quotas in a line, with their windows in another; bytes are no calls."""
    said = {
        "RateLimit": '"minute";r=50;t=30, "day";r=4000;t=80000, "bytes";r=1;t=1',
        "RateLimit-Policy": '"minute";q=60;w=60,"day";q=5000; w=86400;pk=:c2Vj:,"bytes";q=9;w=1;qu="content-bytes"',
    }
    assert quotas_in(said, NOW) == (Quota(60, None, 50, 30, 60), Quota(5000, None, 4000, 80000, 86400))
    assert quota_from(said, MINUTE).left == 50
    assert quota_from(said, DAY).left == 4000
    assert quota_from(said, Limit("10/1s")) is None


@pytest.mark.parametrize("said", [";", ",", '"', '"a', ";;r=1", "a;", '"a";r', "=", "remaining=", ",;,"])
def test_broken_drafts(said):
    """No quota, or one that says nothing."""
    assert all(quota.left is None for quota in quotas_in({"RateLimit": said, "RateLimit-Policy": said}))


def test_an_older_draft():
    """All in one line."""
    assert quotas_in({"ratelimit": "limit=100, remaining=7, reset=5"}) == (Quota(100, None, 7, 5),)


def test_the_scarcer_of_two_that_cannot_be_told_apart():
    """Two families in one answer, neither of which names a window."""
    said = {"X-RateLimit-Remaining": "30", "RateLimit-Remaining": "20"}
    assert quota_from(said, MINUTE).left == 20


def test_a_header_that_came_twice():
    """Joined with a comma: the stricter number counts, and if one is none the header is none."""
    assert quota_from({"X-Left": "10, 9"}, BY_NAME).left == 9
    assert quota_from({"X-MBX-USED-WEIGHT-1M": "10, 12"}, BINANCE).used == 12
    assert quota_from({"X-Left": "10, many"}, BY_NAME) is None


@pytest.mark.parametrize(
    ("said", "limit", "seconds"),
    [
        ("30, 30", BY_NAME, 30.0),
        ("30,45 , 12", BY_NAME, 45.0),
        ("999999, 5", BY_NAME, DAY_S),
        ("2500, 1500", IN_MS, 2.5),
        ("1m30s, 6s", BY_NAME, 90.0),
        ("1767323075, 1767323065", BY_NAME, 30.0),
        ("2026-01-02T03:04:35Z, 2026-01-02T03:04:25Z", BY_NAME, 30.0),
        ("30, soon", BY_NAME, None),
        ("30, -1", BY_NAME, None),
        ("30,", BY_NAME, None),
    ],
)
def test_a_reset_that_came_twice(said, limit, seconds):
    """The longest counts, and if one is none the header is none."""
    assert quota_from({"X-Left": "1", "X-Reset": said, "Date": HERE}, limit).reset_s == seconds


def test_a_dialect_that_says_nothing():
    """A reset alone is of no use; nor are two ways to say the same."""
    with pytest.raises(ConfigurationError, match="`used` or `remaining`"):
        Dialect(reset="X-Reset")
    with pytest.raises(ConfigurationError, match="or the names"):
        Limit("60/1m", used="X-Used", headers=dialects.XERO_MINUTE)


@pytest.mark.parametrize("unit", ["us", "S", "", None, 1])
def test_an_unknown_unit(unit):
    """It is found where it is written, not while an answer is read."""
    with pytest.raises(ConfigurationError, match=f"unit is {unit!r}, but has to be s or ms"):
        Dialect(used="X-Used", reset="X-Reset", unit=unit)


# how long to wait


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("259200", 3.0 * DAY_S),
        ("604801", 7.0 * DAY_S),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Mon, 05 Jan 2026 03:04:05 GMT", 3.0 * DAY_S),
        ("Sun, 01 Feb 2026 03:04:05 GMT", 7.0 * DAY_S),
        ("120, 120", 120.0),
        ("7,120", 120.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT, Fri, 02 Jan 2026 03:04:35 GMT", 60.0),
        ("Friday, 02-Jan-26 03:04:35 GMT,Friday, 02-Jan-26 03:05:05 GMT", 60.0),
        ("Fri, 2 Jan 2026 03:04:35 GMT, 60", 60.0),
        ("Fri, Jan 2 2026 03:05:05", 60.0),
        ("120, soon", None),
        (",", None),
        ("Fri, 02 Jan 2026 03:04:00 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
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
    said = {"retry-after": "Fri, 02 Jan 2026 04:05:05 GMT", "date": "Fri, 02 Jan 2026 04:04:05 GMT"}
    assert retry_after_s(said, NOW) == 60.0


def test_a_ban_of_three_days_by_the_servers_clock():
    """It is not cut to a day, whatever our clock says."""
    said = {"Retry-After": "Sun, 04 Jan 2026 03:04:05 GMT", "Date": "Thu, 01 Jan 2026 03:04:05 GMT"}
    assert retry_after_s(said, NOW) == 3 * DAY_S


def test_no_retry_after():
    """Nothing said."""
    assert retry_after_s({}, NOW) is None


def test_the_reset_of_what_is_used_up_is_a_wait():
    """X sends no Retry-After; a quota that has something left is not the one that was hit."""
    assert retry_after_s({**X, "x-rate-limit-remaining": "0"}, NOW) == 900
    assert retry_after_s(X, NOW) is None
    assert retry_after_s({**GLASSNODE, "Retry-After": "7"}, NOW) == 7
    assert retry_after_s({"RateLimit": '"m";r=0;t=30, "d";r=0;t=900, "h";r=5;t=9999'}) == 900


def test_a_reset_is_no_wait_of_more_than_a_day():
    """Only a Retry-After may ask for days."""
    assert retry_after_s({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "259200"}, NOW) == DAY_S


@pytest.mark.parametrize(
    ("quotas", "seconds"),
    [
        ([], None),
        ([Quota(remaining=0, reset_s=20)], 20),
        ([Quota(limit=60, used=61, reset_s=20)], 20),
        ([Quota(remaining=0, reset_s=20), Quota(remaining=0, reset_s=900)], 900),
        ([Quota(remaining=0, reset_s=20), Quota(remaining=1, reset_s=900)], 20),
        ([Quota(remaining=0, reset_s=0)], 0),
        ([Quota(remaining=0)], None),
        ([Quota(reset_s=20)], None),
    ],
)
def test_the_wait_of_quotas(quotas, seconds):
    """Until the last one that is used up starts anew; silence is no wait."""
    assert wait_of(quotas) == seconds


def test_the_wait_of_a_limit_that_names_its_headers():
    """No family has such a name, so only the limit knows what its 429 says."""
    said = {"X-Left": "0", "X-Reset": "20"}
    assert retry_after_s(said, NOW) is None
    assert wait_of([quota_from(said, BY_NAME, NOW)]) == 20


# whatever stands there


NAMES = [
    *("Retry-After", "Date", "X-Left", "X-Reset", "X-MBX-USED-WEIGHT-1M", "RateLimit", "RateLimit-Policy"),
    *(
        f"{family}-{part}"
        for family in ("X-RateLimit", "RateLimit")
        for part in ("Limit", "Remaining", "Reset")
    ),
]
moments = st.datetimes().map(lambda at: at.replace(tzinfo=UTC))
single = st.one_of(
    st.text(st.characters(codec="latin-1"), max_size=80),
    st.text('"0123456789;=,.-rtqw ', max_size=80),
    st.integers().map(str),
    st.floats().map(str),
    moments.map(lambda at: at.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    moments.map(datetime.isoformat),
    st.tuples(st.integers(0, 99), st.integers(0, 9999)).map(lambda n: f'"a";r={n[0]};t={n[1]}'),
    st.integers(0, 9999).map(lambda n: f"limit=10, remaining=5, reset={n}"),
    st.integers(0, 10**6).map(lambda n: f"{n}s"),
    st.lists(st.sampled_from([*"0179 ,:.-+TZ", "Fri", "Jan", "2026", "GMT", "99999"]), max_size=12).map(
        "".join
    ),
)
twice = st.lists(single, min_size=2, max_size=3).map(", ".join)
values = single | twice
anything = st.dictionaries(st.sampled_from(NAMES), values)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(anything)
def test_anything_may_stand_there(said):
    """Never an error, never a wait below zero or above a week, never less than nothing left."""
    wait = retry_after_s(said, NOW)
    assert wait is None or 0 <= wait <= 7 * DAY_S
    for quota in (
        *quotas_in(said, NOW),
        *(quota_from(said, each, NOW) for each in (BINANCE, BY_NAME, IN_MS, MINUTE)),
    ):
        if quota is not None:
            assert quota.left is None or quota.left >= 0
            assert quota.reset_s is None or 0 <= quota.reset_s <= DAY_S


@given(
    st.one_of(
        st.integers(0, 10**13).map(str),
        st.integers(0, 10**6).map(lambda n: f"{n}s"),
        moments.map(lambda at: at.strftime("%a, %d %b %Y %H:%M:%S GMT")),
        moments.map(datetime.isoformat),
    ),
    st.sampled_from([",", ", ", " , "]),
)
def test_the_same_wait_twice_is_that_wait(value, comma):
    """Of a number, a duration or a date, whose own comma divides nothing."""
    assert retry_after_s({"Retry-After": value + comma + value}, NOW) == retry_after_s(
        {"Retry-After": value}, NOW
    )


def wait_after(said, limit):
    """How long the call after this answer has to wait."""
    store = MemoryStore(now_us=lambda: 1_700_000_000_000_000)
    store.mark_fresh(["a"])
    guard, limiter = Guard(store), RateLimiter("r", limit, api="a", key="k")
    ask = Ask("a", (), (limiter,))
    verdict = guard.admit(ask)
    assert isinstance(verdict, Go)
    guard.settle(verdict.lease, CallResult(Kind.SUCCESS, 0.1, headers=said))
    verdict = guard.admit(ask)
    return verdict.seconds if isinstance(verdict, Wait) else 0.0


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(anything, st.sampled_from([BY_NAME, MINUTE, DAY]))
def test_nothing_speeds_up_and_another_window_holds_nothing_up(said, limit):
    """Whatever a server says, the next call comes no earlier; what was found by itself costs a window at most."""
    wait = wait_after(said, limit)
    assert wait >= wait_after({}, limit)
    if limit.dialect is None:
        assert wait <= 2 * limit.window_s
