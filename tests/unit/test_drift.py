"""What rows look like, without a database."""

import json
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tasks.drift import GONE_AFTER, MOST, Known, sample_of


def types(*rows):
    return {name: "|".join(sorted(found)) for name, found in sample_of(rows).types.items()}


def known(*rows):
    """As after a first look at these rows."""
    sample = sample_of(rows)
    return Known(
        types={name: frozenset(found) for name, found in sample.types.items()},
        always=frozenset(name for name in sample.types if not sample.absent(name)),
    )


def test_objects_have_fields_by_name_and_one_level_below():
    """By the types of JSON; what lies deeper is the business of others."""
    row = {
        "id": 1,
        "price": Decimal("1.5"),
        "ok": True,
        "tags": [{"x": 1}],
        "owner": {"id": "a", "at": {"x": 1}},
    }
    assert types(row, {"id": "7", "owner": None}) == {
        "id": "number|string",
        "price": "number",
        "ok": "boolean",
        "tags": "array",
        "owner": "null|object",
        "owner.id": "string",
        "owner.at": "object",
    }


def test_lists_have_fields_by_place():
    """A row that is shorter lacks the last ones; anything else is one field."""
    sample = sample_of([[1, "a", None], [2, "b"]])
    assert sample.types == {"[0]": {"number"}, "[1]": {"string"}, "[2]": {"null"}}
    assert [sample.absent(name) for name in sample.types] == [0, 0, 1]
    assert types("a", 3) == {"row": "number|string"}
    assert types([{"a": 1}]) == {"[0]": "object", "[0].a": "number"}


def test_a_field_of_an_object_that_is_not_there_is_not_absent():
    """An owner of null has no id."""
    sample = sample_of([{"owner": {"id": 1}}, {"owner": None}, {"owner": {}}, {"a.b": 1}])
    assert (sample.absent("owner"), sample.absent("owner.id"), sample.absent("owner.x")) == (1, 1, 2)
    assert sample.absent("a.b") == 0


def test_rows_as_before_differ_in_nothing():
    """That is the usual page, which costs no SQL."""
    before = known({"id": 1, "note": None}, {"id": 2, "note": "x"}, {"id": 3, "extra": 1, "note": "x"})
    for row in ({"id": 1, "note": None}, {"id": 9, "note": "y", "extra": 2}, {"id": 1, "note": "x"}):
        assert not before.differs(sample_of([row]))
    assert before.always == {"id", "note"}


def test_what_differs():
    """A new field, a new type, a field that only some rows have now."""
    rows = [{"id": 1, "note": "x"}] * 2
    for row in (
        {"id": 1, "note": "x", "more": 1},
        {"id": "1", "note": "x"},
        {"id": 1, "note": {"text": "x"}},
    ):
        assert known(*rows).differs(sample_of([row]))
    assert known(*rows).differs(sample_of([{"id": 1}, {"id": 1, "note": "x"}]))


def test_a_field_is_gone_after_so_many_rows():
    """A few may lack it by chance; one that has it begins the count anew."""
    before = known({"id": 1, "note": "x"})
    for _ in range(GONE_AFTER - 1):
        assert not before.differs(sample_of([{"id": 1}]))
    assert not before.differs(sample_of([{"id": 1, "note": "x"}]))
    for _ in range(GONE_AFTER - 1):
        assert not before.differs(sample_of([{"id": 1}]))
    assert before.differs(sample_of([{"id": 1}]))
    assert before.gone() == {"note"}


def test_fields_are_bounded():
    """An object with a key for each thing has no end of them; what is beyond is no news."""
    before = known({str(n): n for n in range(10 * MOST)})
    assert len(before.types) == MOST
    before.full = True
    assert not before.differs(sample_of([{str(n): n for n in range(10 * MOST)}]))
    assert before.differs(sample_of([{str(n): None for n in range(10 * MOST)}]))
    long = sample_of([{"x" * 500: 1, "a\0b": {"\n": 1}}]).types
    assert all(len(name) <= 200 and name.isprintable() for name in long)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(rows=st.lists(values, max_size=6))
def test_any_rows_can_be_looked_at(rows):
    """And looked at again they do not differ."""
    sample = sample_of(json.loads(json.dumps(rows), parse_float=Decimal, parse_constant=str))
    assert sample.rows == len(rows)
    assert all(0 <= sample.absent(name) <= len(rows) for name in sample.types)
    assert not known(*rows).differs(sample_of(rows))
