"""Pages, windows and cursors: no page is skipped, none is read for ever."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import BadPayloadError, ConfigurationError
from tasks.collectors import (
    Answer,
    Api,
    ApiKey,
    Bars,
    Cursor,
    Link,
    Number,
    Offset,
    Rule,
    Single,
    Token,
    Unit,
)
from tasks.collectors.links import next_of, on_host
from tasks.collectors.paging import lookup
from tasks.collectors.values import Headers, Reply

T0 = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def unit(start=None, end=None, cursor=None) -> Unit:
    return Unit(1, 1, "shop", "bars", "A", start, end, cursor)


def reply(body=None, rows=(), link="", asked="https://shop.example/v1/bars", credential=None) -> Reply:
    return Reply(body, rows, Headers({"Link": link}), asked, credential)


def bars(interval="1m", size=10, **options) -> Bars:
    return Bars(interval, start="from", end="to", size=size, **options)


def spans(page: Bars, asked: Unit) -> list[tuple[int, int]]:
    """The requests of a whole unit, as the first and last minute asked for."""
    found, checkpoint = [], page.first(asked)
    while checkpoint is not None:
        sent = page.params(asked, checkpoint)
        found.append((int(sent["from"]), int(sent["to"])))
        checkpoint = page.following(asked, checkpoint, reply([]))
    return found


def test_single_is_one_page():
    """Nothing to say, nothing after it."""
    assert Single().following(unit(), Single().first(unit()), reply([])) is None


def test_token_is_carried_to_the_next_page():
    """The first page has none, the next ones what the answer said."""
    page = Token(param="offset", at="next_page.offset", size_param="limit", size=100)
    first = page.first(unit())
    assert page.params(unit(), first) == {"limit": "100"}
    second = page.following(unit(), first, reply({"data": [], "next_page": {"offset": "abc"}}))
    assert page.params(unit(), second) == {"limit": "100", "offset": "abc"}


def test_an_empty_page_with_a_token_is_not_the_end():
    """Google answers so, and the rest comes after it."""
    page = Token(param="t", at="next")
    assert page.following(unit(), {}, reply({"items": [], "next": "abc"})) == {"token": "abc"}


@pytest.mark.parametrize("body", [{"next": None}, {"next": ""}, {}, {"next": {"at": None}}])
def test_no_token_is_the_end(body):
    """Null, empty or not there at all."""
    at = "next.at" if isinstance(body.get("next"), dict) else "next"
    assert Token(param="t", at=at).following(unit(), {"token": "x"}, reply(body)) is None


@pytest.mark.parametrize("token", [True, 1.5, [], ["a"], {"a": 1}])
def test_a_token_that_is_none(token):
    """Something else stands where the token should be."""
    with pytest.raises((TypeError, ValueError), match="next"):
        Token(param="t", at="next").following(unit(), {}, reply({"next": token}))


def test_the_same_token_again_is_a_loop():
    """Better an error than the same page for ever."""
    with pytest.raises(ValueError, match="just read"):
        Token(param="t", at="next").following(unit(), {"token": "7"}, reply({"next": 7}))


@pytest.mark.parametrize("body", [[], "x", 3, True])
def test_lookup_in_what_is_no_object(body):
    """A list where an object was expected is said to be one."""
    with pytest.raises(TypeError, match=r"a\.b"):
        lookup(body, "a.b")


def test_bars_send_an_inclusive_end():
    """The last millisecond before the window's end: the bar that opens at the end belongs to the next."""
    asked = unit(T0, T0 + 5 * MINUTE)
    sent = bars(size_param="limit").params(asked, {"from": "2026-01-01T00:00:00Z"})
    assert sent == {"from": "1767225600000", "to": "1767225899999", "limit": "10"}


@pytest.mark.parametrize(
    ("how", "start", "end"),
    [("s", "1767225600", "1767225899"), ("iso", "2026-01-01T00:00:00Z", "2026-01-01T00:04:59Z")],
)
def test_bars_write_times_as_the_api_wants(how, start, end):
    """Seconds or ISO 8601."""
    page, asked = bars(unit=how), unit(T0, T0 + 5 * MINUTE)
    assert page.params(asked, page.first(asked)) == {"from": start, "to": end}


def test_a_gap_is_not_the_end():
    """An empty page of bars: reading goes on at the end of its window."""
    page, asked = bars(), unit(T0, T0 + 25 * MINUTE)
    assert page.following(asked, page.first(asked), reply([])) == {"from": "2026-01-01T00:10:00Z"}
    assert len(spans(page, asked)) == 3


@given(
    minutes=st.integers(1, 5000),
    size=st.integers(1, 1000),
    offset=st.integers(0, 100_000),
    width=st.sampled_from(["1m", "5m", "1h"]),
)
def test_bars_cover_the_window_once(minutes, size, offset, width):
    """No millisecond is asked for twice or left out, and no request is wider than `size` bars."""
    page = bars(width, size=size)
    start = T0 + offset * MINUTE
    asked = unit(start, start + minutes * MINUTE)
    found = spans(page, asked)
    ms = int(start.timestamp() * 1000)
    for first, last in found:
        assert first == ms
        assert 0 < last + 1 - first <= size * page.width / timedelta(milliseconds=1)
        ms = last + 1
    assert ms == int(asked.end.timestamp() * 1000)


@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (T0, None), (None, T0), (T0, T0), (T0, T0 - MINUTE)]
)
def test_bars_need_a_window(start, end):
    """Without both ends, in order, there is nothing to ask for."""
    with pytest.raises(ConfigurationError, match=r"shop\.bars.*window"):
        bars().first(unit(start, end))


def test_bars_without_an_end():
    """The last moment before the window is sent, and nothing older than the newest bars can be read."""
    page = Bars("1m", start="since", size=10, unit="s")
    asked = unit(T0, T0 + 10 * MINUTE)
    assert page.params(asked, page.first(asked)) == {"since": "1767225599"}
    assert page.following(asked, page.first(asked), reply()) is None
    assert page.sends() == ("since",)
    assert page.oldest(T0 + 30 * MINUTE + timedelta(seconds=59)) == T0 + 20 * MINUTE
    assert bars().oldest(T0) is None


@given(at=st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_boundaries_lie_around_a_time(at):
    """At most one bar apart; weeks begin on Monday, days at midnight UTC."""
    for interval in ("1s", "1m", "15m", "4h", "1d", "1w"):
        page = bars(interval)
        low, high = page.floor(at), page.ceil(at)
        assert low <= at <= high
        assert high - low in {timedelta(0), page.width}
        assert page.floor(low) == low == page.ceil(low)
    assert bars("1w").floor(at).weekday() == 0
    assert bars("1d").floor(at).time() == datetime.min.time()


@pytest.mark.parametrize(
    "interval", ["", "1", "m", "0m", "-1m", "1M", "7m", "1y", "2d", "3d", "2w", None, 60]
)
def test_a_bad_interval(interval):
    """Only what divides a day, a day and a week have boundaries that everyone agrees on."""
    with pytest.raises(ConfigurationError, match="interval"):
        bars(interval)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: bars(size=0), "size"),
        (lambda: bars(unit="us"), "unit"),
        (lambda: Bars("1m", start="", end="e", size=1), "start"),
        (lambda: Bars("1m", start="s", end="", size=1), "end"),
        (lambda: Token(param="", at="x"), "param"),
        (lambda: Token(param="x", at="y", size=0), "Token.size is 0"),
        (lambda: Number(param="", size=1), "Number needs `param`"),
        (lambda: Number(param="p", size=0), "Number.size is 0"),
        (lambda: Number(param="p", size="100"), "Number.size is '100'"),
        (lambda: Number(param="p", size=1, start=2), "Number.start is 2"),
        (lambda: Offset(param="", size=1), "Offset needs `param`"),
        (lambda: Offset(param="o", size=True), "Offset.size is True"),
        (lambda: Link(at=""), "Link.at is empty"),
        (lambda: Cursor(""), "field"),
        (lambda: Cursor("t", lag="2 minutes"), "Cursor.lag"),
        (lambda: Cursor("t", chunk="0d"), "Cursor.chunk"),
        (lambda: Cursor("t", unit="us"), "Cursor.unit"),
        (lambda: Cursor("t", until="before"), "Cursor.until"),
    ],
)
def test_mistakes_are_named(make, said):
    """The sentence names the field."""
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_a_cursor_is_sent_as_the_window_start():
    """The start already has the lag taken off; a first run sends nothing."""
    cursor = Cursor("modified_at", lag="2m", param="since")
    assert cursor.sent(unit(T0)) == {"since": "2026-01-01T00:00:00Z"}
    assert cursor.sent(unit()) == {}
    assert Cursor("modified_at", param="since", unit="s").sent(unit(T0)) == {"since": "1767225600"}
    assert Cursor("name").sent(unit(T0)) == {}
    between = Cursor("t", param="after", until="before", unit="s")
    assert between.sent(unit(T0, T0 + timedelta(minutes=1))) == {
        "after": "1767225600",
        "before": "1767225660",
    }
    assert between.sent(unit(T0)) == {"after": "1767225600"}
    assert between.sent(unit()) == {}


def test_a_cursor_that_is_no_time_is_sent_as_it_is():
    """An id that the API gave."""
    assert Cursor("id", param="after").sent(unit(cursor="t3_x")) == {"after": "t3_x"}


@given(hours=st.integers(1, 2000), chunk=st.sampled_from(["1h", "7h", "1d", "7d", None]))
def test_chunks_cover_the_range(hours, chunk):
    """One after the other, none empty."""
    end = T0 + timedelta(hours=hours)
    found = list(Cursor("t", chunk=chunk).chunks(T0, end))
    assert found[0][0] == T0
    assert found[-1][1] == end
    assert all(first < last for first, last in found)
    assert all(before[1] == after[0] for before, after in pairwise(found))


def test_chunks_end_between_bars():
    """A chunk of 100 minutes holds one bar of an hour, and no half one."""
    found = list(Cursor("t", chunk="100m").chunks(T0, T0 + timedelta(hours=3), timedelta(hours=1)))
    assert [last - first for first, last in found] == [timedelta(hours=1)] * 3


NUMBER = Number(param="page", size=100, size_param="per_page")
COUNTED = Number(param="page", size=100, pages="meta.pages", start=0)
FROM_ONE = Number(param="page", size=100, size_param="per_page", pages="meta.pages")
OFFSET = Offset(param="offset", size=100, size_param="limit")
TOTALLED = Offset(param="offset", size=100, total="total")
BODY_LINK = Link(at="meta.next")
TOKEN = Token(param="token", at="meta.token")
KINDS = [NUMBER, COUNTED, FROM_ONE, OFFSET, TOTALLED, BODY_LINK, Link(), TOKEN]


@pytest.mark.parametrize(
    ("page", "rows", "after"),
    [
        (NUMBER, 100, 2),
        (NUMBER, 99, None),
        (NUMBER, 0, None),
        (OFFSET, 100, 100),
        (OFFSET, 99, None),
        (OFFSET, 0, None),
    ],
)
def test_a_short_page_is_the_last(page, rows, after):
    """Where the API says neither how many pages there are nor how many rows."""
    found = page.following(unit(), page.first(unit()), reply({}, range(rows)))
    assert (found and (found.get("page") or found.get("offset"))) == after


def test_the_number_of_pages_is_the_apis_word():
    """Short and empty pages before the last are read over; null and a missing count mean that it did not say."""
    for rows in ([], [1], list(range(100))):
        assert COUNTED.following(unit(), {"page": 3}, reply({"meta": {"pages": 5}}, rows))["page"] == 4
        assert COUNTED.following(unit(), {"page": 4}, reply({"meta": {"pages": 5}}, rows)) is None
    for body in ({}, {"meta": None}, {"meta": {"pages": None}}):
        assert COUNTED.following(unit(), {"page": 3}, reply(body, [1])) is None
        assert COUNTED.following(unit(), {"page": 3}, reply(body, range(100)))["page"] == 4


def test_a_total_is_the_apis_word():
    """A server may give fewer rows than asked for: the next page begins after those that came."""
    assert TOTALLED.following(unit(), {"offset": 100}, reply({"total": 151}, range(50)))["offset"] == 150
    assert TOTALLED.following(unit(), {"offset": 150}, reply({"total": 151}, [1])) is None
    assert TOTALLED.following(unit(), {"offset": 150}, reply({"total": 20}, [])) is None
    assert TOTALLED.following(unit(), {"offset": 150}, reply({}, [1])) is None


def test_a_total_without_rows_is_a_loop():
    """The same offset would be asked for again."""
    with pytest.raises(ValueError, match="total is 9, but there is no row after the first 5"):
        TOTALLED.following(unit(), {"offset": 5}, reply({"total": 9}, []))


@pytest.mark.parametrize("count", [True, "5", 1.5, -1, [], {}])
def test_a_count_that_is_none(count):
    """Something else stands where the count should be."""
    for page, body in ((COUNTED, {"meta": {"pages": count}}), (TOTALLED, {"total": count})):
        with pytest.raises(TypeError, match="holds no count"):
            page.following(unit(), page.first(unit()), reply(body, [1]))


@pytest.mark.parametrize("page", [NUMBER, COUNTED, OFFSET, TOTALLED])
def test_the_same_rows_again_are_a_loop(page):
    """An API that does not know the parameter gives its first page for ever."""
    body = {"total": 1000, "meta": {"pages": 10}}
    second = page.following(unit(), page.first(unit()), reply(body, list(range(100))))
    assert page.following(unit(), second, reply(body, list(range(100, 200))))
    with pytest.raises(ValueError, match="rows of the page before"):
        page.following(unit(), second, reply(body, list(range(100))))


def test_two_empty_pages_are_no_loop():
    """Nothing is in them that could be the same."""
    second = COUNTED.following(unit(), {"page": 0}, reply({"meta": {"pages": 9}}, []))
    assert COUNTED.following(unit(), second, reply({"meta": {"pages": 9}}, []))["page"] == 2


def test_the_same_link_again_is_a_loop():
    """As with a token."""
    again = reply({"meta": {"next": "/v1/bars?page=2"}})
    second = BODY_LINK.following(unit(), {}, again)
    with pytest.raises(ValueError, match="just read"):
        BODY_LINK.following(unit(), second, again)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("https://shop.example/v1/bars?page=2&q=a%20b", "/v1/bars?page=2&q=a%20b"),
        ("HTTPS://Shop.Example:443/v2/other", "/v2/other"),
        ("//shop.example/x?y=1#part", "/x?y=1"),
        ("?page=2", "/v1/bars?page=2"),
        ("/v3", "/v3"),
        ("https://shop.example", "/"),
        ("https://shop.example//evil.example/x", "//evil.example/x"),
        ("/x?q=a b&ü=\x01\u20ac", "/x?q=a%20b&%C3%BC=%01%E2%82%AC"),
        ("/x?tag=a&tag=b&flag&api_key=k-4711&%61pi_key=k-4711", "/x?tag=a&tag=b&flag"),
    ],
)
def test_a_link_is_kept_as_path_and_query(link, target):
    """Absolute or relative, ready to be sent, without a credential that the API repeats."""
    found = BODY_LINK.following(unit(), {}, reply({"meta": {"next": link}}, credential="api_key"))
    assert found == {"link": target}
    assert on_host("https://shop.example/v1", target) == f"https://shop.example{target}"


@pytest.mark.parametrize(
    ("link", "named"),
    [
        ("https://evil.example/v1/bars?key=1", "https://evil.example"),
        ("https://shop.example.evil.example/", "https://shop.example.evil.example"),
        ("https://shop.example@evil.example/", "https://evil.example"),
        ("//evil.example/x", "https://evil.example"),
        ("http://shop.example/v1/bars?page=2", "http://shop.example"),
        ("https://shop.example:8443/", "https://shop.example:8443"),
        ("mailto:shop@evil.example", "mailto://no host"),
    ],
)
@pytest.mark.parametrize("page", [BODY_LINK, Link()])
def test_a_link_to_another_host_is_refused(page, link, named):
    """Both hosts are named and nothing else of the link: credentials go nowhere but home."""
    with pytest.raises(ValueError, match="link") as caught:
        page.following(unit(), {}, reply({"meta": {"next": link}}, link=f"<{link}>; rel=next"))
    said = "credentials go to https://shop.example only, and the link to the next page leads to "
    assert str(caught.value) == said + named


@pytest.mark.parametrize("link", [True, 5, 1.5, [], {}])
def test_a_link_that_is_none(link):
    """Something else stands where the link should be."""
    with pytest.raises(TypeError, match=r"meta\.next holds no link"):
        BODY_LINK.following(unit(), {}, reply({"meta": {"next": link}}))


@pytest.mark.parametrize("body", [{}, {"meta": None}, {"meta": {"next": None}}, {"meta": {"next": ""}}])
def test_no_link_is_the_end(body):
    """Null, empty or not there at all, in the body or in the header."""
    assert BODY_LINK.following(unit(), {}, reply(body)) is None
    assert Link().following(unit(), {}, reply(body)) is None
    assert Link().following(unit(), {}, reply(body, link='</x>; rel="prev"')) is None


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ("<https://x.example/?a=1,2;3>; rel=next", "https://x.example/?a=1,2;3"),
        ('</a>; rel="prev", </b>; rel="next"', "/b"),
        ('</a>;REL = "last  NEXT"', "/a"),
        ('</a>; title="a, <b>; rel=next", </c>; rel=next', "/c"),
        ("</a>; rel=prev; rel=next", None),
        ("</a>; rel=nextish, </b>; rel, </c>", None),
        ("</a>; crossorigin; rel=next", "/a"),
        ("", None),
        ("</a", None),
        ("rel=next", None),
    ],
)
def test_link_headers(header, target):
    """As RFC 8288 has them: several links, quoted texts, several relations in one."""
    assert next_of(header) == target


uris = st.text(st.characters(codec="ascii", exclude_characters="<>", exclude_categories=["Cc"]))
titles = st.text(st.characters(codec="ascii", exclude_characters='"', exclude_categories=["Cc"]))


@given(before=st.lists(st.tuples(uris, titles, st.sampled_from(["prev", "last first", "Nexts"]))), uri=uris)
def test_the_next_link_is_found_among_others(before, uri):
    """Whatever stands in targets and titles."""
    others = [f'<{each}>; title="{title}"; rel="{rel}"' for each, title, rel in before]
    assert next_of(", ".join([*others, f"<{uri}>;rel=next"])) == uri


@given(st.text(st.sampled_from('<>;=", relnxt/?')) | st.text())
def test_any_link_header_is_read(header):
    """However broken: a target or none."""
    found = next_of(header)
    assert found is None or f"<{found}>" in header


class Shelf:
    """A server with `count` rows that speaks every kind of paging, and gives at most `most` rows a page."""

    def __init__(self, count, most=100):
        self.count = count
        self.most = most
        self.asked = []

    def answer(self, request) -> Answer:
        assert request.url.startswith("https://shop.example/v1/bars/A")
        sent = dict(parse_qsl(urlsplit(request.url).query)) | request.params
        self.asked.append(sent)
        start = int(sent.get("token") or sent.get("at") or sent.get("offset") or 0)
        if "page" in sent:
            start = self.most * (int(sent["page"]) - ("per_page" in sent))
        end = min(start + self.most, self.count)
        more = end < self.count
        link = f"?at={end}&of={quote('A/B, C')}"
        body = {
            "rows": [{"id": n} for n in range(start, end)],
            "total": self.count,
            "meta": {
                "pages": -(-self.count // self.most),
                "token": str(end) if more else None,
                "next": f"https://shop.example/v1/bars/A{link}" if more else None,
            },
        }
        headers = {"Link": f'<{link}>; rel="next"'} if more else {}
        return Answer(200, headers, json.dumps(body).encode(), 0.1)


def endpoint_of(page, auth=None, rules=()):
    api = Api("shop", "https://shop.example/v1", auth=auth, rules=rules)

    @api.endpoint("/bars/{symbol}", symbols=["A"], params={"sort": "id"}, page=page, rows="rows", key="id")
    def bars(row, unit):
        return row

    return api.endpoints["bars"]


def read(endpoint, shelf, checkpoint, pages=1000):
    """Up to so many pages from a checkpoint, which is taken out of JSON each time: the ids, and where it ends."""
    ids = []
    while checkpoint is not None and pages:
        checkpoint = json.loads(json.dumps(checkpoint))
        page = endpoint.read(unit(), checkpoint, shelf.answer(endpoint.request(unit(), checkpoint)))
        ids += [row["data"]["id"] for row in page.rows]
        checkpoint, pages = page.next, pages - 1
    return ids, checkpoint


@pytest.mark.parametrize("page", KINDS, ids=str)
def test_a_retry_after_page_12_starts_at_page_13(page):
    """With what the checkpoint says, after a way through SQL."""
    endpoint, shelf = endpoint_of(page), Shelf(1500)
    ids, checkpoint = read(endpoint, shelf, endpoint.first(unit()), pages=12)
    assert ids == list(range(1200))
    for _ in range(2):
        again, _ = read(endpoint, shelf, checkpoint, pages=1)
        assert again == list(range(1200, 1300))


@pytest.mark.parametrize("page", KINDS, ids=str)
@given(count=st.integers(0, 60), most=st.integers(1, 9), stop=st.integers(1, 70))
def test_every_row_is_read_once(page, count, most, stop):
    """In order, with an interruption anywhere; one empty page at most, and only where no count was said."""
    pages = max(1, -(-count // most))
    if page in {NUMBER, OFFSET}:
        pages = count // most + 1
    if isinstance(page, Number | Offset):
        page = replace(page, size=most)
    endpoint, shelf = endpoint_of(page), Shelf(count, most)
    ids, checkpoint = read(endpoint, shelf, endpoint.first(unit()), pages=stop)
    rest, _ = read(endpoint, shelf, checkpoint)
    assert ids + rest == list(range(count))
    assert len(shelf.asked) == pages


def test_the_query_of_a_link_replaces_that_of_the_declaration():
    """The link has all of it; the first request has what was declared."""
    shelf = Shelf(150)
    read(endpoint_of(Link()), shelf, {})
    assert shelf.asked == [{"sort": "id"}, {"at": "100", "of": "A/B, C"}]


def test_a_stale_link_begins_again():
    """At the declared first page."""
    endpoint = endpoint_of(Link(), rules=[Rule("restart", status=410)])
    page = endpoint.read(unit(), {"link": "/v1/old?at=7"}, Answer(410, {}, b"", 0.1))
    assert endpoint.request(unit(), page.next) == endpoint.request(unit(), {})


def test_a_key_that_a_link_repeats_is_not_stored():
    """A checkpoint lies in SQL in clear."""
    endpoint = endpoint_of(BODY_LINK, auth=ApiKey(secret="KEY", query="key"))
    body = {"rows": [], "meta": {"next": "/v1/bars?key=k-4711&at=100"}}
    page = endpoint.read(unit(), {}, Answer(200, {}, json.dumps(body).encode(), 0.1))
    assert page.next == {"link": "/v1/bars?at=100"}


def test_a_link_to_another_host_is_a_bad_payload():
    """Both hosts, and whose page it was."""
    body = {"rows": [], "meta": {"next": "http://other.example/v1/bars"}}
    with pytest.raises(
        BadPayloadError, match=r"^shop\.bars: .* https://shop\.example only.* http://other\.example\."
    ):
        endpoint_of(BODY_LINK).read(unit(), {}, Answer(200, {}, json.dumps(body).encode(), 0.1))


names = st.sampled_from(["meta", "pages", "next", "token", "total", "rows"])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(
        ["/x", "?at=1", "https://shop.example/v1/x", "http://[", "//e:x", "https://shop.example:99999/"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
bodies = values | st.fixed_dictionaries(
    {"meta": st.fixed_dictionaries({"pages": values, "next": values, "token": values}), "total": values}
)


@pytest.mark.parametrize("page", [*KINDS, Single(), bars()], ids=str)
@given(answers=st.lists(st.tuples(bodies, st.lists(values, max_size=3), st.text()), min_size=1, max_size=3))
def test_any_answer_ends_well(page, answers):
    """A checkpoint that JSON can carry, the end, or an error of the kind that a paging may raise."""
    asked = unit(T0, T0 + 25 * MINUTE)
    checkpoint = page.first(asked)
    for body, rows, link in answers:
        found = reply(body, rows * 50, link=f"<{link}>; rel=next")
        try:
            after = page.following(asked, checkpoint, found)
        except (ValueError, TypeError):
            return
        if after is None:
            return
        assert after != checkpoint
        checkpoint = json.loads(json.dumps(after))
        assert checkpoint == after
        assert all(isinstance(each, str) for each in page.params(asked, checkpoint).values())
