"""The shipped collectors that need access tokens, unit by unit, against the fake APIs and their token servers."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from tasks.data import (
    calendar_events,
    gmail_messages,
    greenlake_devices,
    greenlake_subscriptions,
    reddit_posts,
    zoho_accounts,
)
from tasks.seal import new_key
from tests.upstream.apis import google, greenlake, reddit, zoho
from tests.upstream.apis.tokens import CLIENT, REFRESH

from .conftest import connect, on_both

DATABASES = ("sqlite",)
AT = 1_900_000_000
TOKEN_PATHS = {
    "calendar": "/token",
    "gmail": "/token",
    "greenlake": "/authorization/v2/oauth2/{GREENLAKE_WORKSPACE}/token",
    "reddit": "/api/v1/access_token",
    "zoho": "/oauth/v2/token",
}
SECRETS = {
    "PENSTOCK_TOKEN_KEY": new_key(),
    "GOOGLE_USER_TOKEN": json.dumps(
        {"client_id": CLIENT[0], "client_secret": CLIENT[1], "refresh_token": REFRESH}
    ),
    "GREENLAKE_WORKSPACE": greenlake.WORKSPACE,
    "GREENLAKE_CLIENT_ID": CLIENT[0],
    "GREENLAKE_CLIENT_SECRET": CLIENT[1],
    "REDDIT_CLIENT_ID": CLIENT[0],
    "REDDIT_CLIENT_SECRET": CLIENT[1],
    "ZOHO_CLIENT_ID": CLIENT[0],
    "ZOHO_CLIENT_SECRET": CLIENT[1],
    "ZOHO_REFRESH_TOKEN": REFRESH,
}


class Account:
    """One shipped collector at work for the account of a test."""

    def __init__(self, fleet, name, **changed):
        self.fleet, self.name, self.upstream = fleet, name, fleet.upstream
        token_url = self.upstream.base(name) + TOKEN_PATHS[name]
        fleet.configure({name: {"token_url": token_url}}, PENSTOCK_COLLECTORS=name, **SECRETS | changed)
        connect(fleet.inbox.app)  # its queues follow from the collectors

    def control(self, **changes):
        return self.upstream.control(self.name, **changes)

    def run(self, endpoint, symbols=None):
        """Run it to its end as a worker would; returns what became of each symbol."""
        run = self.fleet.run(f"{self.name}.{endpoint}", symbols)
        queue, inbox = f"collect.{self.name}", self.fleet.inbox
        deadline = time.monotonic() + 60
        while inbox.length(queue):
            assert time.monotonic() < deadline
            message = inbox.take(queue)
            if eta := message.headers.get("eta"):
                time.sleep(max(0.0, (datetime.fromisoformat(eta) - datetime.now(UTC)).total_seconds()))
            inbox.run(message)
        return {unit["symbol"]: unit["outcome"] for unit in self.fleet.units(run)}

    def rows(self, table):
        return self.fleet.installation.rows(table)

    def seen(self):
        """What the API counted: requests over a limit, answers by status, tokens given."""
        stats = self.upstream.stats(self.name)
        return stats["violations"], stats["by_status"].keys(), stats["tokens"]["granted"]


@pytest.fixture
def account(fleet):
    return lambda name, **changed: Account(fleet, name, **changed)


def z(text):
    return datetime.fromisoformat(text)


@on_both
def test_reddit(account):
    """Every post of two subreddits with one token, texts as they were written; then those that came since."""
    one, names = account("reddit"), ["rivers", "weirs"]
    for added in (0, 7):
        one.control(add=added)
        assert one.run("posts", names) == dict.fromkeys(names, "stored")
        served = [row for name in names for row in reddit.expected(name, added)]
        assert one.rows(reddit_posts) == sorted(served, key=lambda row: row["id"])
    assert any("<tags> &" in row["text"] for row in served)
    assert one.seen() == (0, {"200"}, 1)


@on_both
def test_greenlake(account):
    """All devices and subscriptions of the workspace that the token is for, what was modified and added, too."""
    one, touched = account("greenlake"), {}
    for _ in range(2):
        assert one.run("devices") == one.run("subscriptions") == {"": "stored"}
        assert one.rows(greenlake_devices) == greenlake.expected_devices(touched)
        subscriptions = greenlake.expected_subscriptions({n: at for n, at in touched.items() if n < 3})
        assert one.rows(greenlake_subscriptions)[:130] == subscriptions
        one.control(touch={"count": 3, "at": AT})
        one.control(add={"count": 4, "at": AT})
        touched = dict.fromkeys([*range(3), *range(4321, 4325)], AT)
    assert len(one.rows(greenlake_subscriptions)) == 134
    assert one.seen() == (0, {"200"}, 1)


@on_both
def test_calendar(account):
    """Every event of two calendars over pages without any; then what was moved and cancelled, by a new token."""
    one = account("calendar")
    for version in (0, 20):
        one.control(change=version, expire_tokens=True)
        assert one.run("events", google.CALENDARS) == dict.fromkeys(google.CALENDARS, "stored")
        served = [row for calendar in google.CALENDARS for row in google.expected_events(calendar, version)]
        assert one.rows(calendar_events) == served
    assert {row["status"] for row in served} == {"cancelled", "confirmed", "tentative"}
    assert one.seen() == (0, {"200", "401"}, 2)


@on_both
def test_calendar_changes(account):
    """A call for each calendar where little has changed; everything again where the API has dropped its tokens."""
    one, calls = account("calendar"), []
    for version, added, forgotten in ((0, 0, False), (3, 3, False), (5, 2, True)):
        one.control(change=added, expire_syncs=forgotten)
        before = one.upstream.stats("calendar")["requests"]
        assert one.run("events", google.CALENDARS) == dict.fromkeys(google.CALENDARS, "stored")
        calls.append(one.upstream.stats("calendar")["requests"] - before)
        assert one.rows(calendar_events) == [
            row for calendar in google.CALENDARS for row in google.expected_events(calendar, version)
        ]
    pages = calls[0] - 1  # the first call of all is for an access token
    assert calls == [1 + pages, 2, 2 + pages]
    assert one.seen()[1] == {"200", "410"}


@on_both
def test_gmail(account):
    """The mailbox; then who came and was relabelled, asked for alone; all of it where the history is forgotten."""
    one, calls, count = account("gmail"), [], google.MESSAGES
    for added, relabelled, forgotten in ((0, 0, False), (50, 10, False), (0, 0, False), (5, 20, True)):
        one.control(add=added)
        one.control(relabel=relabelled)
        one.control(forget_history=forgotten)
        before, count = one.upstream.stats("gmail")["requests"], count + added
        assert one.run("messages", ["me"])["me"] in {"stored", "empty"}
        calls.append(one.upstream.stats("gmail")["requests"] - before)
        labelled = max(relabelled, 10 if len(calls) > 1 else 0)
        assert one.rows(gmail_messages) == google.expected_messages("me", count, labelled)
    pages, again = -(-google.MESSAGES // 40), -(-count // 40)
    # A token and the profile first; then two pages of history; then one; at last it is refused, and the profile.
    assert calls == [2 + pages + google.MESSAGES, 2 + 60, 1, 2 + again + count]
    assert one.seen() == (0, {"200", "404"}, 1)


def zoho_runs(one, touched=()):
    """Runs it, compares what is kept with what is served; returns how many requests that took."""
    before = one.upstream.stats("zoho")
    outcome = one.run("accounts")[""]
    assert one.rows(zoho_accounts) == zoho.expected(dict.fromkeys(touched, AT))
    after = one.upstream.stats("zoho")
    return outcome, after["requests"] - before["requests"], after["mcp_calls"] - before["mcp_calls"]


@on_both
def test_zoho_by_rest(account):
    """Every account; then those that were modified or added; then, for none were, no page."""
    one, changed = account("zoho"), [*range(3), *range(zoho.ACCOUNTS, zoho.ACCOUNTS + 4)]
    assert zoho_runs(one) == ("stored", 4, 0)  # one of them for a token
    one.control(touch={"count": 3, "at": AT})
    one.control(add={"count": 4, "at": AT})
    assert zoho_runs(one, changed) == ("stored", 1, 0)
    one.control(touch={"count": 0, "at": AT})
    assert zoho_runs(one, changed)[1:] == (1, 0)
    assert one.seen()[0::2] == (0, 1)


@on_both
def test_zoho_by_mcp(account, upstream):
    """The newest first, no token needed; the second time no further back than what is known."""
    one = account("zoho", ZOHO_MCP_URL=f"{upstream.base('zoho')}/{zoho.MCP_PATH}")
    assert zoho_runs(one) == ("stored", 3, 3)
    one.control(touch={"count": 3, "at": AT})
    assert zoho_runs(one, range(3)) == ("stored", 1, 1)
    assert one.seen()[0::2] == (0, 0)


@on_both
@pytest.mark.parametrize("trouble", [{"mcp": False}, {"mcp_error": True}])
def test_zoho_where_the_mcp_server_fails(account, upstream, trouble):
    """It answers with an error, or its tool does: the next tier reads all of it, in the same delivery."""
    one = account("zoho", ZOHO_MCP_URL=f"{upstream.base('zoho')}/{zoho.MCP_PATH}")
    one.control(**trouble)
    outcome, requests, _ = zoho_runs(one)
    assert (outcome, requests) == ("stored", 5)


@on_both
@pytest.mark.parametrize("status", [403, 429])
def test_google_says_later(account, status):
    """Over a limit, whichever status says so, a unit waits half a minute and has not failed."""
    from tasks.models import units

    one = account("calendar")
    one.control(limits={"amount": 0}, over_limit=status)
    assert one.run("events", ["primary"]) == {"primary": None}
    (unit,) = one.rows(units)
    assert (unit["state"], unit["attempts"]) == ("waiting", 0)
    assert unit["not_before"] - datetime.now(UTC) > timedelta(seconds=20)


@on_both
def test_google_says_never(account):
    """What an account may not, no wait changes: one token, and one call."""
    one = account("calendar")
    one.control(forbidden=True)
    assert one.run("events", ["primary"]) == {"primary": "failed"}
    assert one.rows(calendar_events) == []
    assert one.upstream.stats("calendar")["by_status"] == {"200": 1, "403": 1}


@on_both
@pytest.mark.parametrize("name", ["reddit", "calendar", "zoho"])
def test_no_token_stands_in_the_database(account, name):
    """Nor does a secret of the client: not in any table, in clear."""
    from tasks.models import metadata

    one = account(name)
    asked = {"reddit": ("posts", ["rivers"]), "calendar": ("events", ["primary"]), "zoho": ("accounts",)}
    one.run(*asked[name])
    assert one.seen()[2] == 1
    everything = repr([one.rows(table) for table in metadata.sorted_tables])
    assert any(word in everything for word in ("primary", "rivers", "Utilities"))
    for secret in (f"access-of-{name}", REFRESH, *CLIENT):
        assert secret not in everything
