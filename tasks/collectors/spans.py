"""Pages that are asked for by time: bars of equal length, and rows of any number in a range."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from resilience.errors import ConfigurationError, TooMuchError
from tasks.collectors.fields import duration, iso, to_iso
from tasks.collectors.paging import Paging, check_size, halved, size_of, sized
from tasks.collectors.times import TICK, WRITE, TimeUnit, check_unit
from tasks.collectors.values import Checkpoint, Reply, Unit

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
_DAY = timedelta(days=1)
_WEEK = timedelta(weeks=1)


@dataclass(frozen=True, slots=True)
class Bars(Paging):
    """Bars of equal length, asked for by time: windows of at most `size` bars, oldest window first.

    `start` and `end` name the parameters; `unit` is how the API writes times. APIs take `end` as inclusive,
    so the last tick before the window's end is sent. `size_param` sends the size: leave it out only where the
    API has no such parameter, since a default below `size` would cut pages short unseen.

    Leave `end` out for an API that knows none, and gives the newest `size` bars after `start` and never older
    ones. Then nothing before these can be read: a backfill of more is refused, and a run that was away longer
    begins with them. What is sent is the last tick before the first bar.

    A page with fewer bars is a gap in the data, never the end: reading goes on at the end of its window.
    """

    of_time: ClassVar[bool] = True

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
        check_size("Bars", self.size)
        check_unit("Bars", self.unit)
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
        start, end = self._part(unit, checkpoint)
        write, tick = WRITE[self.unit], TICK[self.unit]
        sent = {self.start: write(start), self.end: write(end - tick)} if self.end else {}
        return (sent or {self.start: write(start - tick)}) | sized(self.size_param, self.size, checkpoint)

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """The end of this page's span, whatever it held, until the window's end is reached."""
        del reply
        _, reached = self._part(unit, checkpoint)
        _, end = _window(unit)
        return {"from": to_iso(reached)} if reached < end else None

    def sends(self) -> tuple[str, ...]:
        """The ends of the window, and the size."""
        return tuple(each for each in (self.start, self.end, self.size_param) if each)

    def smaller(self, unit: Unit, checkpoint: Checkpoint) -> Checkpoint | None:
        """Half as many bars from the same one on; the newest ones cannot be had in parts."""
        del unit
        return halved(checkpoint, self.size) if self.end else None

    def _part(self, unit: Unit, checkpoint: Checkpoint) -> tuple[datetime, datetime]:
        _, end = _window(unit)
        start = iso(checkpoint["from"])
        return start, min(start + size_of(self.size, checkpoint) * self.width, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window(Paging):
    """Rows of a range of time, where an answer holds `limit` of them at most and does not say so.

    `start` and `end` name the parameters; `unit` is how the API writes times, both ends included. An answer
    with `limit` rows may lack some: the first half of its range is asked for instead, and so on, down to one
    tick of `unit`; a range of that width with as many rows raises TooMuchError. Ranges grow again where rows
    are few. `size_param` sends the limit.
    """

    of_time: ClassVar[bool] = True

    start: str
    end: str
    limit: int
    unit: TimeUnit = "ms"
    size_param: str | None = None

    def __post_init__(self) -> None:
        if not self.start or not self.end:
            raise ConfigurationError(
                "Window needs `start` and `end`, the names of the parameters that carry the range"
            )
        check_size("Window", self.limit, "limit")
        check_unit("Window", self.unit)

    def first(self, unit: Unit) -> Checkpoint:
        """All of the unit's window."""
        start, _ = _window(unit)
        return {"from": to_iso(start - (start - _EPOCH) % TICK[self.unit])}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """The range that one answer is to cover."""
        start, end = self._part(unit, checkpoint)
        write = WRITE[self.unit]
        return {self.start: write(start), self.end: write(end)} | sized(self.size_param, self.limit, {})

    def cut(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """Half of the range, where the answer is full. Raises TooMuchError where there is no half."""
        if len(reply.rows) < self.limit:
            return None
        less = self.smaller(unit, checkpoint)
        if less is None:
            start, end = self._part(unit, checkpoint)
            raise TooMuchError(
                f"{unit.collector}.{unit.endpoint} gave {len(reply.rows)} rows for {to_iso(start)} … "
                f"{to_iso(end)}, as many as an answer holds: the others cannot be had by time"
            )
        return less

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """The range after this one, twice as wide where it held few rows."""
        start, reached = self._part(unit, checkpoint)
        if reached >= self._end(unit):
            return None
        width = (reached - start) // TICK[self.unit]
        return {"from": to_iso(reached), "width": 2 * width if 2 * len(reply.rows) < self.limit else width}

    def sends(self) -> tuple[str, ...]:
        """Both ends of the range, and the limit."""
        return (self.start, self.end, *((self.size_param,) if self.size_param else ()))

    def smaller(self, unit: Unit, checkpoint: Checkpoint) -> Checkpoint | None:
        """The first half of the range."""
        start, end = self._part(unit, checkpoint)
        width = (end - start) // TICK[self.unit]
        return checkpoint | {"width": width // 2} if width > 1 else None

    def _part(self, unit: Unit, checkpoint: Checkpoint) -> tuple[datetime, datetime]:
        start, end = iso(checkpoint["from"]), self._end(unit)
        if "width" not in checkpoint:
            return start, end
        return start, min(start + checkpoint["width"] * TICK[self.unit], end)

    def _end(self, unit: Unit) -> datetime:
        """The unit's end, on a whole tick, so that nothing before it is cut off by how times are written."""
        _, end = _window(unit)
        return end + (_EPOCH - end) % TICK[self.unit]


def placeholders(page: Paging) -> Mapping[str, str]:
    """What bars add to the placeholders of a declaration."""
    if not isinstance(page, Bars):
        return {}
    return {"interval": page.interval, "interval_s": f"{page.width.total_seconds():.0f}"}


def _window(unit: Unit) -> tuple[datetime, datetime]:
    if unit.start is None or unit.end is None or unit.start >= unit.end:
        raise ConfigurationError(
            f"{unit.collector}.{unit.endpoint} reads by time and needs a window with a start before its end; "
            f"unit {unit.run}/{unit.n} has {unit.start} … {unit.end}"
        )
    return unit.start, unit.end
