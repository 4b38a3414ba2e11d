"""The TOML file: what an installation changes about the collectors it did not write.

    [binance]
    base_url = "http://127.0.0.1:8080"
    token_url = "http://127.0.0.1:8080/token"
    limits = ["1200/1m", "5 at once"]
    breaker = { failures = 3, open_for_s = 10 }
    retry = { attempts = 5, cap_s = 30 }

    [binance.klines]
    symbols = ["BTCUSDT", "ETHUSDT"]
    every = "1m"
    catch_up = "latest"
    overlap = "skip"

Whether a collector or endpoint of that name exists is for the registry to say; all else is checked here.
"""

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from resilience.errors import ConfigurationError
from resilience.policy import BreakerPolicy, Jitter, Limit, ReopenOn, RetryPolicy

# A check returns what is allowed when the value is not, and None when it is.
Check = Callable[[Any], str | None]


def read_overrides(path: Path) -> dict[str, Any]:
    """The tables of the file, as written. Raises ConfigurationError, as `parse_overrides` does."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from None
    return parse_overrides(text, str(path))


def parse_overrides(text: str, source: str) -> dict[str, Any]:
    """The tables of a TOML text, as written.

    Raises ConfigurationError with one sentence per problem, each naming the source and the key.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source} is not a TOML file: {error}") from None
    problems = [
        f"{source}: {problem}" for name, table in tables.items() for problem in _collector(name, table)
    ]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return tables


def override_breaker(policy: BreakerPolicy, table: Mapping[str, Any]) -> BreakerPolicy:
    """The policy with the values of a `breaker` table in place of its own."""
    changes: dict[str, Any] = dict(table)
    for name in _durations(policy):
        if f"{name}_s" in changes:
            changes[name] = timedelta(seconds=changes.pop(f"{name}_s"))
    return dataclasses.replace(policy, **changes)


def override_retry(policy: RetryPolicy, table: Mapping[str, Any]) -> RetryPolicy:
    """The policy with the values of a `retry` table in place of its own."""
    return dataclasses.replace(policy, **table)


def closest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: what was probably meant, or all that is known."""
    known = sorted(words)
    match = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {match[0]}?" if match else f"known are {', '.join(known)}"


def _durations(policy: BreakerPolicy) -> list[str]:
    return [f.name for f in dataclasses.fields(policy) if isinstance(getattr(policy, f.name), timedelta)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str | None:
    return None if _is_number(value) and 0 < value < float("inf") else "a number above 0"


def _whole(value: Any) -> str | None:
    return None if isinstance(value, int) and _is_number(value) and value > 0 else "a whole number above 0"


def _share(value: Any) -> str | None:
    return None if _is_number(value) and 0 < value <= 1 else "a number above 0 and up to 1"


def _growth(value: Any) -> str | None:
    return None if _is_number(value) and 1 <= value < float("inf") else "a number of at least 1"


def _url(value: Any) -> str | None:
    good = isinstance(value, str) and re.fullmatch(r"https?://\S+", value)
    return None if good else "an http:// or https:// URL"


def _texts(value: Any) -> str | None:
    good = isinstance(value, list) and value and all(isinstance(each, str) and each for each in value)
    return None if good else "a list of texts"


def _limits(value: Any) -> str | None:
    allowed = "a list of limits like '60/1m' or '5 at once'"
    if _texts(value):
        return allowed
    try:
        for spec in value:
            Limit(spec)
    except ConfigurationError:
        return allowed
    return None


def _period(value: Any) -> str | None:
    good = isinstance(value, str) and re.fullmatch(r"[1-9]\d*[smhd]", value)
    return None if good else "a period like '30s', '1m', '6h' or '1d'"


def _truth(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _one_of(*words: str) -> Check:
    return lambda value: None if value in words else f"one of {', '.join(words)}"


_BREAKER: dict[str, Check] = {
    "failures": _whole,
    "rate": _share,
    "window_s": _number,
    "min_calls": _whole,
    "open_for_s": _number,
    "growth": _growth,
    "open_max_s": _number,
    "half_open_calls": _whole,
    "half_open_successes": _whole,
    "permit_lease_s": _number,
    "slow_start_step_s": _number,
    "slow_rate": _share,
    "slow_after_s": _number,
    "reopen_on": _one_of(*get_args(ReopenOn)),
    "rate_limited_trips": _whole,
    "count_rate_limited": _truth,
}
_RETRY: dict[str, Check] = {
    "attempts": _whole,
    "base_s": _number,
    "cap_s": _number,
    "factor": _growth,
    "jitter": _one_of(*get_args(Jitter)),
}
_COLLECTOR: dict[str, Check] = {"base_url": _url, "token_url": _url, "limits": _limits}
_POLICIES: dict[str, dict[str, Check]] = {"breaker": _BREAKER, "retry": _RETRY}
_ENDPOINT: dict[str, Check] = {
    "symbols": _texts,
    "every": _period,
    "catch_up": _one_of("none", "latest", "all"),
    "overlap": _one_of("skip", "queue", "replace"),
}


def _collector(name: str, table: Any) -> Iterable[str]:
    if not isinstance(table, dict):
        yield f"{name} stands outside of a table; write it under a collector's name, as in [binance]"
        return
    own = {key: value for key, value in table.items() if not isinstance(value, dict) or key in _COLLECTOR}
    policies = {key: own.pop(key) for key in _POLICIES if key in own}
    for key, value in policies.items():
        yield f"[{name}] {key} is {value!r}, but has to be a table"
    yield from _table(name, own, _COLLECTOR, also=_POLICIES)
    for key in table.keys() - own.keys() - policies.keys():
        yield from _table(f"{name}.{key}", table[key], _POLICIES.get(key, _ENDPOINT))


def _table(
    name: str, table: dict[str, Any], checks: Mapping[str, Check], also: Iterable[str] = ()
) -> Iterable[str]:
    for key, value in table.items():
        if key not in checks:
            yield f"[{name}] {key} is not known; {closest(key, [*checks, *also])}"
        elif allowed := checks[key](value):
            yield f"[{name}] {key} is {value!r}, but has to be {allowed}"
