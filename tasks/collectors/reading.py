"""What an answer means: its rows, and where to go on."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from resilience.errors import NotFoundError, PenstockError, Scope
from tasks.collectors.asking import address, digest
from tasks.collectors.auth import in_query
from tasks.collectors.fields import plain, to_cursor
from tasks.collectors.paging import lookup
from tasks.collectors.rows import SAMPLE, bad_payload, decode, items, why
from tasks.collectors.rules import RESTART, RESYNC, TOO_MUCH, Rule, first_of
from tasks.collectors.spans import Bars
from tasks.collectors.sync import CHANGES, FULL, START
from tasks.collectors.values import Answer, Checkpoint, Fetched, Known, Page, Reply, Unit

if TYPE_CHECKING:
    from tasks.collectors.endpoint import Endpoint

logger = logging.getLogger(__name__)

# A `Date` header names whole seconds, and servers keep one for a second: the true time is up to this later.
DATE_LAG = timedelta(seconds=2)
NO_CONTENT = 204
NOT_MODIFIED = 304
_KEY_MAX = 500  # characters, as in the records table
_CHECKPOINT_MAX = 10_000  # characters, of a function's checkpoint
# What stays in the checkpoints of a unit, whatever its paging keeps there.
_KEPT = frozenset({"restarted", "size", "mode", "synced", "validators"})
_CONDITIONS = frozenset({"if-none-match", "if-modified-since"})
_VALIDATOR_MAX = 1000  # characters

Both = tuple[dict[str, Any], dict[str, Any]]
"""A checked row, and what is stored of it."""


def read(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, answer: Answer) -> Page:
    """See `Endpoint.read`."""
    if "ids" in checkpoint:
        return _item(endpoint, unit, checkpoint, answer)
    if checkpoint.get("mode") == START:
        return _start(endpoint, unit, answer)
    rule = first_of(endpoint.api.rules, answer, synced=checkpoint.get("mode") == CHANGES)
    outcome = None if rule is None else rule.outcome
    if outcome == RESTART:
        return _restart(endpoint, unit, checkpoint, answer)
    if outcome == RESYNC:
        return _resync(endpoint, unit)
    if outcome == TOO_MUCH and (less := endpoint.page.smaller(unit, checkpoint)) is not None:
        return Page([], _kept(checkpoint) | less, None)
    if answer.status == NOT_MODIFIED and _was_conditional(endpoint, unit, checkpoint):
        return Page([], None, None, reason="not_modified")
    error = endpoint.api.error_of(answer)
    if error is not None:
        raise error
    with _agreed(endpoint, answer):
        return _list(endpoint, unit, checkpoint, answer)


def _list(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, answer: Answer) -> Page:
    """A page of rows, or of ids whose rows are fetched one by one."""
    changes = endpoint.sync if checkpoint.get("mode") == CHANGES else None
    where = changes.rows if changes is not None and changes.rows is not None else endpoint.rows
    body = None if answer.status == NO_CONTENT else decode(answer.body)
    found = [] if answer.status == NO_CONTENT else items(body, where)
    asked = address(endpoint, unit, checkpoint)
    reply = Reply(body, found, answer.headers, asked, in_query(endpoint.api.auth))
    again = endpoint.page.cut(unit, checkpoint, reply)
    if again is not None:
        return Page([], _kept(checkpoint) | again, None)
    if endpoint.detail is None:
        page = _page(endpoint, found, unit, answer)
        ids = []
    else:
        page, ids = Page([], None, None), endpoint.detail.ids(found)
    after = _following(endpoint, unit, checkpoint, reply)
    kept = _kept(checkpoint) | _learnt(endpoint, unit, checkpoint, answer, body, last=after is None)
    if ids:
        return replace(page, next=kept | {"ids": ids, "of": len(ids), "then": after})
    return _ended(page, kept, after)


def _ended(page: Page, kept: Checkpoint, after: Checkpoint | None) -> Page:
    """The page with where to go on or, at the end, with what the unit has to keep."""
    if after is not None:
        return replace(page, next=kept | after)
    known = kept.get("validators")
    return replace(page, token=kept.get("synced"), known=Known(**known) if known else None)


def _learnt(
    endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, answer: Answer, body: Any, *, last: bool
) -> Checkpoint:
    """What the answer says for the end of the unit: the sync token, and the validators of the first page."""
    found: Checkpoint = {}
    if endpoint.sync is not None:
        # The token of the moment before the read stays; without one it is that of the last page.
        token = checkpoint.get("synced") if endpoint.sync.start is not None else None
        token = token or endpoint.sync.token(body)
        if last and token is None:
            raise ValueError(f"{endpoint.sync.at} is not there, and nothing to go on from the next time")
        found |= {} if token is None else {"synced": token}
    if endpoint.conditional and _is_first(endpoint, unit, checkpoint):
        etag, modified = (_validator(answer.headers.get(name)) for name in ("etag", "last-modified"))
        if etag or modified:
            asked = digest(endpoint.request(unit, checkpoint))
            found["validators"] = {"asked": asked, "etag": etag, "modified": modified}
    return found


def _validator(said: str | None) -> str | None:
    """What a server may be sent back as it is."""
    return said if said and said.isascii() and said.isprintable() and len(said) <= _VALIDATOR_MAX else None


def _was_conditional(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint) -> bool:
    """Whether the server was asked for its first page only if something has changed."""
    sent = {name.lower() for name in endpoint.request(unit, checkpoint).headers}
    return bool(sent & _CONDITIONS) and _is_first(endpoint, unit, checkpoint)


def _start(endpoint: "Endpoint", unit: Unit, answer: Answer) -> Page:
    """The token of the moment before everything is read."""
    assert endpoint.sync is not None
    assert endpoint.sync.start is not None
    error = _error_of(endpoint, answer)
    if error is not None:
        raise error
    with _agreed(endpoint, answer):
        token = endpoint.sync.token(decode(answer.body), endpoint.sync.start[1])
        if token is None:
            raise ValueError(f"{endpoint.sync.start[1]} is not there")
    return Page([], endpoint.page.first(unit) | {"mode": FULL, "synced": token}, None)


def _item(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, answer: Answer) -> Page:
    """One item of a listed page; a page most of whose items are broken is a service that is broken."""
    assert endpoint.detail is not None
    (_, *rest), of, bad = checkpoint["ids"], checkpoint["of"], checkpoint.get("bad", 0)
    error = _error_of(endpoint, answer)
    if isinstance(error, NotFoundError) and error.scope is Scope.SYMBOL:
        page = Page([], None, None, vanished=1)
    elif error is not None:
        raise error
    else:
        with _agreed(endpoint, answer):
            body = decode(answer.body)
            row = body if endpoint.detail.row is None else lookup(body, endpoint.detail.row)
            page = _page(endpoint, [row], unit, answer, bad=bad, of=of, last=not rest)
    kept, bad = _kept(checkpoint), bad + page.bad_rows
    page = replace(page, light=True)
    if not rest:
        return _ended(page, kept, checkpoint["then"])
    counted = {"bad": bad} if bad else {}
    return replace(page, next=kept | {"ids": rest, "of": of, "then": checkpoint["then"]} | counted)


def _error_of(endpoint: "Endpoint", answer: Answer) -> PenstockError | None:
    """The error of an answer that is no page: what asks a list to begin again is one."""
    error, rule = endpoint.api.error_of(answer), first_of(endpoint.api.rules, answer)
    if error is None and rule is not None and rule.outcome == RESTART:
        return Rule("validation", status=answer.status).error(endpoint.api.name, answer)
    return error


def take(
    endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, fetched: Fetched, answer: Answer | None
) -> Page:
    """See `Endpoint.take`."""
    with _agreed(endpoint, answer):
        page = _page(endpoint, fetched.rows, unit, answer)
        return replace(page, next=_after(fetched.next, checkpoint))


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
    *,
    bad: int = 0,
    of: int | None = None,
    last: bool = True,
) -> Page:
    """The rows as they are stored, those that cannot be, and the highest value of the cursor.

    A page that is broken for the most part is no page with broken rows, but a service that is broken. Of a
    page whose rows come one by one so many were `bad` before, `of` so many; the `last` one decides.
    """
    kinds = datetime if endpoint.timed else datetime | str
    rows = endpoint.shape.sort_out(found, lambda raw: _row(endpoint, raw, unit, kinds))
    count, bad = len(found) if of is None else of, bad + rows.bad_rows
    if last and 2 * bad > count:
        many = f"{bad} of {count} rows are broken, the first by " if count > 1 else ""
        error = _bad_payload(endpoint, many + (rows.bad[0].reason if rows.bad else "others"), answer)
        vars(error)["sample"] = found[:SAMPLE]  # what they look like may be the reason
        raise error
    inside = _inside(endpoint, rows.good, unit, answer)
    highest = None
    if endpoint.cursor is not None and inside:
        values = [row[endpoint.cursor.field] for row, _ in inside]
        aware = endpoint.timed and not endpoint.generic  # of a table: all of them times with a zone
        highest = to_cursor(max(values)) if aware else max(map(to_cursor, values))
    return Page([kept for _, kept in inside], None, highest, rows.bad, rows.bad_rows, found[:SAMPLE])


def _row(endpoint: "Endpoint", raw: Any, unit: Unit, kinds: Any) -> Both:
    """A checked row, its cursor one of `kinds`, and what is stored of it."""
    row = endpoint.shape.checked(endpoint.parse(raw, unit))
    if endpoint.cursor is not None:
        name = endpoint.cursor.field
        if not isinstance(row.get(name), kinds):
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
    if after is not None and len(json.dumps(after)) > _CHECKPOINT_MAX:
        raise ValueError(f"where the next page is has more than {_CHECKPOINT_MAX} characters")
    return after


def _kept(checkpoint: Checkpoint) -> Checkpoint:
    return {name: value for name, value in checkpoint.items() if name in _KEPT}


def _is_first(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint) -> bool:
    first = endpoint.page.first(unit)
    return first.items() <= checkpoint.items() and checkpoint.keys() <= first.keys() | _KEPT | {"known"}


def _restart(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint, answer: Answer) -> Page:
    if checkpoint.get("restarted") or _is_first(endpoint, unit, checkpoint):
        raise Rule("validation", status=answer.status).error(endpoint.api.name, answer)
    return Page([], _kept(checkpoint) | endpoint.page.first(unit) | {"restarted": True}, None)


def _resync(endpoint: "Endpoint", unit: Unit) -> Page:
    """The sync token is no longer known: read everything."""
    assert endpoint.sync is not None
    logger.warning(
        "%s %s: the API no longer knows its sync token; everything is read again",
        *(endpoint.full_name, unit.symbol),
    )
    begins = endpoint.sync.begins(None)
    return Page([], begins if begins["mode"] == START else begins | endpoint.page.first(unit), None)


def _after(after: Checkpoint | None, checkpoint: Checkpoint) -> Checkpoint | None:
    """A function's next checkpoint, if it may be one."""
    if after is None:
        return None
    if plain(after) == plain(checkpoint):
        raise ValueError("`next` is the checkpoint that was just read")
    if len(json.dumps(after)) > _CHECKPOINT_MAX:
        raise ValueError(f"`next` is longer than {_CHECKPOINT_MAX} characters")
    return after
