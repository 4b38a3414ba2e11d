"""What an answer means: its rows, and where to go on."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from resilience.errors import PenstockError
from tasks.collectors.asking import address
from tasks.collectors.auth import in_query
from tasks.collectors.fields import plain, to_cursor
from tasks.collectors.rows import bad_payload, decode, items, why
from tasks.collectors.rules import RESTART, TOO_MUCH, Rule, first_of
from tasks.collectors.spans import Bars
from tasks.collectors.values import Answer, Checkpoint, Fetched, Page, Reply, Unit

if TYPE_CHECKING:
    from tasks.collectors.endpoint import Endpoint

# A `Date` header names whole seconds, and servers keep one for a second: the true time is up to this later.
DATE_LAG = timedelta(seconds=2)
NO_CONTENT = 204
_KEY_MAX = 500  # characters, as in the records table
_CHECKPOINT_MAX = 10_000  # characters, of a function's checkpoint
# What stays in the checkpoints of a unit, whatever its paging keeps there.
_KEPT = frozenset({"restarted", "size"})

Both = tuple[dict[str, Any], dict[str, Any]]
"""A checked row, and what is stored of it."""


def read(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, answer: Answer) -> Page:
    """See `Endpoint.read`."""
    rule = first_of(endpoint.api.rules, answer)
    if rule is not None and rule.outcome == RESTART:
        return _restart(endpoint, unit, checkpoint, answer)
    if rule is not None and rule.outcome == TOO_MUCH:
        less = endpoint.page.smaller(unit, checkpoint)
        if less is not None:
            return Page([], _kept(checkpoint) | less, None)
    error = endpoint.api.error_of(answer)
    if error is not None:
        raise error
    with _agreed(endpoint, answer):
        body = None if answer.status == NO_CONTENT else decode(answer.body)
        found = [] if answer.status == NO_CONTENT else items(body, endpoint.rows)
        asked = address(endpoint, unit, checkpoint)
        reply = Reply(body, found, answer.headers, asked, in_query(endpoint.api.auth))
        again = endpoint.page.cut(unit, checkpoint, reply)
        if again is not None:
            return Page([], _kept(checkpoint) | again, None)
        return _page(endpoint, found, unit, answer, lambda: _following(endpoint, unit, checkpoint, reply))


def take(
    endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, fetched: Fetched, answer: Answer | None
) -> Page:
    """See `Endpoint.take`."""
    with _agreed(endpoint, answer):
        return _page(endpoint, fetched.rows, unit, answer, lambda: _after(fetched.next, checkpoint))


@contextmanager
def _agreed(endpoint: "Endpoint", answer: Answer | None) -> Iterator[None]:
    """Turn whatever a body that is not as agreed raises into BadPayloadError."""
    try:
        yield
    except PenstockError:
        raise
    except Exception as broken:
        raise _bad_payload(endpoint, why(broken), answer) from broken


def _bad_payload(endpoint: "Endpoint", said: str, answer: Answer | None) -> PenstockError:
    body, status = (answer.body, answer.status) if answer else (b"", 0)
    return bad_payload(endpoint.full_name, said, body, status)


def _page(
    endpoint: "Endpoint",
    found: Sequence[Any],
    unit: Unit,
    answer: Answer | None,
    following: Callable[[], Checkpoint | None],
) -> Page:
    """The rows as they are stored, those that cannot be, and the highest value of the cursor.

    A page that is broken for the most part is no page with broken rows, but a service that is broken.
    """
    rows = endpoint.shape.sort_out(found, lambda raw: _row(endpoint, raw, unit))
    if 2 * rows.bad_rows > len(found):
        many = f"{rows.bad_rows} of {len(found)} rows are broken, the first by " if len(found) > 1 else ""
        raise _bad_payload(endpoint, many + rows.bad[0].reason, answer)
    inside = _inside(endpoint, rows.good, unit, answer)
    highest = None
    if endpoint.cursor is not None:
        highest = max((to_cursor(row[endpoint.cursor.field]) for row, _ in inside), default=None)
    return Page([kept for _, kept in inside], following(), highest, rows.bad, rows.bad_rows)


def _row(endpoint: "Endpoint", raw: Any, unit: Unit) -> Both:
    """A checked row, and what is stored of it."""
    row = endpoint.shape.checked(endpoint.parse(raw, unit))
    if endpoint.cursor is not None:
        name = endpoint.cursor.field
        if not isinstance(row.get(name), datetime if endpoint.timed else datetime | str):
            raise TypeError(f"{name} is {type(row.get(name)).__name__}, which is no cursor")
    return row, _record(endpoint, row, unit) if endpoint.generic else row


def _record(endpoint: "Endpoint", row: Mapping[str, Any], unit: Unit) -> dict[str, Any]:
    data = plain(row)
    values = [data[name] for name in endpoint.key]
    key = str(values[0]) if len(values) == 1 else json.dumps(values, ensure_ascii=False)
    if len(key) > _KEY_MAX:
        raise ValueError(f"the key is longer than {_KEY_MAX} characters")
    return {"endpoint": endpoint.name, "key": key, "symbol": unit.symbol, "data": data}


def _inside(endpoint: "Endpoint", rows: list[Both], unit: Unit, answer: Answer | None) -> list[Both]:
    """The rows inside the unit's window; of bars only those that are complete."""
    if endpoint.cursor is None or not endpoint.timed:
        return rows
    name = endpoint.cursor.field
    # A bar that ends after the window, or after the server's own now, is not finished.
    first, last = unit.start, _earlier(unit.end, _seen_at(endpoint, answer))
    width = endpoint.page.width if isinstance(endpoint.page, Bars) else timedelta(microseconds=1)
    return [
        both
        for both in rows
        if (first is None or both[0][name] >= first) and (last is None or both[0][name] + width <= last)
    ]


def _seen_at(endpoint: "Endpoint", answer: Answer | None) -> datetime | None:
    if answer is None or not isinstance(endpoint.page, Bars):
        return None
    try:
        said = parsedate_to_datetime(answer.headers["date"])
        return said and said + DATE_LAG
    except (KeyError, ValueError, TypeError):
        return None


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(one, other) if one and other else one or other


def _following(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
    after = endpoint.page.following(unit, checkpoint, reply)
    if after is None:
        return None
    if len(json.dumps(after)) > _CHECKPOINT_MAX:
        raise ValueError(f"where the next page is has more than {_CHECKPOINT_MAX} characters")
    return _kept(checkpoint) | after


def _kept(checkpoint: Checkpoint) -> Checkpoint:
    return {name: value for name, value in checkpoint.items() if name in _KEPT}


def _restart(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, answer: Answer) -> Page:
    first = endpoint.first(unit)
    at_first = first.items() <= checkpoint.items() and checkpoint.keys() <= first.keys() | _KEPT
    if checkpoint.get("restarted") or at_first:
        raise Rule("validation", status=answer.status).error(endpoint.api.name, answer)
    return Page([], _kept(checkpoint) | first | {"restarted": True}, None)


def _after(after: Checkpoint | None, checkpoint: Checkpoint) -> Checkpoint | None:
    """A function's next checkpoint, if it may be one."""
    if after is None:
        return None
    if plain(after) == plain(checkpoint):
        raise ValueError("`next` is the checkpoint that was just read")
    if len(json.dumps(after)) > _CHECKPOINT_MAX:
        raise ValueError(f"`next` is longer than {_CHECKPOINT_MAX} characters")
    return after
