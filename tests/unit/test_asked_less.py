"""Pages by half where an API says that it is too much, and links and tokens that lead nowhere."""

import json
from itertools import pairwise
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import APIError, BadPayloadError, ConfigurationError, RateLimitError, TooMuchError
from tasks.collectors import Answer, Api, Link, Number, Offset, Rule, Token, Unit

UNIT = Unit(1, 1, "shop", "orders", "", None, None, None)
RULES = [Rule("too_much", status=413), Rule("too_much", status=400, body="response too large")]


def answer(body, status=200, **headers) -> Answer:
    return Answer(status, headers, json.dumps(body).encode(), 0.1)


def declare(**options):
    api = Api("shop", "https://shop.example", rules=options.pop("rules", RULES))

    @api.endpoint("/orders", key="id", **options)
    def orders(row, unit):
        return {"id": row}

    return api.endpoints["orders"]


class Shop:
    """A server with so many rows, that gives at most so many of them at once."""

    def __init__(self, count, most):
        self.rows, self.most = list(range(count)), most
        self.sizes = []

    def __call__(self, request):
        query = dict(parse_qsl(urlsplit(request.url).query)) | dict(request.params)
        size = int(query["size"])
        self.sizes.append(size)
        if size > self.most:
            return answer({}, 413)
        start = int(query.get("token", query.get("offset", 0)))
        if "page" in query:
            start = (int(query["page"]) - 1) * size
        end = start + size
        body = {"rows": self.rows[start:end], "next": str(end) if end < len(self.rows) else None}
        if "link" in query:
            body["next"] = f"/orders?link=1&size={size}&token={end}" if end < len(self.rows) else None
        return answer(body)


def read_all(endpoint, shop):
    """The rows of a unit, as they come."""
    found, checkpoint = [], endpoint.first(UNIT)
    while checkpoint is not None:
        page = endpoint.read(
            UNIT, json.loads(json.dumps(checkpoint)), shop(endpoint.request(UNIT, checkpoint))
        )
        found += [row["data"]["id"] for row in page.rows]
        checkpoint = page.next
    return found


PAGINGS = {
    "token": {"page": Token(param="token", at="next", size_param="size", size=64)},
    "number": {"page": Number(param="page", size_param="size", size=64)},
    "offset": {"page": Offset(param="offset", size_param="size", size=64)},
    "link": {"page": Link(at="next", size_param="size", size=64), "params": {"link": "1"}},
}


@pytest.mark.parametrize("kind", PAGINGS)
@given(count=st.integers(0, 200), most=st.integers(1, 100))
def test_every_row_is_read_by_half_and_half(kind, count, most):
    """Down to what the API gives; the size stays small for the rest of the unit."""
    shop = Shop(count, most)
    assert read_all(declare(rows="rows", **PAGINGS[kind]), shop) == shop.rows
    assert all(later in {size, size // 2} for size, later in pairwise(shop.sizes))
    assert shop.sizes[-1] <= most


@pytest.mark.parametrize("kind", PAGINGS)
def test_one_row_that_is_too_much_is_an_error(kind):
    """It ends, and says what the API said."""
    with pytest.raises(TooMuchError, match="shop answered 413"):
        read_all(declare(rows="rows", **PAGINGS[kind]), Shop(3, 0))


def test_a_later_page_may_be_the_one_that_is_too_much():
    """A token goes on from there, a number begins again, a link says its size itself."""
    too_much = answer({"error": "response too large"}, 400)

    def less(kind, checkpoint):
        endpoint = declare(rows="rows", **PAGINGS[kind])
        return endpoint.request(UNIT, endpoint.read(UNIT, checkpoint, too_much).next)

    assert less("token", {"token": "7"}).params == {"token": "7", "size": "32"}
    assert less("offset", {"offset": 64}).params == {"offset": "64", "size": "32"}
    assert less("number", {"page": 5, "rows": "x"}).params == {"page": "1", "size": "32"}
    assert less("link", {"link": "/o?a=1&size=64&b=2"}).url == "https://shop.example/o?a=1&size=32&b=2"
    with pytest.raises(TooMuchError):
        less("link", {"link": "/o?a=1"})


@pytest.mark.parametrize("page", [None, Token(param="t", at="next"), Link(), Number(param="p", size=9)])
def test_without_a_parameter_for_the_size_it_is_an_error(page):
    """There is nothing that could be changed."""
    endpoint = declare(page=page)
    with pytest.raises(TooMuchError):
        endpoint.read(UNIT, endpoint.first(UNIT), answer({}, 413))


def test_begin_again_keeps_the_size():
    """A stale token does not make the API give more at once."""
    endpoint = declare(rows="rows", rules=[*RULES, Rule("restart", status=410)], **PAGINGS["token"])
    page = endpoint.read(UNIT, {"token": "7", "size": 8}, answer({}, 410))
    assert endpoint.request(UNIT, page.next).params == {"size": "8"}
    with pytest.raises(APIError):
        endpoint.read(UNIT, {"size": 8}, answer({}, 410))


@given(before=st.integers(0, 20), length=st.integers(1, 40))
def test_pages_in_a_circle_are_an_error(before, length):
    """However long it is and wherever it begins."""
    names = [f"p{n}" for n in range(before + length)]
    following = dict(zip(names, [*names[1:], names[before]], strict=True))

    def walk(key):
        page = Token(param="t", at="next") if key == "token" else Link(at="next")
        endpoint, slash = declare(rows="rows", page=page), "" if key == "token" else "/"
        checkpoint = {key: f"{slash}p0"}
        for _ in range(4 * (before + length) + 4):
            at = following[checkpoint[key].strip("/")]
            checkpoint = endpoint.read(UNIT, checkpoint, answer({"rows": [], "next": slash + at})).next

    for key in ("token", "link"):
        with pytest.raises(BadPayloadError, match=r"in a circle|just read"):
            walk(key)


@given(count=st.integers(1, 300))
def test_pages_in_no_circle_are_none(count):
    """Many tokens, each of them another."""
    endpoint, checkpoint = declare(rows="rows", page=Token(param="t", at="next")), {}
    for n in range(count):
        checkpoint = endpoint.read(UNIT, checkpoint, answer({"rows": [], "next": f"t{n}"})).next
    assert len(json.dumps(checkpoint)) < 200


def test_an_answer_without_content_has_no_rows():
    """204, wherever rows would stand."""
    for options in (PAGINGS["token"], PAGINGS["offset"], {"page": None}):
        endpoint = declare(rows="rows", **options)
        page = endpoint.read(UNIT, endpoint.first(UNIT), Answer(204, {}, b"", 0.1))
        assert (page.rows, page.next) == ([], None)


def test_a_path_may_lead_through_a_list():
    """By the number of a place."""
    endpoint = declare(rows="results.0.items")
    assert len(endpoint.read(UNIT, {}, answer({"results": [{"items": [1, 2]}]})).rows) == 2
    for body in ({"results": []}, {"results": [1]}, {"results": {"0": 5}}):
        with pytest.raises(BadPayloadError, match=r"results\.0\.items"):
            endpoint.read(UNIT, {}, answer(body))


def test_an_error_in_a_good_answer():
    """Kraken's way, and whom a rule lets it stop."""
    rules = [Rule("rate_limited", body=r'"EAPI:Rate limit exceeded"', retry_after="5s", scope="host")]
    endpoint = declare(rows="result", rules=rules)
    with pytest.raises(RateLimitError) as caught:
        endpoint.read(UNIT, {}, answer({"error": ["EAPI:Rate limit exceeded"]}))
    assert (caught.value.whom, caught.value.retry_after_s) == ("host", 5.0)


def test_a_size_is_a_number():
    """Of links, too."""
    with pytest.raises(ConfigurationError, match=r"Link\.size is 0"):
        Link(size=0)
