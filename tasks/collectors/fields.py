"""Values as APIs write them, and as we keep them.

The readers raise ValueError or TypeError for anything that is not what they are named after; a parse function
lets that pass, and the page becomes a BadPayloadError.
"""

import math
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from resilience.errors import ConfigurationError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION = re.compile(r"^([1-9]\d{0,5})([smhdw])$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MAX_DIGITS = 60
_DIGITS = re.compile(r"-?[0-9]{1,100}")


def duration(text: str | timedelta, field: str) -> timedelta:
    """`"90s"`, `"1m"`, `"2h"`, `"7d"` or `"1w"` as a timedelta. Raises ConfigurationError naming `field`."""
    if isinstance(text, timedelta) and text > timedelta(0):
        return text
    match = _DURATION.match(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigurationError(
            f"{field} is {text!r}; write a length of time such as '30s', '1m', '2h', '7d' or '1w'"
        )
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def ms(value: Any) -> datetime:
    """Milliseconds since 1970 as an aware UTC datetime."""
    return _EPOCH + timedelta(milliseconds=_whole(value))


def seconds(value: Any) -> datetime:
    """Seconds since 1970 as an aware UTC datetime."""
    return _EPOCH + timedelta(seconds=_whole(value))


def iso(value: Any) -> datetime:
    """An ISO 8601 time with its zone as an aware UTC datetime."""
    found = datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return found.astimezone(UTC)


def day(value: Any) -> date | None:
    """An ISO 8601 date; None stays None."""
    return None if value is None else date.fromisoformat(value)


def number(value: Any) -> Decimal:
    """A finite number, exact to the last digit."""
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise TypeError(f"{value!r} is not a number")
    found = Decimal(value)
    if not is_storable(found):
        raise ValueError(f"{value!r} is not a number that can be kept")
    return found


def whole(value: Any) -> int:
    """A whole number, or its digits in a text."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return _whole(value)


def is_storable(value: Decimal) -> bool:
    """Whether it is finite and its plain digits are not absurdly many (a body may say 1e999999999)."""
    return value.is_finite() and abs(value.adjusted()) <= _MAX_DIGITS and len(str(value)) <= 2 * _MAX_DIGITS


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def to_ms(at: datetime) -> str:
    """Milliseconds since 1970 as text."""
    return str((at - _EPOCH) // timedelta(milliseconds=1))


def to_seconds(at: datetime) -> str:
    """Whole seconds since 1970 as text."""
    return str((at - _EPOCH) // timedelta(seconds=1))


def to_iso(at: datetime) -> str:
    """ISO 8601 with `Z`; fractions only where there are some."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def to_cursor(value: datetime | str) -> str:
    """Text that sorts as the values do: a time gets all its digits, a text stays as it is."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value


def plain(value: Any) -> Any:
    """The same as JSON can carry it: a Decimal as a number where none of its digits is lost, else as text."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Decimal):
        return float(value) if Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, datetime):
        return to_iso(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return {clean(str(name)): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{value!r} cannot be kept as JSON")


def clean(text: str) -> str:
    """The text with `�` for what no database stores: NUL and halves of surrogate pairs."""
    if text.isascii():
        return text.replace("\0", "\ufffd") if "\0" in text else text
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
