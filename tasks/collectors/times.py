"""How APIs write times in what they are asked, and which time a cursor asks for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Literal, get_args

from resilience.errors import ConfigurationError
from tasks.collectors.fields import duration, to_iso, to_ms, to_seconds
from tasks.collectors.values import Unit

TimeUnit = Literal["ms", "s", "iso", "offset", "naive", "http"]
"""Since 1970 in milliseconds or seconds; ISO 8601 with Z, with +00:00, without a zone; a date as in HTTP."""


def _whole(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(microsecond=0)


WRITE: Mapping[TimeUnit, Callable[[datetime], str]] = {
    "ms": to_ms,
    "s": to_seconds,
    "iso": to_iso,
    "offset": lambda at: _whole(at).isoformat(),
    "naive": lambda at: _whole(at).replace(tzinfo=None).isoformat(),
    "http": lambda at: format_datetime(_whole(at), usegmt=True),
}
TICK: Mapping[TimeUnit, timedelta] = {
    unit: timedelta(milliseconds=1) if unit == "ms" else timedelta(seconds=1) for unit in get_args(TimeUnit)
}
_OF_TIMES = frozenset({"offset", "naive", "http"})


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a symbol has been collected: the highest value of `field` among the stored rows.

    Each run starts `lag` before it, to see late corrections; the upsert makes the overlap harmless. `param`
    sends that start to the API, written as `unit` says, or `header` does ("If-Modified-Since"), and `until`
    sends the end of a backfill's window. `chunk` cuts a backfill into windows. Where the field is a text and
    not a time, it is sent as it is, and neither `lag`, `chunk` nor `until` has a meaning.

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
    header: str | None = None

    def __post_init__(self) -> None:
        if not self.field:
            raise ConfigurationError("Cursor needs the name of a field")
        if self.param and self.header:
            raise ConfigurationError("Cursor is sent by `param` or by `header`, and not by both")
        if self.until and not self.param:
            raise ConfigurationError(
                "Cursor.until sends the end of a window, and needs `param` for its start"
            )
        check_unit("Cursor", self.unit)
        for name, text in (("lag", self.lag), ("chunk", self.chunk), ("horizon", self.horizon)):
            if text is not None:
                duration(text, f"Cursor.{name}")

    @property
    def overlap(self) -> timedelta:
        """How far before the cursor a run starts."""
        return duration(self.lag, "Cursor.lag") if self.lag else timedelta(0)

    @property
    def step(self) -> timedelta:
        """How far back the first run of a Window looks."""
        return duration(self.chunk, "Cursor.chunk") if self.chunk else timedelta(days=1)

    def oldest(self, now: datetime) -> datetime | None:
        """The oldest moment that can be asked for at `now`, None where there is no such bound."""
        return now - duration(self.horizon, "Cursor.horizon") if self.horizon else None

    @property
    def is_sent(self) -> bool:
        """Whether the API is told where to start."""
        return bool(self.param or self.header)

    @property
    def of_times(self) -> bool:
        """Whether only times make sense in the field."""
        return bool(self.lag or self.chunk or self.until or self.horizon) or self.unit in _OF_TIMES

    def sent(self, unit: Unit) -> dict[str, str]:
        """The parameters that tell the API where to start and to end; empty for a first run."""
        if self.param is None:
            return {}
        end = {self.until: WRITE[self.unit](unit.end)} if self.until and unit.start and unit.end else {}
        return self._start(self.param, unit) | end

    def headers(self, unit: Unit) -> dict[str, str]:
        """The header that tells it; empty for a first run."""
        return {} if self.header is None else self._start(self.header, unit)

    def _start(self, name: str, unit: Unit) -> dict[str, str]:
        if unit.start is not None:
            return {name: WRITE[self.unit](unit.start)}
        return {} if unit.cursor is None else {name: unit.cursor}

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


def check_unit(kind: str, unit: str) -> None:
    """Raise ConfigurationError for a way to write times that is none."""
    if unit not in WRITE:
        raise ConfigurationError(f"{kind}.unit is {unit!r}; it is one of {', '.join(WRITE)}")
