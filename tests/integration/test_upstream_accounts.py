"""The fake APIs that want an access token: what they serve, what they refuse, and what they count."""

import json
from types import SimpleNamespace

import pytest
import requests

from tests.upstream.apis import google, greenlake, reddit, xero, zoho
from tests.upstream.apis.tokens import CLIENT, REFRESH

TOKEN_PATHS = {
    "xero": "connect/token",
    "reddit": "api/v1/access_token",
    "greenlake": greenlake.GreenLake.token_path,
    "calendar": "token",
    "gmail": "token",
    "zoho": "oauth/v2/token",
}
REFRESHING = {"xero", "calendar", "gmail", "zoho"}


@pytest.fixture
def http():
    with requests.Session() as session:
        session.trust_env = False
        session.headers["User-Agent"] = "tests"
        yield session


@pytest.fixture
def ask(http, upstream):
    """Calls of one API, with a token once `login` was called."""

    def made(api):
        def login(refresh=REFRESH, client=CLIENT):
            kind = "refresh_token" if api in REFRESHING else "client_credentials"
            form = {"grant_type": kind} | ({"refresh_token": refresh} if api in REFRESHING else {})
            answer = http.post(f"{upstream.base(api)}/{TOKEN_PATHS[api]}", data=form, auth=client, timeout=10)
            if answer.ok:
                scheme = "Zoho-oauthtoken" if api == "zoho" else "Bearer"
                http.headers["Authorization"] = f"{scheme} {answer.json()['access_token']}"
            return answer

        def get(path, headers=None, **query):
            return http.get(f"{upstream.base(api)}/{path}", params=query, headers=headers, timeout=10)

        return SimpleNamespace(login=login, get=get)

    return made


@pytest.mark.parametrize("api", TOKEN_PATHS)
def test_a_token_lets_in_until_it_expires(ask, upstream, api):
    """401 before there is one, with a wrong one, and when it has expired; a wrong client gets none."""
    paths = {
        "xero": "api.xro/2.0/Contacts",
        "reddit": "r/rivers/new",
        "greenlake": "devices/v1/devices",
        "calendar": "calendar/v3/calendars/primary/events",
        "gmail": "gmail/v1/users/me/profile",
        "zoho": "crm/v8/Accounts",
    }
    one = ask(api)
    headers = {"xero-tenant-id": xero.TENANTS[0], "Accept": "application/json"}
    assert one.get(paths[api], headers, fields="id").status_code == 401
    assert one.login(client=("the-client-of-a-test", "wrong")).status_code == 401
    assert one.login().status_code == 200
    assert one.get(paths[api], headers, fields="id").status_code == 200
    upstream.control(api, expire_tokens=True)
    assert one.get(paths[api], headers, fields="id").status_code == 401
    upstream.control(api, revoke=True)
    assert one.login().json() == {"error": "invalid_grant"}
    assert upstream.stats(api)["tokens"] == {"granted": 1, "refused": 2}


def test_a_refresh_token_serves_once(ask, upstream):
    """The old one is refused for ever, unless the server is told to be patient."""
    one = ask("xero")
    second = one.login().json()["refresh_token"]
    assert one.login().json() == {"error": "invalid_grant"}
    third = one.login(second).json()["refresh_token"]
    upstream.control("xero", token_grace_s=60)
    fourth = one.login(second).json()["refresh_token"]
    assert len({REFRESH, second, third, fourth}) == 4
    assert one.login(fourth).status_code == 200


def test_reddit_to_the_end(ask):
    """Every post, newest first, by `after`."""
    one, found, after = ask("reddit"), [], None
    one.login()
    while True:
        answer = one.get("r/rivers/new", limit=100, raw_json=1, **({"after": after} if after else {}))
        found += [child["data"] for child in answer.json()["data"]["children"]]
        after = answer.json()["data"]["after"]
        if after is None:
            break
    assert found == reddit.posts("rivers")
    assert len(found) > 100
    assert float(answer.headers["x-ratelimit-remaining"]) == 1000 - float(answer.headers["x-ratelimit-used"])
    assert one.get("r/rivers/new", {"User-Agent": "python-requests/2"}).status_code == 403


def test_greenlake_to_the_end(ask, upstream):
    """By offset up to the total; a limit for each kind of thing, and the wait in the body."""
    one, found = ask("greenlake"), []
    one.login()
    while len(found) < greenlake.COUNTS["devices"]:
        body = one.get("devices/v1/devices", limit=2000, offset=len(found), sort="id").json()
        assert (body["offset"], body["count"]) == (len(found), len(body["items"]))
        found += body["items"]
    assert found == greenlake.rows("devices")
    upstream.control("greenlake", limits={"subscriptions": 2})
    for _ in range(2):
        assert one.get("subscriptions/v1/subscriptions").status_code == 200
    refused = one.get("subscriptions/v1/subscriptions")
    assert refused.status_code == 429
    assert refused.json()["serverErrorDetails"][0]["retryAfterSeconds"] >= 1
    assert one.get("devices/v1/devices").status_code == 200
    assert upstream.stats("greenlake")["violations"] == 1


def test_xero_to_the_end(ask, upstream):
    """Page after page, JSON only where it is asked for, and only what was modified since."""
    one, tenant, found = ask("xero"), xero.TENANTS[1], []
    one.login()
    headers = {"xero-tenant-id": tenant, "Accept": "application/json"}
    for page in range(1, 4):
        body = one.get("api.xro/2.0/Invoices", headers, page=page, pageSize=1000).json()
        found += body["Invoices"]
    assert body["pagination"] == {"page": 3, "pageSize": 1000, "pageCount": 3, "itemCount": len(found)}
    assert found == xero.rows("Invoices", tenant)
    upstream.control("xero", touch={"count": 3, "at": 1_900_000_000})
    modified = one.get("api.xro/2.0/Invoices", headers | {"If-Modified-Since": "2030-01-01T00:00:00"}, page=1)
    assert len(modified.json()["Invoices"]) == 3
    assert one.get("api.xro/2.0/Invoices", headers | {"Accept": "*/*"}).content.startswith(b"<")
    assert one.get("api.xro/2.0/Invoices", headers | {"xero-tenant-id": "none"}).status_code == 403


def test_xero_counts_three_limits(ask, upstream):
    """For a minute, a day and the app; which one it was stands in a header."""
    one = ask("xero")
    one.login()
    upstream.control("xero", limits={"amount": 3, "day": 2})
    headers = {"xero-tenant-id": xero.TENANTS[0], "Accept": "application/json"}
    left = [
        one.get("api.xro/2.0/Contacts", headers, page=1).headers["X-DayLimit-Remaining"] for _ in range(2)
    ]
    assert left == ["1", "0"]
    refused = one.get("api.xro/2.0/Contacts", headers, page=1)
    assert (refused.status_code, refused.headers["X-Rate-Limit-Problem"]) == (429, "day")
    assert int(refused.headers["Retry-After"]) > 80_000
    elsewhere = one.get("api.xro/2.0/Contacts", headers | {"xero-tenant-id": xero.TENANTS[2]}, page=1)
    assert elsewhere.status_code == 200


def test_a_calendar_and_what_changed_of_it(ask, upstream):
    """One page is empty and not the last; the token comes with the last and gives only what changed."""
    one, path = ask("calendar"), "calendar/v3/calendars/primary/events"
    one.login()

    def read(**query):
        found, sizes = [], []
        while True:
            body = one.get(path, maxResults=2500, **query).json()
            found += body["items"]
            sizes.append(len(body["items"]))
            if "nextSyncToken" in body:
                return found, sizes, body["nextSyncToken"]
            query["pageToken"] = body["nextPageToken"]

    found, sizes, token = read()
    assert found == google.events("primary")
    assert 0 in sizes
    upstream.control("calendar", change=9)
    changed, _, _ = read(syncToken=token)
    assert [each["id"] for each in changed] == [f"e{n:05d}" for n in range(1, 10)]
    assert {"id": "e00007", "status": "cancelled"} in changed
    assert one.get(path, syncToken=token, timeMin="2026-01-01T00:00:00Z").status_code == 400
    upstream.control("calendar", expire_syncs=True)
    assert one.get(path, syncToken=token).status_code == 410


def test_mail_and_its_history(ask, upstream):
    """Ids in pages, a call for each message, some of them gone; then only what was added, as long as it is known."""
    one, path = ask("gmail"), "gmail/v1/users/me"
    one.login()
    start = one.get(f"{path}/profile").json()["historyId"]

    def read(kind, **query):
        bodies = []
        while True:
            bodies.append(one.get(f"{path}/{kind}", maxResults=500, **query).json())
            if "nextPageToken" not in bodies[-1]:
                return bodies
            query["pageToken"] = bodies[-1]["nextPageToken"]

    ids = [each["id"] for body in read("messages") for each in body["messages"]]
    answers = [one.get(f"{path}/messages/{each}", format="metadata") for each in ids]
    assert {answer.status_code for answer in answers} == {200, 404}
    assert [each.json() for each in reversed(answers) if each.ok] == google.messages("me")
    assert upstream.stats("gmail")["limits"][0]["max_in_window"] == 1 + 5 * (len(ids) + 5)
    upstream.control("gmail", add=3)
    (body,) = read("history", startHistoryId=start)
    added = [each["messagesAdded"][0]["message"]["id"] for each in body["history"]]
    assert added == [f"m{n:08x}" for n in range(google.MESSAGES, google.MESSAGES + 3)]
    upstream.control("gmail", forget_history=True)
    assert one.get(f"{path}/history", startHistoryId=start).status_code == 404


def test_zoho_by_both_ways(ask, upstream, http):
    """The same accounts by REST and by MCP; nothing is 204, nothing new 304."""
    one, found, token = ask("zoho"), [], {}
    one.login()
    names, by_id = ",".join(zoho.account(0)), {"sort_by": "id", "sort_order": "asc"}
    while True:
        body = one.get("crm/v8/Accounts", fields=names, per_page=200, **by_id, **token).json()
        found += body["data"]
        if not body["info"]["more_records"]:
            break
        token = {"page_token": body["info"]["next_page_token"]}
    assert found == zoho.accounts()
    assert one.get("crm/v8/Accounts", fields="id", page=9).status_code == 204
    since = {"If-Modified-Since": "2035-01-01T00:00:00+00:00"}
    assert one.get("crm/v8/Accounts", since, fields="id").status_code == 304
    assert one.get("crm/v8/Accounts").status_code == 400
    arguments = {"module": "Accounts", "fields": names, "page": 3, **by_id}
    call = {
        "jsonrpc": "2.0",
        "id": 5,
        "method": "tools/call",
        "params": {"name": "getRecords", "arguments": arguments},
    }
    answer = http.post(f"{upstream.base('zoho')}/{zoho.MCP_PATH}", json=call, timeout=10).json()
    assert json.loads(answer["result"]["content"][0]["text"])["data"] == zoho.accounts()[400:]
    upstream.control("zoho", mcp=False)
    assert http.post(f"{upstream.base('zoho')}/{zoho.MCP_PATH}", json=call, timeout=10).status_code == 503
    upstream.control("zoho", limits={"amount": 0})
    refused = one.get("crm/v8/Accounts", fields="id")
    assert (refused.status_code, "Retry-After" in refused.headers) == (429, False)
