"""The fake APIs while their data change, with service accounts, and against requests that no API understands."""

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from types import SimpleNamespace

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.upstream.apis import google, greenlake, reddit, xero, zoho
from tests.upstream.apis.assertions import JWT_BEARER, service_account
from tests.upstream.apis.base import Answer, RejectedError, Request, encode
from tests.upstream.apis.tokens import CLIENT, REFRESH

AT = 1_900_000_000
TENANT = {"xero-tenant-id": xero.TENANTS[0], "accept": "application/json"}
PRIMARY = "calendar/v3/calendars/primary/events"
MAILBOX = "gmail/v1/users/me"


class Called:
    """An API in this process, behind its door: no server, no token, no limit."""

    def __init__(self, kind):
        self.api = kind()
        self.api.reset()

    def ask(self, path, headers=None, body=b"", **query):
        sent = {name: str(value) for name, value in query.items() if value is not None}
        request = Request(path, sent, headers or {}, "here", "POST" if body else "GET", body)
        try:
            found = self.api.answer(request, frozenset(), AT)
        except RejectedError as error:
            return Answer(error.status, encode(error.body))
        return Answer(200, found) if isinstance(found, bytes) else found

    def get(self, path, headers=None, **query):
        answer = self.ask(path, headers, **query)
        assert answer.status == 200, answer
        return json.loads(answer.body)

    def by_page_token(self, path, at, change=None, **query):
        """Everything from the first page to the last; `change` happens after the first."""
        found = []
        while True:
            body = self.get(path, **query)
            found += body.get(at, [])
            if "nextPageToken" not in body:
                return found, body
            query["pageToken"] = body["nextPageToken"]
            if change is not None:
                change = change()


sizes = st.integers(5, 60)
amounts = st.integers(0, 40)


@settings(max_examples=30)
@given(size=sizes, changed=amounts, meanwhile=amounts)
def test_a_calendar_that_changes_while_it_is_read(size, changed, meanwhile):
    """A page is of the moment of the first one; what changed since comes by the sync token, and nothing is lost."""
    one = Called(google.Calendar)
    one.api.control("change", changed)
    found, last = one.by_page_token(
        PRIMARY, "items", lambda: one.api.control("change", meanwhile), maxResults=size
    )
    assert found == google.events("primary", changed)
    rows = {row["id"]: row for row in found}
    later, _ = one.by_page_token(PRIMARY, "items", maxResults=size, syncToken=last["nextSyncToken"])
    rows |= {row["id"]: row for row in later}
    kept = [rows[name] for name in sorted(rows) if rows[name]["status"] != "cancelled"]
    assert kept == google.events("primary", one.api.version)


def test_new_events_and_cancelled_ones():
    """What was made since is in a full read, too; cancelled events come to who asks for deleted ones."""
    one = Called(google.Calendar)
    one.api.control("change", google.EVENTS + 5)
    full, _ = one.by_page_token(PRIMARY, "items")
    assert f"e{google.EVENTS + 5:05d}" in {row["id"] for row in full}
    everything, _ = one.by_page_token(PRIMARY, "items", showDeleted="true")
    assert len(everything) == google.EVENTS + 6
    assert {row["status"] for row in everything} - {row["status"] for row in full} == {"cancelled"}


def test_a_filtered_calendar_gives_no_sync_token():
    """timeMin, timeMax and updatedMin choose events; with none of them there is a token at the end."""
    one = Called(google.Calendar)
    whole, last = one.by_page_token(PRIMARY, "items")
    assert "nextSyncToken" in last
    middle = sorted(row["updated"] for row in whole)[40]
    newer, last = one.by_page_token(PRIMARY, "items", updatedMin=middle)
    assert [row["id"] for row in newer] == [row["id"] for row in whole if row["updated"] >= middle]
    assert "nextSyncToken" not in last
    later, _ = one.by_page_token(PRIMARY, "items", timeMin=middle)
    earlier, _ = one.by_page_token(PRIMARY, "items", timeMax=middle)
    assert 0 < len(later) < len(whole)
    assert {row["id"] for row in later} | {row["id"] for row in earlier} == {row["id"] for row in whole}


@settings(max_examples=30)
@given(size=sizes, meanwhile=amounts)
def test_mail_that_comes_while_it_is_read(size, meanwhile):
    """The list is of one moment; the history from the profile before it has the rest."""
    one = Called(google.Gmail)
    start = one.get(f"{MAILBOX}/profile")["historyId"]
    listed, _ = one.by_page_token(
        f"{MAILBOX}/messages", "messages", lambda: one.api.control("add", meanwhile), maxResults=size
    )
    assert [each["id"] for each in reversed(listed)] == [f"m{n:08x}" for n in range(google.MESSAGES)]
    added, last = one.by_page_token(f"{MAILBOX}/history", "history", startHistoryId=start, maxResults=size)
    came = [each["messagesAdded"][0]["message"]["id"] for each in added]
    assert came == [f"m{n:08x}" for n in range(google.MESSAGES, one.api.count)]
    assert int(last["historyId"]) == google.FIRST_HISTORY + one.api.count


@settings(max_examples=30)
@given(size=st.integers(20, 1000), touched=amounts, added=amounts)
def test_what_xero_modified(size, touched, added):
    """A full read and one of what was modified since give together what is there now."""
    one = Called(xero.Xero)

    def read(headers):
        found, page = [], 1
        while True:
            body = one.get("api.xro/2.0/Contacts", headers, page=page, pageSize=size, includeArchived="true")
            found += body["Contacts"]
            if page >= body["pagination"]["pageCount"]:
                return found
            page += 1

    rows = {row["ContactID"]: row for row in read(TENANT)}
    one.api.control("touch", {"count": touched, "at": AT})
    one.api.control("add", {"count": added, "at": AT})
    modified = read(TENANT | {"if-modified-since": "2030-01-01T00:00:00"})
    assert len(modified) == touched + added
    rows |= {row["ContactID"]: row for row in modified}
    now = xero.rows("Contacts", xero.TENANTS[0], one.api.touched["Contacts"])
    assert [rows[name] for name in sorted(rows)] == now


def test_what_xero_keeps_to_itself():
    """Archived contacts and the lines of invoices come only to who asks for them; orders are two."""
    one, path = Called(xero.Xero), "api.xro/2.0/"
    contacts = one.get(f"{path}Contacts", TENANT)["Contacts"]
    everyone = xero.rows("Contacts", xero.TENANTS[0])
    assert contacts == [row for row in everyone if row["ContactStatus"] == "ACTIVE"]
    assert len(contacts) < len(everyone)
    bare = one.get(f"{path}Invoices", TENANT)
    assert "pagination" not in bare
    assert not any(row["LineItems"] for row in bare["Invoices"])
    page = one.get(f"{path}Invoices", TENANT, page=1, order="UpdatedDateUTC ASC")["Invoices"]
    assert all(row["LineItems"] for row in page)
    assert [xero.updated_s(row) for row in page] == sorted(xero.updated_s(row) for row in page)
    newest = one.get(f"{path}Invoices", TENANT, page=1, pageSize=1, order="UpdatedDateUTC DESC")["Invoices"]
    assert xero.updated_s(newest[0]) == max(xero.updated_s(row) for row in bare["Invoices"])
    assert one.ask(f"{path}Invoices", TENANT, page=1, order="Total").status == 400


@settings(max_examples=30)
@given(limit=st.integers(400, 2000), touched=amounts, added=amounts)
def test_greenlake_that_changes(limit, touched, added):
    """Sorted by id nothing moves under the reader; the filter finds what was updated since."""
    one, path, found = Called(greenlake.GreenLake), "devices/v1/devices", []
    first = one.get(path, limit=limit, sort="id")
    found += first["items"]
    one.api.control("touch", {"count": touched, "at": AT})
    one.api.control("add", {"count": added, "at": AT})
    while body := one.get(path, limit=limit, offset=len(found), sort="id")["items"]:
        found += body
    rows = {row["id"]: row for row in found}
    assert len(rows) == len(found) == greenlake.COUNTS["devices"] + added
    since = one.get(path, filter="updatedAt ge '2030-01-01T00:00:00.000Z'", sort="id")
    assert since["total"] == touched + added
    rows |= {row["id"]: row for row in since["items"]}
    assert [rows[name] for name in sorted(rows)] == greenlake.rows("devices", one.api.touched["devices"])


def test_greenlake_moves_where_it_is_not_sorted():
    """By offset, who does not sort sees a row twice and another never."""
    one, path = Called(greenlake.GreenLake), "devices/v1/devices"
    found = one.get(path, limit=2000)["items"]
    one.api.control("touch", {"count": 9, "at": AT})
    while body := one.get(path, limit=2000, offset=len(found))["items"]:
        found += body
    assert len({row["id"] for row in found}) < len(found)


@settings(max_examples=30)
@given(limit=st.integers(9, 100), meanwhile=amounts)
def test_posts_that_come_while_a_listing_is_read(limit, meanwhile):
    """By the name of the last post nothing is read twice, and what is new stands before all."""
    one, path, found, after = Called(reddit.Reddit), "r/rivers/new", [], None
    while True:
        data = one.get(path, limit=limit, after=after, raw_json=1)["data"]
        found += [each["data"] for each in data["children"]]
        after = data["after"]
        if after is None:
            break
        if not one.api.added:
            one.api.control("add", meanwhile)
    assert found == reddit.posts("rivers")
    newest = one.get(path, limit=100, raw_json=1)["data"]["children"]
    assert [each["data"] for each in newest] == reddit.posts("rivers", one.api.added)[:100]


def test_reddit_escapes_unless_told_not_to():
    """Without raw_json texts come fit for HTML."""
    one = Called(reddit.Reddit)
    plain, escaped = (
        [
            each["data"]["selftext"]
            for each in one.get("r/rivers/new", limit=100, raw_json=raw)["data"]["children"]
        ]
        for raw in (1, None)
    )
    assert any("<tags> &" in text for text in plain)
    assert any("&lt;tags&gt; &amp;" in text for text in escaped)
    assert not any("<" in text for text in escaped)


def test_zoho_beyond_two_thousand_records():
    """Numbers reach 2,000 records, tokens all; a token serves for a day, not with a number, and expires when told."""
    one, path = Called(zoho.Zoho), "crm/v8/Accounts"
    one.api.control("touch", {"count": 4, "at": AT})
    one.api.control("add", {"count": 1700, "at": AT})
    names, found, token = ",".join(zoho.account(0)), [], None
    while True:
        body = one.get(path, fields=names, sort_order="asc", page_token=token)
        found += body["data"]
        token = body["info"]["next_page_token"] or token
        if not body["info"]["more_records"]:
            break
    assert found == zoho.accounts(one.api.touched)
    assert len(found) == zoho.ACCOUNTS + 1700
    assert one.ask(path, fields="id", page=10).status == 200
    refused = one.ask(path, fields="id", page=11)
    assert (refused.status, json.loads(refused.body)["code"]) == (400, "DISCRETE_PAGINATION_LIMIT_EXCEEDED")
    assert one.ask(path, fields="id", page=2, page_token=token).status == 400
    modified = one.get(
        path, {"if-modified-since": "2030-01-01T00:00:00+00:00"}, fields="id", sort_order="asc"
    )
    assert [row["id"] for row in modified["data"][:4]] == [row["id"] for row in zoho.accounts()[:4]]
    one.api.control("expire_offsets", True)
    assert one.ask(path, fields="id", page_token=token).status == 400


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32700),
        (b'{"id":1,"method":"tools/list"}', -32601),
        (b'{"id":1,"method":"tools/call","params":{"name":"none","arguments":{}}}', -32602),
        (b'{"id":1,"method":"tools/call","params":{"name":"getRecords"}}', -32602),
    ],
)
def test_mcp_faults(body, code):
    """What the MCP server does not understand has the number that JSON-RPC gives it."""
    answer = Called(zoho.Zoho).ask(zoho.MCP_PATH, body=body)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (200, code)


def test_a_tool_that_fails():
    """It says so in the result of a success."""
    one = Called(zoho.Zoho)
    call = {"id": 3, "method": "tools/call", "params": {"name": "getRecords", "arguments": {"fields": "id"}}}
    good = json.loads(one.ask(zoho.MCP_PATH, body=encode(call)).body)["result"]
    one.api.control("mcp_error", True)
    failed = json.loads(one.ask(zoho.MCP_PATH, body=encode(call)).body)["result"]
    assert (good["isError"], failed["isError"]) == (False, True)


NONSENSE = [
    (google.Calendar, PRIMARY, {}, "pageToken"),
    (google.Calendar, PRIMARY, {}, "syncToken"),
    (google.Calendar, PRIMARY, {}, "maxResults"),
    (google.Calendar, PRIMARY, {}, "updatedMin"),
    (google.Gmail, f"{MAILBOX}/messages", {}, "pageToken"),
    (google.Gmail, f"{MAILBOX}/messages", {}, "maxResults"),
    (google.Gmail, f"{MAILBOX}/history", {}, "startHistoryId"),
    (xero.Xero, "api.xro/2.0/Contacts", TENANT, "page"),
    (reddit.Reddit, "r/rivers/new", {}, "limit"),
    (greenlake.GreenLake, "devices/v1/devices", {}, "limit"),
    (greenlake.GreenLake, "devices/v1/devices", {}, "offset"),
    (greenlake.GreenLake, "devices/v1/devices", {}, "filter"),
    (greenlake.GreenLake, "devices/v1/devices", {}, "sort"),
]


@pytest.mark.parametrize(("kind", "path", "headers", "name"), NONSENSE)
@pytest.mark.parametrize("value", ["zzz", "-5", "1e3", "W10=", "W10", "\u0663", "9" * 40, "2026-01-01"])
def test_nonsense_is_a_400(kind, path, headers, name, value):
    """A parameter that nobody could mean is the caller's error, with the API's own body."""
    answer = Called(kind).ask(path, headers, **{name: value})
    assert answer.status == 400
    assert json.loads(answer.body)


@pytest.mark.parametrize(
    ("kind", "path", "headers"),
    [
        (xero.Xero, "api.xro/2.0/Contacts", TENANT),
        (zoho.Zoho, "crm/v8/Accounts", {}),
    ],
)
@pytest.mark.parametrize("since", ["soon", "Wed, 21 Oct 2015 07:28:00 GMT", "2026-13-01T00:00:00"])
def test_since_when_is_a_400(kind, path, headers, since):
    """If-Modified-Since as HTTP writes it is not what these two read."""
    answer = Called(kind).ask(path, headers | {"if-modified-since": since}, fields="id", page=1)
    assert answer.status == 400


@pytest.fixture
def http():
    with requests.Session() as session:
        session.trust_env = False
        session.headers["User-Agent"] = "tests"
        yield session


@pytest.fixture(scope="module")
def key():
    return service_account("robot@example.com")


@pytest.fixture
def mail(http, upstream, key):
    """Gmail, which trusts a service account, and assertions of that account."""
    held, trusted = key
    upstream.control("gmail", service_account=trusted)
    url = f"{upstream.base('gmail')}/token"

    def ask(form):
        return http.post(url, data={"grant_type": JWT_BEARER} | form, timeout=10)

    def assertion(**changes):
        from google.auth import crypt, jwt

        now = int(time.time())
        claims = {
            "iss": "robot@example.com",
            "sub": "ann@example.com",
            "scope": "https://www.googleapis.com/auth/gmail.readonly",
            "aud": url,
            "iat": now,
            "exp": now + 3600,
        }
        signer = crypt.RSASigner.from_service_account_info(json.loads(changes.pop("key", held)))
        claims |= changes
        return jwt.encode(
            signer, {name: value for name, value in claims.items() if value is not None}
        ).decode()

    def get(token, path):
        headers = {"Authorization": f"Bearer {token}"}
        return http.get(f"{upstream.base('gmail')}/gmail/v1/users/{path}", headers=headers, timeout=10)

    return SimpleNamespace(ask=ask, assertion=assertion, get=get, url=url)


def test_a_service_account_speaks_for_a_user(mail, upstream):
    """Its token opens the mailbox of the subject and no other; each subject has units of its own."""
    ann, bob = (
        mail.ask({"assertion": mail.assertion(sub=f"{name}@example.com")}).json()["access_token"]
        for name in ("ann", "bob")
    )
    assert mail.get(ann, "me/profile").json()["emailAddress"] == "ann@example.com"
    assert mail.get(ann, "ann@example.com/messages/m00000003").json() == google.message("ann@example.com", 3)
    refused = mail.get(ann, "bob@example.com/profile")
    assert (refused.status_code, refused.json()["error"]["errors"][0]["reason"]) == (403, "forbidden")
    upstream.control("gmail", limits={"amount": 5})
    assert [mail.get(ann, "me/messages").status_code for _ in range(2)] == [200, 403]
    assert mail.get(bob, "me/messages").status_code == 200
    assert upstream.stats("gmail")["violations"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://oauth2.example.com/token"},
        {"iss": "stranger@example.com"},
        {"iat": 1_000_000_000, "exp": 1_000_003_600},
        {"exp": 4_000_000_000},
        {"iat": None},
    ],
)
def test_assertions_that_are_refused(mail, upstream, changes):
    """Another server's, a stranger's, an old one, one that holds too long, one that says nothing of its time."""
    answer = mail.ask({"assertion": mail.assertion(**changes)})
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid_grant"})
    assert upstream.stats("gmail")["tokens"] == {"granted": 0, "refused": 1}


def test_a_signature_is_checked(mail):
    """Of another key, of other claims, with no algorithm, and none at all."""
    stolen = mail.assertion(key=service_account("robot@example.com")[0])
    good = mail.assertion()
    head, body, signature = good.split(".")
    claims = json.loads(_opened(body)) | {"sub": "root@example.com"}
    altered = ".".join((head, _sealed(claims), signature))
    unsigned = ".".join((_sealed({"alg": "none"}), body, ""))
    for assertion in (stolen, altered, unsigned, f"{head}.{body}.", "", "a.b.c", "ü.ü.ü"):
        assert mail.ask({"assertion": assertion}).json() == {"error": "invalid_grant"}, assertion
    assert mail.ask({"assertion": good}).status_code == 200


def _opened(text):
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _sealed(value):
    return urlsafe_b64encode(encode(value)).decode().rstrip("=")


def test_a_refused_grant_stays_refused(mail, upstream):
    """Revoked, an account gets no token whichever way it asks."""
    upstream.control("gmail", revoke=True)
    assert mail.ask({"assertion": mail.assertion()}).json() == {"error": "invalid_grant"}
    form = {"grant_type": "refresh_token", "refresh_token": REFRESH}
    form |= {"client_id": CLIENT[0], "client_secret": CLIENT[1]}
    assert mail.ask(form).json() == {"error": "invalid_grant"}


def test_google_says_why(mail, upstream):
    """Over a limit by either status and with the reason; what is forbidden for good is no limit."""
    token = mail.ask({"assertion": mail.assertion()}).json()["access_token"]

    def said():
        error = mail.get(token, "me/profile").json()["error"]
        return error["code"], error["errors"][0]["domain"], error["errors"][0]["reason"], error["status"]

    upstream.control("gmail", limits={"amount": 0})
    assert said() == (403, "usageLimits", "userRateLimitExceeded", "PERMISSION_DENIED")
    upstream.control("gmail", over_limit=429)
    assert said() == (429, "usageLimits", "userRateLimitExceeded", "RESOURCE_EXHAUSTED")
    upstream.control("gmail", limits={"project": 0})
    assert said() == (429, "usageLimits", "rateLimitExceeded", "RESOURCE_EXHAUSTED")
    upstream.control("gmail", limits={}, forbidden=True)
    assert said() == (403, "global", "insufficientPermissions", "PERMISSION_DENIED")


def test_an_organisation_that_is_offline(http, upstream):
    """503 for that tenant only; the connections name all, and count for the app alone."""
    base = upstream.base("xero")
    form = {"grant_type": "refresh_token", "refresh_token": REFRESH}
    token = http.post(f"{base}/connect/token", data=form, auth=CLIENT, timeout=10).json()["access_token"]
    http.headers["Authorization"] = f"Bearer {token}"
    tenants = [each["tenantId"] for each in http.get(f"{base}/connections", timeout=10).json()]
    assert tenants == xero.TENANTS
    upstream.control("xero", offline=[tenants[0]])
    statuses = [
        http.get(
            f"{base}/api.xro/2.0/Contacts", headers=TENANT | {"xero-tenant-id": tenant}, timeout=10
        ).status_code
        for tenant in tenants
    ]
    assert statuses == [503, 200, 200]
    seen = {limit["name"]: limit["max_in_window"] for limit in upstream.stats("xero")["limits"][:3]}
    assert seen == {"minute": 1, "day": 1, "app": 4}


def test_reddit_says_how_long(http, upstream):
    """The reset is the time until the window is empty; now and then an answer says nothing."""
    base, form = upstream.base("reddit"), {"grant_type": "client_credentials"}
    answer = http.post(f"{base}/api/v1/access_token", data=form, auth=CLIENT, timeout=10)
    assert answer.json()["expires_in"] == 86_400
    http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
    heard = [http.get(f"{base}/r/rivers/new", timeout=10).headers for _ in range(8)]
    assert [each.get("x-ratelimit-used") for each in heard] == ["1", "2", "3", "4", "5", "6", None, "8"]
    assert 590 < int(heard[0]["x-ratelimit-reset"]) <= 600
    assert heard[0]["x-ratelimit-remaining"] == "999.0"


def test_a_body_is_bounded(http, upstream):
    """More than a megabyte is not read."""
    answer = http.post(f"{upstream.base('xero')}/connect/token", data=b"x" * (1 << 21), timeout=10)
    assert answer.status_code == 413


def test_broken_credentials_are_wrong_ones(http, upstream):
    """A Basic header that cannot be read is refused as any other."""
    headers = {"Authorization": "Basic \u00e9%%%"}
    answer = http.post(
        f"{upstream.base('xero')}/connect/token", headers=headers, data=b"\xff\xfe", timeout=10
    )
    assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})
