"""What the fake APIs serve: pure functions of a name and a time, the same in every process and on every day."""

from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any

LISTED_AT_S = 1_577_836_800  # 2020-01-01: every market opened and every project began here
WORKSPACE = "1100000000000001"
PROJECTS = [str(1_200_000_000_000_001 + n) for n in range(12)]  # what /projects lists; other digits work too

_MASK = (1 << 64) - 1
_DAY_S = 86_400
_PERIODS_S = (900, 3_600, 21_600, _DAY_S, 7 * _DAY_S, 30 * _DAY_S)
_WORDS = ("pump", "gate", "sluice", "weir", "turbine", "meter", "valve", "intake")


@lru_cache(maxsize=65_536)
def seed(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


def mix(first: int, number: int) -> int:
    """64 well-spread bits of a name's seed and a number (the splitmix64 step, which is cheap in Python)."""
    bits = (first + number * 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)


def _cents(start: int, time_s: int) -> int:
    """A market's price at a moment: a base, a slow swing over eight days, a little noise."""
    base = 1_000 + start % 9_000_000
    swing = abs((time_s + start) % (8 * _DAY_S) - 4 * _DAY_S) // 3_456  # 0 … 100 thousandths
    return base * (950 + swing + mix(start, time_s) % 7) // 1_000 + 1


def _bar(name: str, open_s: int, length_s: int, elapsed_s: int) -> tuple[int, int, int, int, int, int]:
    """Open, high, low and close in cents, volume in thousandths, trades: of the part of a bar that has passed."""
    start = seed(name)
    bits = mix(start ^ length_s, open_s)
    first, last = _cents(start, open_s), _cents(start, open_s + elapsed_s)
    spread = 1 + bits % 97
    high = max(first, last) + spread
    low = min(first, last) - spread
    share = 1 + (bits >> 20) % 5_000_000
    return first, high, low, last, share * elapsed_s // length_s, (bits >> 44) % 4_000 * elapsed_s // length_s


def kline(symbol: str, open_time_ms: int, interval_ms: int, now_ms: int | None = None) -> list[Any]:
    """One row as Binance sends it; with `now_ms` inside the bar, the unfinished row, whose figures will change."""
    elapsed_ms = interval_ms if now_ms is None else min(interval_ms, max(0, now_ms - open_time_ms))
    o, h, l, c, v, trades = _bar(symbol, open_time_ms // 1000, interval_ms // 1000, elapsed_ms // 1000)  # noqa: E741
    quote, taker = v * c, v // 2
    return [
        open_time_ms,
        f"{o // 100}.{o % 100:02d}000000",
        f"{h // 100}.{h % 100:02d}000000",
        f"{l // 100}.{l % 100:02d}000000",
        f"{c // 100}.{c % 100:02d}000000",
        f"{v // 1000}.{v % 1000:03d}00000",
        open_time_ms + interval_ms - 1,
        f"{quote // 100_000}.{quote % 100_000:05d}000",
        trades,
        f"{taker // 1000}.{taker % 1000:03d}00000",
        f"{taker * c // 100_000}.{taker * c % 100_000:05d}000",
        "0",
    ]


def klines(symbol: str, start_ms: int, end_ms: int, interval_ms: int) -> list[list[Any]]:
    """Every finished row with start ≤ open time < end, oldest first; there are no gaps after the listing."""
    first = -(-max(start_ms, LISTED_AT_S * 1000) // interval_ms) * interval_ms
    return [kline(symbol, at, interval_ms) for at in range(first, end_ms, interval_ms)]


def candle(product: str, time_s: int, granularity: int, now_s: float | None = None) -> list[Any] | None:
    """
    One row as Coinbase sends it (time, low, high, open, close, volume), or None where nothing was traded.

    One bucket in seventeen has no trades. In products whose name begins with QUIET only one in two hundred
    has any, so that whole windows are empty.
    """
    if time_s < LISTED_AT_S:
        return None
    bits = mix(seed(product) ^ granularity, ~time_s)
    if bits % 200 if product.startswith("QUIET") else not bits % 17:
        return None
    elapsed_s = granularity if now_s is None else min(granularity, max(0, int(now_s) - time_s))
    o, h, l, c, v, _ = _bar(product, time_s, granularity, elapsed_s)  # noqa: E741
    return [time_s, l / 100, h / 100, o / 100, c / 100, (v + 1) / 1000]


def candles(product: str, start_s: int, end_s: int, granularity: int) -> list[list[Any]]:
    """Every finished row with start ≤ time < end, newest first, gaps left out."""
    times = range(-(-start_s // granularity) * granularity, end_s, granularity)
    return [row for at in reversed(times) if (row := candle(product, at, granularity)) is not None]


def task_count(project: str) -> int:
    """How many tasks a project has in the end: 0 to 250."""
    return seed(project) % 251


def _iso(time_ms: int) -> str:
    at = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"


def _user(number: int) -> dict[str, Any]:
    return {
        "gid": str(1_300_000_000_000_000 + number),
        "name": f"Keeper {number}",
        "resource_type": "user",
    }


def project(gid: str, workspace: str) -> dict[str, Any]:
    """Every field of a project that matters; it was made when it says, and is never edited."""
    bits = mix(seed(gid), 1)
    created_ms = LISTED_AT_S * 1000 + bits % (5 * 365 * _DAY_S * 1000)
    return {
        "gid": gid,
        "resource_type": "project",
        "name": f"Project {gid[-4:]}",
        "archived": bits % 5 == 0,
        "owner": _user(bits % 9) if bits % 4 else None,
        "created_at": _iso(created_ms),
        "modified_at": _iso(created_ms),
        "due_on": _iso(created_ms)[:10] if bits % 2 else None,
        "notes": "",
        "permalink_url": f"https://app.asana.com/0/{gid}",
        "workspace": {"gid": workspace, "name": "Waterworks", "resource_type": "workspace"},
    }


def task(project: str, number: int, as_of: float) -> dict[str, Any] | None:
    """One task as it stood at `as_of` (epoch seconds), or None before it was made; each is edited at its own pace."""
    bits = mix(seed(project), number)
    now_ms = int(as_of * 1000)
    created_ms = LISTED_AT_S * 1000 + bits % (5 * 365 * _DAY_S * 1000)
    if created_ms > now_ms:
        return None
    period_ms = (_PERIODS_S[bits % 6] + (bits >> 16) % 600) * 1000
    edits = (now_ms - created_ms) // period_ms
    modified_ms = created_ms + edits * period_ms
    state = mix(bits, edits)
    done = state % 5 == 4
    gid = str(1_000_000_000_000_000 + bits % 9_000_000_000_000_000)
    return {
        "gid": gid,
        "resource_type": "task",
        "resource_subtype": "default_task",
        "name": f"Check the {_WORDS[bits % 8]} {number} ({edits})",
        "notes": f'Edit {edits}: “ünïcode”, "quotes" and\nlines' if state % 3 else "",
        "assignee": _user(state % 9) if state % 4 else None,
        "completed": done,
        "completed_at": _iso(modified_ms) if done else None,
        "created_at": _iso(created_ms),
        "modified_at": _iso(modified_ms),
        "due_on": _iso(created_ms + 90 * _DAY_S * 1000)[:10] if state % 2 else None,
        "num_likes": state % 12,
        "parent": None,
        "permalink_url": f"https://app.asana.com/0/{project}/{gid}",
        "projects": [{"gid": project, "name": f"Project {project[-4:]}", "resource_type": "project"}],
        "workspace": {"gid": WORKSPACE, "name": "Waterworks", "resource_type": "workspace"},
    }


def tasks(project: str, as_of: float) -> list[dict[str, Any]]:
    """Every field of every task of a project as it stood at `as_of` (epoch seconds), in the order of the API."""
    found = (task(project, number, as_of) for number in range(task_count(project)))
    return [row for row in found if row is not None]
