"""How to get from one page to the next.

A paging is a frozen value: `first` gives the checkpoint to start from, `params` what to send there, and
`following` where to go on, None being the end. An empty page is no end where the API says that there is more,
or where a window says so.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from resilience.errors import ConfigurationError
from tasks.collectors.fields import duration, iso, to_iso, to_ms, to_seconds
from tasks.collectors.values import Checkpoint, Reply, Unit

TimeUnit = Literal["ms", "s", "iso"]

_WRITE = {"ms": to_ms, "s": to_seconds, "iso": to_iso}
_TICK = {"ms": timedelta(milliseconds=1), "s": timedelta(seconds=1), "iso": timedelta(seconds=1)}
_DAY = timedelta(days=1)
_WEEK = timedelta(weeks=1)
_FIRST_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)


class Paging(Protocol):
    """What an endpoint asks of its paging."""

    def first(self, unit: Unit) -> Checkpoint:
        """Where the unit starts."""

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """What to send for this page."""

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """Where the next page starts, None after the last. Raises ValueError or TypeError if unclear."""

    def sends(self) -> tuple[str, ...]:
        """The names of the parameters that `params` sets."""


@dataclass(frozen=True, slots=True)
class Single:
    """Everything comes in one answer."""

    def first(self, unit: Unit) -> Checkpoint:
        """There is only one place to start."""
        del unit
        return {}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """Nothing to say."""
        del unit, checkpoint
        return {}

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """There is no second page."""
        del unit, checkpoint, reply
        return None

    def sends(self) -> tuple[str, ...]:
        """No parameter."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Each answer names the next page by a token.

    `param` carries it, `at` is where the answer holds it ("next_page.offset"); missing, null and "" mean the
    end. The same token twice in a row raises ValueError instead of asking for ever.
    """

    param: str
    at: str
    size_param: str | None = None
    size: int = 100

    def __post_init__(self) -> None:
        if not self.param or not self.at:
            raise ConfigurationError(
                "Token needs `param`, which carries the token, and `at`, where the answer holds it"
            )
        _check_size("Token", self.size)

    def first(self, unit: Unit) -> Checkpoint:
        """The first page has no token."""
        del unit
        return {}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """The token, after the first page, and the size."""
        del unit
        sent = _sized(self.size_param, self.size)
        return sent | ({self.param: checkpoint["token"]} if "token" in checkpoint else {})

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """The token that the body names."""
        del unit
        token = lookup(reply.body, self.at)
        if token is None or token == "":
            return None
        if isinstance(token, bool) or not isinstance(token, str | int):
            raise TypeError(f"{self.at} holds no token but {type(token).__name__}")
        if str(token) == checkpoint.get("token"):
            raise ValueError(f"{self.at} names the page that was just read")
        return {"token": str(token)}

    def sends(self) -> tuple[str, ...]:
        """The token's parameter, and the size's."""
        return (self.param, self.size_param) if self.size_param else (self.param,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """Pages are numbered, from `start` on; `param` carries the number.

    `pages` is where the answer holds how many there are ("pagination.pageCount"). Where it does not say, the
    first page with fewer than `size` rows is the last: `size` has to be what the API gives at most, since a
    larger one would end the reading early and unseen. The rows of the page before, once more, raise
    ValueError: an API that does not know `param` would be asked for ever.
    """

    param: str
    size: int
    size_param: str | None = None
    start: int = 1
    pages: str | None = None

    def __post_init__(self) -> None:
        if not self.param:
            raise ConfigurationError("Number needs `param`, which carries the number of the page")
        _check_size("Number", self.size)
        if self.start not in {0, 1}:
            raise ConfigurationError(f"Number.start is {self.start!r}; pages are numbered from 0 or 1 on")

    def first(self, unit: Unit) -> Checkpoint:
        """The number of the first page."""
        del unit
        return {"page": self.start}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """The number and the size."""
        del unit
        return {self.param: str(checkpoint["page"])} | _sized(self.size_param, self.size)

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """The next number, up to the number of pages or a short page."""
        del unit
        after = checkpoint["page"] + 1
        pages = _count(reply.body, self.pages)
        if after - self.start >= pages if pages is not None else len(reply.rows) < self.size:
            return None
        return {"page": after, "rows": _mark(checkpoint, reply.rows)}

    def sends(self) -> tuple[str, ...]:
        """The number's parameter, and the size's."""
        return (self.param, self.size_param) if self.size_param else (self.param,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """Each page begins after so many rows; `param` carries how many.

    `total` is where the answer holds how many there are in all ("total"). Where it does not say, the first
    page with fewer than `size` rows is the last: see Number. With a total the server may give fewer rows than
    it was asked for, but no page without any before all are read: that, and the rows of the page before once
    more, raise ValueError.
    """

    param: str
    size: int
    size_param: str | None = None
    total: str | None = None

    def __post_init__(self) -> None:
        if not self.param:
            raise ConfigurationError("Offset needs `param`, which carries how many rows to pass over")
        _check_size("Offset", self.size)

    def first(self, unit: Unit) -> Checkpoint:
        """Before the first row."""
        del unit
        return {"offset": 0}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """The offset and the size."""
        del unit
        return {self.param: str(checkpoint["offset"])} | _sized(self.size_param, self.size)

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """After the rows that came, up to the total or a short page."""
        del unit
        reached = checkpoint["offset"] + len(reply.rows)
        total = _count(reply.body, self.total)
        if reached >= total if total is not None else len(reply.rows) < self.size:
            return None
        if not reply.rows:
            raise ValueError(f"{self.total} is {total}, but there is no row after the first {reached}")
        return {"offset": reached, "rows": _mark(checkpoint, reply.rows)}

    def sends(self) -> tuple[str, ...]:
        """The offset's parameter, and the size's."""
        return (self.param, self.size_param) if self.size_param else (self.param,)


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of equal length, asked for by time: windows of at most `size` bars, oldest window first.

    `start` and `end` name the parameters; `unit` is how the API writes times. APIs take `end` as inclusive,
    so the last tick before the window's end is sent. `size_param` sends the size: leave it out only where the
    API has no such parameter, since a default below `size` would cut pages short unseen.

    Leave `end` out for an API that knows none, and gives the newest `size` bars after `start` and never older
    ones. Then nothing before these can be read: a backfill of more is refused, and a run that was away longer
    begins with them. What is sent is the last tick before the first bar.

    A page with fewer bars is a gap in the data, never the end: reading goes on at the end of its window.
    """

    interval: str
    _: KW_ONLY
    start: str
    size: int
    end: str | None = None
    unit: TimeUnit = "ms"
    size_param: str | None = None
    width: timedelta = field(init=False, repr=False)  # of one bar

    def __post_init__(self) -> None:
        if not self.start or self.end == "":
            raise ConfigurationError(
                "Bars needs `start` and, if the API has it, `end`: the parameters that carry the window"
            )
        _check_size("Bars", self.size)
        if self.unit not in _WRITE:
            raise ConfigurationError(f"Bars.unit is {self.unit!r}; it is one of {', '.join(_WRITE)}")
        width = duration(self.interval, "Bars.interval")
        if _DAY % width and width != _WEEK:
            raise ConfigurationError(
                f"Bars.interval is {self.interval!r}; bars have to divide a day evenly, or be '1d' or '1w'"
            )
        object.__setattr__(self, "width", width)

    def floor(self, at: datetime) -> datetime:
        """The last boundary between two bars at or before `at`; weeks begin on Monday."""
        return at - (at - _FIRST_MONDAY) % self.width

    def ceil(self, at: datetime) -> datetime:
        """The first boundary between two bars at or after `at`."""
        return at + (_FIRST_MONDAY - at) % self.width

    def oldest(self, now: datetime) -> datetime | None:
        """The first bar that can be read at `now`, None where there is no such bound."""
        return None if self.end else self.floor(now) - self.size * self.width

    def first(self, unit: Unit) -> Checkpoint:
        """The window's start."""
        start, _ = _window(unit)
        return {"from": to_iso(start)}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """The part of the window that one page covers."""
        start, end = self._span(unit, checkpoint)
        write, tick = _WRITE[self.unit], _TICK[self.unit]
        sent = {self.start: write(start), self.end: write(end - tick)} if self.end else {}
        return (sent or {self.start: write(start - tick)}) | _sized(self.size_param, self.size)

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """The end of this page's span, whatever it held, until the window's end is reached."""
        del reply
        _, reached = self._span(unit, checkpoint)
        _, end = _window(unit)
        return {"from": to_iso(reached)} if reached < end else None

    def sends(self) -> tuple[str, ...]:
        """The ends of the window, and the size."""
        return tuple(each for each in (self.start, self.end, self.size_param) if each)

    def _span(self, unit: Unit, checkpoint: Checkpoint) -> tuple[datetime, datetime]:
        _, end = _window(unit)
        start = iso(checkpoint["from"])
        return start, min(start + self.size * self.width, end)


def _window(unit: Unit) -> tuple[datetime, datetime]:
    if unit.start is None or unit.end is None or unit.start >= unit.end:
        raise ConfigurationError(
            f"{unit.collector}.{unit.endpoint} reads bars and needs a window with a start before its end; "
            f"unit {unit.run}/{unit.n} has {unit.start} … {unit.end}"
        )
    return unit.start, unit.end


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a symbol has been collected: the highest value of `field` among the stored rows.

    Each run starts `lag` before it, to see late corrections; the upsert makes the overlap harmless. `param`
    sends that start to the API, written as `unit` says, and `until` the end of a backfill's window. `chunk`
    cuts a backfill into windows. Where the field is a text and not a time, it is sent as it is, and neither
    `lag`, `chunk` nor `until` has a meaning.

    `horizon` is how far back the API can be asked: nothing older is, neither by a run after a long time nor
    by a backfill.
    """

    field: str
    lag: str | None = None
    chunk: str | None = None
    param: str | None = None
    unit: TimeUnit = "iso"
    until: str | None = None
    horizon: str | None = None

    def __post_init__(self) -> None:
        if not self.field:
            raise ConfigurationError("Cursor needs the name of a field")
        if self.until and not self.param:
            raise ConfigurationError(
                "Cursor.until sends the end of a window, and needs `param` for its start"
            )
        if self.unit not in _WRITE:
            raise ConfigurationError(f"Cursor.unit is {self.unit!r}; it is one of {', '.join(_WRITE)}")
        for name, text in (("lag", self.lag), ("chunk", self.chunk), ("horizon", self.horizon)):
            if text is not None:
                duration(text, f"Cursor.{name}")

    @property
    def overlap(self) -> timedelta:
        """How far before the cursor a run starts."""
        return duration(self.lag, "Cursor.lag") if self.lag else timedelta(0)

    def oldest(self, now: datetime) -> datetime | None:
        """The oldest moment that can be asked for at `now`, None where there is no such bound."""
        return now - duration(self.horizon, "Cursor.horizon") if self.horizon else None

    def sent(self, unit: Unit) -> dict[str, str]:
        """The parameters that tell the API where to start and to end; empty for a first run."""
        if self.param is None:
            return {}
        if unit.start is None:
            return {} if unit.cursor is None else {self.param: unit.cursor}
        write = _WRITE[self.unit]
        end = {self.until: write(unit.end)} if self.until and unit.end else {}
        return {self.param: write(unit.start), **end}

    def sends(self) -> tuple[str, ...]:
        """The names of the parameters that `sent` sets."""
        return tuple(each for each in (self.param, self.until) if each)

    def chunks(
        self, start: datetime, end: datetime, width: timedelta | None = None
    ) -> Iterator[tuple[datetime, datetime]]:
        """Cut the range; every boundary inside it lies a whole number of `width` from its start."""
        step = duration(self.chunk, "Cursor.chunk") if self.chunk else end - start
        if width is not None and self.chunk:
            step = max(step - step % width, width)
        while start < end:
            yield start, min(start + step, end)
            start += step


def lookup(body: Any, path: str) -> Any:
    """What `body` holds at a dotted path, None where it ends early. Raises TypeError for no object."""
    for name in path.split("."):
        if body is None:
            return None
        if not isinstance(body, Mapping):
            raise TypeError(f"{path} is not there: {type(body).__name__} where an object was expected")
        body = body.get(name)
    return body


def _check_size(kind: str, size: Any) -> None:
    if type(size) is not int or size < 1:
        raise ConfigurationError(f"{kind}.size is {size!r}, but has to be at least 1")


def _sized(param: str | None, size: int) -> dict[str, str]:
    return {param: str(size)} if param else {}


def _count(body: Any, path: str | None) -> int | None:
    """The count at a path of the body, None where there is none."""
    found = lookup(body, path) if path else None
    if found is not None and (type(found) is not int or found < 0):
        raise TypeError(f"{path} holds no count but {type(found).__name__}")
    return found


def _mark(checkpoint: Checkpoint, rows: Sequence[Any]) -> str | None:
    """What tells these rows from others; an empty page has no mark."""
    if not rows:
        return None
    mark = hashlib.blake2b(repr(rows).encode(), digest_size=8).hexdigest()
    if mark == checkpoint.get("rows"):
        raise ValueError("the page holds the rows of the page before: the API pays no heed to its parameter")
    return mark
