"""Everything once and then what has changed, lists whose items are fetched one by one, and what is not modified."""

import json
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import APIError, BadPayloadError, ConfigurationError, NotFoundError, ServerError
from tasks.collectors import (
    Answer,
    Api,
    Cursor,
    Detail,
    Fetched,
    Limit,
    Rule,
    Sync,
    Tier,
    Token,
    Unit,
    Window,
)
from tasks.collectors.values import Known

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def changed(body):
    """The messages that a page of the history names."""
    return [each["message"] for entry in body.get("history", []) for each in entry.get("messagesAdded", [])]


def gmail(size=3, **options):
    """A mailbox as one would declare it."""
    api = Api("gmail", "https://mail.example/gmail/v1", rules=[Rule("resync", status=404)])

    @api.endpoint(
        "/users/{symbol}/messages",
        symbols=["me"],
        params={"q": "in:anywhere"},
        page=Token(param="pageToken", at="nextPageToken", size_param="maxResults", size=size),
        rows=lambda body: body.get("messages", []),
        detail=Detail("/users/{symbol}/messages/{id}", params={"format": "metadata"}, weight=2),
        sync=Sync(
            param="startHistoryId",
            at="historyId",
            start=("/users/{symbol}/profile", "historyId"),
            path="/users/{symbol}/history",
            rows=changed,
        ),
        key="id",
        weight=5,
        **options,
    )
    def messages(row, unit):
        return {"id": row["id"], "snippet": row["snippet"]}

    return api.endpoints["messages"]


def calendar():
    api = Api("calendar", "https://calendar.example/v3", rules=[Rule("resync", status=410)])

    @api.endpoint(
        "/calendars/{symbol}/events",
        symbols=["primary"],
        params={"timeMin": "2020-01-01T00:00:00Z", "singleEvents": "true"},
        page=Token(param="pageToken", at="nextPageToken"),
        rows="items",
        sync=Sync(param="syncToken", at="nextSyncToken", without=("timeMin",)),
        key="id",
    )
    def events(row, unit):
        return {"id": row["id"], "status": row["status"]}

    return api.endpoints["events"]


def unit(cursor=None, symbol="me") -> Unit:
    return Unit(1, 1, "gmail", "messages", symbol, None, None, cursor)


def answer(body, status=200, **headers) -> Answer:
    return Answer(
        status, {k.replace("_", "-"): v for k, v in headers.items()}, json.dumps(body).encode(), 0.1
    )


class Read:
    """What one unit has read: its rows, calls, and what its last page told."""

    def __init__(self, endpoint, asked, serve, known=None, most=10_000):
        self.rows, self.calls, self.vanished, self.weight = {}, [], 0, 0.0
        checkpoint = endpoint.first(asked, known)
        while checkpoint is not None:
            assert len(self.calls) < most
            request = endpoint.request(asked, json.loads(json.dumps(checkpoint)))
            self.calls.append((urlsplit(request.url).path, dict(request.params)))
            self.weight += endpoint.weigh(asked, checkpoint)
            self.page = endpoint.read(asked, checkpoint, serve(request))
            self.rows |= {row["data"]["id"]: row["data"] for row in self.page.rows}
            self.vanished += self.page.vanished
            checkpoint = self.page.next


class Mailbox:
    """Messages that come while they are read, some of which are gone before they are fetched."""

    def __init__(self, count, gone=()):
        self.count, self.gone = count, set(gone)
        self.oldest, self.arriving = 0, 0

    def message(self, n):
        return {"id": f"m{n}", "snippet": f"text {n}"}

    def expected(self):
        return {f"m{n}": self.message(n) for n in range(self.count) if n not in self.gone}

    def __call__(self, request):
        path, query = urlsplit(request.url).path, request.params
        kind = path.removeprefix("/gmail/v1/users/me/")
        if self.arriving:
            self.count, self.arriving = self.count + 1, self.arriving - 1
        if kind == "profile":
            return answer({"historyId": str(self.count)})
        if kind.startswith("messages/"):
            n = int(kind.removeprefix("messages/m"))
            assert query == {"format": "metadata"}
            return answer({}, 404) if n in self.gone else answer(self.message(n))
        size, start = int(query["maxResults"]), int(query.get("pageToken", 0))
        if kind == "messages":
            assert query["q"] == "in:anywhere"
            names = [{"id": f"m{n}"} for n in reversed(range(self.count))]
            body = {"messages": names[start : start + size]} if names[start:] else {}
        else:
            assert kind == "history"
            assert "q" not in query
            since = int(query["startHistoryId"])
            if since < self.oldest:
                return answer({}, 404)
            names = [{"messagesAdded": [{"message": {"id": f"m{n}"}}]} for n in range(since, self.count)]
            body = {"historyId": str(self.count)} | (
                {"history": names[start : start + size]} if names[start:] else {}
            )
        more = start + size < len(names)
        return answer(body | ({"nextPageToken": str(start + size)} if more else {}))


def test_a_mailbox_is_read_and_then_its_history():
    """The token is that of the moment before; each message is a call of its own, and costs what it costs."""
    endpoint, box = gmail(), Mailbox(4, gone={2})
    first = Read(endpoint, unit(), box)
    assert [path.removeprefix("/gmail/v1/users/me/") for path, _ in first.calls] == [
        *("profile", "messages", "messages/m3", "messages/m2", "messages/m1"),
        *("messages", "messages/m0"),
    ]
    assert (first.rows, first.vanished) == (box.expected(), 1)
    assert first.page.token == "4"
    assert first.weight == 3 * 5 + 4 * 2
    box.count = 6
    second = Read(endpoint, unit("4"), box)
    assert second.calls[0] == (
        "/gmail/v1/users/me/history",
        {"startHistoryId": "4", "maxResults": "3"},
    )
    assert second.rows.keys() == {"m4", "m5"}
    assert second.page.token == "6"
    third = Read(endpoint, unit("6"), box)
    assert (third.rows, third.page.token, len(third.calls)) == ({}, "6", 1)


@given(
    count=st.integers(0, 30),
    gone=st.sets(st.integers(0, 45)),
    size=st.integers(1, 8),
    arriving=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    forgets=st.integers(0, 4),
)
def test_no_message_is_missed(count, gone, size, arriving, forgets):
    """Whatever comes while it is read, and whenever the history is forgotten."""
    endpoint, box = gmail(size), Mailbox(count, gone)
    found, token = {}, None
    for run, coming in enumerate(arriving):
        box.arriving = coming
        box.oldest = box.count + 1 if run == forgets else 0
        read = Read(endpoint, unit(token), box)
        found |= read.rows
        token = read.page.token
    box.arriving = box.oldest = 0
    found |= Read(endpoint, unit(token), box).rows
    assert found == box.expected()


def test_a_token_that_the_api_has_dropped(caplog):
    """Everything is read again, in the same unit, and the new token is another."""
    endpoint, box = gmail(), Mailbox(4)
    box.oldest = 3
    read = Read(endpoint, unit("2"), box)
    assert [path.rpartition("/")[2] for path, _ in read.calls[:3]] == ["history", "profile", "messages"]
    assert (read.rows, read.page.token) == (box.expected(), "4")
    assert "no longer knows its sync token" in caplog.text


def test_a_rule_for_tokens_speaks_of_nothing_else():
    """A mailbox that is not there is no reason to read it again; it is not there."""
    endpoint = gmail()
    for checkpoint in ({"mode": "start"}, {"mode": "full"}):
        with pytest.raises(NotFoundError):
            endpoint.read(unit(), checkpoint, answer({}, 404))


def test_a_calendar():
    """One path for both; parameters that do not go together with a token are left out; a hole is no end."""
    endpoint, seen = calendar(), []

    def serve(request):
        seen.append(dict(request.params))
        if request.params.get("syncToken") == "old":
            return answer({}, 410)
        if "pageToken" not in request.params:
            return answer({"items": [{"id": "1", "status": "confirmed"}], "nextPageToken": "hole"})
        if request.params["pageToken"] == "hole":
            return answer({"items": [], "nextPageToken": "last"})
        return answer({"items": [{"id": "2", "status": "cancelled"}], "nextSyncToken": "new"})

    whole = {"timeMin": "2020-01-01T00:00:00Z", "singleEvents": "true"}
    read = Read(endpoint, unit(symbol="primary"), serve)
    assert seen == [whole, whole | {"pageToken": "hole"}, whole | {"pageToken": "last"}]
    assert (read.rows.keys(), read.page.token) == ({"1", "2"}, "new")
    seen.clear()
    read = Read(endpoint, unit("x", "primary"), serve)
    changes = {"singleEvents": "true", "syncToken": "x"}
    assert seen == [changes, changes | {"pageToken": "hole"}, changes | {"pageToken": "last"}]
    seen.clear()
    read = Read(endpoint, unit("old", "primary"), serve)
    assert seen[:2] == [{"singleEvents": "true", "syncToken": "old"}, whole]
    assert (read.rows.keys(), read.page.token) == ({"1", "2"}, "new")


@pytest.mark.parametrize("token", [None, "", True, [], {"a": 1}, "x" * 5000])
def test_a_last_page_without_a_token(token):
    """There would be nothing to go on from, and everything would be read for ever."""
    with pytest.raises(BadPayloadError, match="nextSyncToken"):
        calendar().read(unit(), {"mode": "full"}, answer({"items": [], "nextSyncToken": token}))


def test_a_start_without_a_token():
    """Said before anything is read."""
    for body in ({}, {"historyId": None}, [], "x"):
        with pytest.raises(BadPayloadError, match="historyId"):
            gmail().read(unit(), {"mode": "start"}, answer(body))
    with pytest.raises(ServerError):
        gmail().read(unit(), {"mode": "start"}, answer({}, 503))


def listed(**options):
    api = Api("shop", "https://shop.example", rules=[Rule("restart", status=400)])

    @api.endpoint(
        "/orders",
        rows="orders",
        key="id",
        **({"detail": Detail("/orders/{id}", at="ref.no", row="order")} | options),
    )
    def orders(row, unit):
        return {"id": row["id"], "price": row["price"] + 0}

    return api.endpoints["orders"]


def test_items_of_a_list():
    """The page stores no rows; each id is asked for once, quoted, and the next page comes after all of them."""
    endpoint = listed(page=Token(param="t", at="next"))
    page = endpoint.read(
        unit(), {}, answer({"orders": [{"ref": {"no": n}} for n in (7, 7, "a/b")], "next": "x"})
    )
    assert page.rows == []
    assert page.next["ids"] == ["7", "a/b"]
    page = endpoint.read(unit(), page.next, answer({"order": {"id": 7, "price": 1}}))
    assert (len(page.rows), page.light) == (1, True)
    assert endpoint.request(unit(), page.next).url == "https://shop.example/orders/a%2Fb"
    page = endpoint.read(unit(), page.next, answer({"order": {"id": 8, "price": 1}}))
    assert page.next == {"token": "x"}
    assert endpoint.read(unit(), page.next, answer({"orders": []})).next is None


@pytest.mark.parametrize(
    "ref",
    [
        None,
        {},
        {"no": None},
        {"no": True},
        {"no": 1.5},
        {"no": []},
        {"no": ""},
        {"no": ".."},
        {"no": "x" * 501},
    ],
)
def test_an_id_that_is_none(ref):
    """Neither null nor a way out of the path."""
    with pytest.raises(BadPayloadError, match=r"ref\.no"):
        listed().read(unit(), {}, answer({"orders": [{"ref": ref}]}))


def test_a_list_that_is_too_long():
    """Its ids stand in the checkpoint; what to do is said."""
    body = {"orders": [{"ref": {"no": n}} for n in range(5001)]}
    with pytest.raises(BadPayloadError, match="ask for smaller pages"):
        listed().read(unit(), {}, answer(body))


def items(endpoint, answers):
    """Fetch so many items of one list; how many rows, bad rows and vanished ones there were."""
    checkpoint = {"ids": [str(n) for n in range(len(answers))], "of": len(answers), "then": None}
    counts = [0, 0, 0]
    for each in answers:
        page = endpoint.read(unit(), checkpoint, each)
        counts = [a + b for a, b in zip(counts, (len(page.rows), page.bad_rows, page.vanished), strict=True)]
        checkpoint = page.next
    assert checkpoint is None
    return counts


def test_broken_items():
    """Each is set apart like a row of a page; when most of a list are, it is the service that is broken."""
    good, bad, gone = answer({"order": {"id": 1, "price": 1}}), answer({"order": {"id": 1}}), answer({}, 404)
    assert items(listed(), [bad, good, gone, good]) == [2, 1, 1]
    assert items(listed(), [good, bad]) == [1, 1, 0]
    for broken in ([bad], [bad, good, bad], [good, bad, bad], [bad, bad, good]):
        with pytest.raises(BadPayloadError, match=r"KeyError|rows are broken"):
            items(listed(), broken)


@pytest.mark.parametrize(
    ("found", "kind"),
    [(answer({}, 503), ServerError), (answer([]), BadPayloadError), (answer({}, 400), APIError)],
)
def test_an_item_that_cannot_be_had(found, kind):
    """It is tried again; what asks a list to begin anew is an error here."""
    with pytest.raises(kind):
        listed().read(unit(), {"ids": ["1", "2"], "of": 2, "then": None}, found)


def test_a_404_that_speaks_of_the_endpoint_is_no_vanished_item():
    """A rule may say so: then all of them would be gone."""
    endpoint = listed()
    endpoint.api.rules = (Rule("not_found", status=404, scope="endpoint"),)
    with pytest.raises(NotFoundError):
        endpoint.read(unit(), {"ids": ["1"], "of": 1, "then": None}, answer({}, 404))


def known(**options):
    api = Api("shop", "https://shop.example")
    options = {"page": Token(param="t", at="next"), "rows": "orders", "conditional": True} | options

    @api.endpoint("/orders", params={"limit": "9"}, key="id", **options)
    def orders(row, unit):
        return {"id": row}

    return api.endpoints["orders"]


def test_what_has_not_changed_is_not_read_again():
    """The tag of the first page is kept at the end of a complete read, and sent with the first page only."""
    endpoint, seen = known(), []
    pages = [
        answer({"orders": [1], "next": "x"}, ETag='"a"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT"),
        answer({"orders": [2]}, ETag='"b"'),
    ]

    def serve(request):
        seen.append(dict(request.headers))
        return pages.pop(0) if pages else answer({}, 304)

    read = Read(endpoint, unit(), serve)
    found = read.page.known
    assert (found.etag, found.modified) == ('"a"', "Thu, 01 Jan 2026 00:00:00 GMT")
    again = Read(endpoint, unit(), serve, known=found)
    assert (again.rows, again.page.next, again.page.reason) == ({}, None, "not_modified")
    assert again.page.known is None
    assert seen == [{}, {}, {"If-None-Match": '"a"', "If-Modified-Since": found.modified}]


def test_a_tag_is_that_of_one_request():
    """Another parameter, another address: what is known of the one says nothing of the other."""
    endpoint = known()
    other = Known("another", '"a"', None)
    assert endpoint.request(unit(), endpoint.first(unit(), other)).headers == {}
    with pytest.raises(APIError, match="304"):
        endpoint.read(unit(), endpoint.first(unit(), other), answer({}, 304))


def test_a_304_that_nobody_asked_for():
    """An error, as it ever was."""
    for checkpoint in ({}, {"token": "x"}):
        with pytest.raises(APIError, match="304"):
            known().read(unit(), checkpoint, answer({}, 304))


@pytest.mark.parametrize("tag", ["", "ü", "a\nb", "x" * 1001])
def test_a_tag_that_cannot_be_sent_back(tag):
    """It is not kept; the next read is a plain one."""
    page = known().read(unit(), {}, answer({"orders": []}, ETag=tag))
    assert page.known is None


def test_a_cursor_in_a_header_may_find_nothing_new():
    """Zoho answers 304 or 204."""
    endpoint = known(conditional=False, cursor=Cursor("id", header="If-Modified-Since"))
    page = endpoint.read(unit("2026"), {}, answer({}, 304))
    assert (page.rows, page.next, page.reason) == ([], None, "not_modified")
    with pytest.raises(APIError):
        endpoint.read(unit(), {}, answer({}, 304))


BY_TIME = {"page": Window(start="a", end="b", limit=9), "cursor": Cursor("at")}
SYNC = Sync(param="s", at="next")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"detail": Detail("/orders/{no}")}, r"detail\.path uses \{no\}; it may use \{symbol\}, \{id\}"),
        ({"detail": Detail("orders/{id}")}, r"detail\.path is 'orders/\{id\}', but has to begin with '/'"),
        ({"detail": Detail("/orders")}, r"neither path nor params of detail use \{id\}"),
        ({"detail": "/orders/{id}"}, r"detail is '/orders/\{id\}', but has to be a Detail"),
        ({"detail": Detail("/o/{id}", weight=200)}, "detail: weight is 200, more than limit '100/1m'"),
        ({"detail": Detail("/o/{id}", weight=0)}, "detail: weight is 0"),
        ({"sync": "s"}, "sync is 's', but has to be a Sync"),
        ({"sync": SYNC, "cursor": Cursor("at")}, "the token of sync is the cursor"),
        ({"sync": SYNC, **BY_TIME}, "the token of sync is the cursor"),
        ({"sync": SYNC, "expect_rows": True}, "expect_rows is of no use beside sync"),
        ({"sync": SYNC, "params": {"s": "1"}}, "sync sets 's', which params or its paging set too"),
        ({"sync": SYNC, "page": Token(param="s", at="x")}, "sync sets 's'"),
        ({"sync": Sync(param="s", at="n", without=("q",))}, "without names 'q', which params does not set"),
        ({"sync": Sync(param="s", at="n", path="/x/{y}")}, r"sync\.path uses \{y\}"),
        ({"sync": Sync(param="s", at="n", start=("x", "y"))}, r"sync\.start is 'x', but has to begin"),
        ({"sync": Sync(param="s", at="n", rows=5)}, "rows is 5, but has to be a path"),
        ({"conditional": True, "sync": SYNC}, "conditional is of no use beside"),
        ({"conditional": True, **BY_TIME}, "conditional is of no use beside"),
        ({"conditional": True, "cursor": Cursor("at", param="since")}, "conditional is of no use beside"),
    ],
)
def test_a_wrong_declaration(options, said):
    """Said at import, with the endpoint and the field."""
    api = Api("shop", "https://shop.example", limits=[Limit("100/1m")])

    def orders(row, unit):
        return row

    with pytest.raises(ConfigurationError, match=said) as caught:
        api.endpoint("/orders", key="id", **options)(orders)
    assert str(caught.value).startswith("shop.orders: ") or str(caught.value).startswith(
        "shop.orders: detail"
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Detail(""), "Detail needs `path`"),
        (lambda: Detail("/x/{id}", at=""), "Detail needs `path`"),
        (lambda: Sync(param="", at="x"), "Sync needs `param`"),
        (lambda: Sync(param="x", at=""), "Sync needs `param`"),
        (lambda: Sync(param="x", at="y", start="/profile"), r"Sync\.start is a pair"),
        (lambda: Sync(param="x", at="y", without="timeMin"), r"Sync\.without is a list"),
        (lambda: Sync(param="x", at="y", params={"a": "b"}), r"Sync\.params are for a path of its own"),
    ],
)
def test_other_mistakes(make, said):
    """In one sentence."""
    with pytest.raises(ConfigurationError, match=said):
        make()


@pytest.mark.parametrize("option", [{"detail": Detail("/o/{id}")}, {"sync": SYNC}, {"conditional": True}])
def test_what_is_for_declared_calls_only(option):
    """A function fetches as it likes, and no tier understands what another has begun."""

    def by_hand(unit, checkpoint, session):
        return Fetched([])

    (name,) = option
    for how in ({"fetch": by_hand}, {"path": "/o", "tiers": [Tier("sdk", by_hand), Tier("rest")]}):
        with pytest.raises(ConfigurationError, match=rf"shop\.orders: {name} is for a declared call"):
            Api("shop", "https://shop.example").endpoint(key="id", **how, **option)(_orders())


def _orders():
    def orders(row, unit):
        return row

    return orders


def test_weights_of_items_count_for_the_limits():
    """The largest of both is what may come."""
    assert gmail().weight_max == 5
    endpoint = gmail(limits=[Limit("100/1m")])
    assert endpoint.weigh(unit(), {"ids": ["1"]}) == 2
    assert endpoint.weigh(unit()) == endpoint.weigh(unit(), {"mode": "start"}) == 5
