"""Whatever an API answers, each shipped endpoint makes rows of it that can be stored, or one of our errors."""

import copy
import json
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilience.errors import PenstockError
from tasks.collectors import Answer, Fetched
from tasks.collectors.registry import SHIPPED, load
from tests.unit.bodies import BODIES

ENDPOINTS = {
    endpoint.full_name: endpoint
    for api in load(sorted(SHIPPED), {}).values()
    for endpoint in api.endpoints.values()
}
DEEP, WIDE = '"deep"', '"wide"'  # what json.dumps cannot write
DEEPER = {DEEP: "[" * 50_000 + "]" * 50_000, WIDE: "1" * 5000}
MEBIBYTE = 1 << 20

ODD = (
    *(None, True, False, 0, -1, 1.5, 10**30, -(10**400), 1e308, float("nan"), float("inf"), "deep", "wide"),
    *("", "x", "0", "null", "\0", "\ud800", "2026-01-01", "2026-01-01T00:00:00", "1e999999999", "x" * 70_000),
    *([], {}, [[]], [None], {"": None}, [[1, 2], [3]], {"x": {"y": {}}}),
)
junk = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def places(value):
    """Where something stands in a body: (what holds it, its name or number there)."""
    holders = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, inner in holders:
        yield value, name
        yield from places(inner)


def without(value, holder, name):
    """The body without what stands in one place."""
    if isinstance(value, dict):
        return {
            each: without(inner, holder, name)
            for each, inner in value.items()
            if value is not holder or each != name
        }
    return [without(inner, holder, name) for inner in value] if isinstance(value, list) else value


def mutate(draw, body):
    """Change one thing in a body, whose outermost value stands in a list."""
    found = list(places(body))
    holder, name = found[draw(st.integers(0, len(found) - 1))]
    match draw(st.sampled_from(["replace", "drop", "wrap", "name", "text", "repeat", "move"])):
        case "replace":
            holder[name] = copy.deepcopy(draw(junk))
        case "drop" if holder is not body:
            del holder[name]
        case "wrap":
            holder[name] = [holder[name]]
        case "name":
            holder[name] = {draw(st.text(max_size=3)): holder[name]}
        case "text":
            holder[name] = str(holder[name])
        case "repeat" if isinstance(holder, list) and holder is not body:
            holder.extend(copy.deepcopy(holder[name]) for _ in range(draw(st.integers(1, 5))))
        case _:
            other, place = found[draw(st.integers(0, len(found) - 1))]
            if place in other or isinstance(place, int):
                holder[name] = copy.deepcopy(other[place] if not isinstance(other, list) else other[0])


def encode(body):
    """The body as JSON, also what Python would not write."""
    text = json.dumps(body)
    for mark, raw in DEEPER.items():
        text = text.replace(mark, raw)
    return text.encode()


@st.composite
def texts(draw, value):
    """A body with some things changed, as bytes, which may be changed too."""
    held = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(0, 3))):
        mutate(draw, held)
    data = encode(held[0])
    cut = draw(st.none() | st.integers(0, len(data)))
    if cut is not None and draw(st.booleans()):
        data = data[:cut]
    elif cut is not None:
        odd = draw(
            st.sampled_from([b"\xff", b"\0", b"{", b"]", b'"', b",", b"\xef\xbb\xbf", b"NaN", b"\\u0000"])
        )
        data = data[:cut] + odd + data[cut:]
    return data


def read(endpoint, checkpoint, data, status=200):
    """A page of the endpoint; of one that is fetched by a function, as if that had found these rows."""
    unit, answer = BODIES[endpoint.full_name].unit(endpoint.full_name), Answer(status, {}, data, 0.1)
    if endpoint.declared:
        return endpoint.read(unit, checkpoint, answer)
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):  # which a function raises too, and has no rows
        rows = []
    return endpoint.take(unit, checkpoint, Fetched(rows if isinstance(rows, list) else [rows]), answer)


def check(endpoint, page):
    """Nothing in the rows that a table would refuse; nothing in the checkpoint that grows without bound."""
    columns = {column.name: column for column in endpoint.table.columns}
    for row in endpoint.stamped(page.rows):
        assert row.keys() <= columns.keys()
        assert all(row[column.name] is not None for column in endpoint.table.primary_key)
        for name, column in columns.items():
            filled = column.nullable or column.server_default is not None or column.default is not None
            assert filled or row[name] is not None
    assert page.next is None or len(json.dumps(page.next)) <= 11_000
    assert page.cursor is None or isinstance(page.cursor, str)


def walk(endpoint, data, status=200):
    """Read on for as long as there are pages, all of them alike: it ends, or an error of ours ends it."""
    unit = BODIES[endpoint.full_name].unit(endpoint.full_name)
    walk_from(endpoint, endpoint.first(unit), data, status)
    if endpoint.sync is not None:
        walk_from(endpoint, endpoint.first(replace(unit, cursor="76")), data, status)


def walk_from(endpoint, checkpoint, data, status):
    for _ in range(50):
        try:
            page = read(endpoint, checkpoint, data, status)
        except PenstockError as error:
            if len(str(error)) > 2000:
                pytest.fail(f"{endpoint.full_name} says too much: {str(error)[:2000]}")
            return
        except ValueError:
            assert not endpoint.declared  # its function would have met it
            return
        check(endpoint, page)
        if page.next is None:
            return
        checkpoint = json.loads(json.dumps(page.next))
    pytest.fail(f"{endpoint.full_name} reads on for ever")


def test_every_endpoint_has_a_good_body():
    """Whoever adds an endpoint adds what it answers, and has it tested by that."""
    assert not ENDPOINTS.keys() - BODIES.keys(), "tests/unit/bodies.py does not say what they answer"
    assert not BODIES.keys() - ENDPOINTS.keys()


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_good_body_is_good(name):
    """Else nothing here says anything."""
    endpoint = ENDPOINTS[name]
    unit = BODIES[name].unit(name)
    checkpoint = endpoint.first(unit)
    for _ in range(3):  # a token first, then a list, then an item
        page = read(endpoint, checkpoint, json.dumps(BODIES[name].value).encode())
        if page.rows:
            break
        checkpoint = page.next
    assert page.rows
    assert page.bad_rows == 0
    check(endpoint, page)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_every_oddity_in_every_place(name):
    """One thing is not as agreed, and all else is; or it is not there."""
    held = [copy.deepcopy(BODIES[name].value)]
    for holder, place in list(places(held)):
        kept = holder[place]
        for odd in ODD:
            holder[place] = odd
            walk(ENDPOINTS[name], encode(held[0]))
        holder[place] = kept
        if isinstance(holder, dict):
            walk(ENDPOINTS[name], encode(without(held[0], holder, place)))


@pytest.mark.parametrize("name", sorted(BODIES))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(data=st.data())
def test_a_mutated_body(name, data):
    """Cut, retyped, nested, emptied, out of range, not even JSON."""
    walk(ENDPOINTS[name], data.draw(texts(BODIES[name].value)))


@pytest.mark.parametrize("name", sorted(BODIES))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    data=st.data(),
    status=st.sampled_from([201, 204, 304, 302, 400, 401, 403, 404, 410, 412, 418, 429, 451, 500, 599]),
)
def test_any_status(name, data, status):
    """The rules of an API find something to say about all of them."""
    walk(ENDPOINTS[name], data.draw(texts(BODIES[name].value) | st.binary(max_size=50)), status)


LARGE = {
    "one long text": lambda: b'"' + b"x" * (8 * MEBIBYTE) + b'"',
    "a long list of null": lambda: b"[" + b",".join([b"null"] * 1_000_000) + b"]",
    "a deep list": lambda: b"[" * (4 * MEBIBYTE),
    "one long number": lambda: b"[" + b"7" * (8 * MEBIBYTE) + b"]",
}


@pytest.mark.parametrize("what", LARGE)
def test_a_large_body_is_no_matter(what):
    """A few times its size in memory, and a few seconds of work at most, whatever stands in it."""
    data = LARGE[what]()
    for name in ("binance.klines", "x.search"):
        tracemalloc.start()
        began = time.process_time()
        try:
            walk(ENDPOINTS[name], data)
            peak, took_s = tracemalloc.get_traced_memory()[1], time.process_time() - began
        finally:
            tracemalloc.stop()
        assert peak < 10 * len(data) + 50 * MEBIBYTE
        assert took_s < 60
