"""The scripts that decide, composed of the parts in `lua`, and what goes to Redis to run one."""

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple, Self

from resilience import store
from resilience.store import DAY_US, FORCED_US, RENEW_US, CircuitState, Kind
from resilience.store.layout import BUCKET, CIRCUIT, GATE, LAYOUT, WINDOW, Layout

STATES = tuple(CircuitState)  # scripts number them
KINDS = {kind: number for number, kind in enumerate(Kind)}
_VERDICTS = range(6)  # what `admit` says
GO, WAIT, LOST, REFUSE, RESTORE, WRITE = _VERDICTS

_CONSTANTS: dict[str, object] = {
    name: getattr(store, name)
    for name in (
        *("LATE_US", "TICKET_KEPT_US", "LIVE_SEEN_US", "PERMIT_WAIT_US", "SEAT_WAIT_US", "GATE_LEAST_US"),
        *("DAY_US", "BAN_FIRST_US", "BAN_MOST_US", "QUIET_US", "RECOVERY_US", "LATENCY_US", "SLOW_US"),
        *("FAST_US", "KEPT_FACTOR_US", "BUDGET_KEPT_US", "RENEW_US", "EVENTS_KEPT", "SLICES"),
    )
}
_CONSTANTS |= {state.name: number for number, state in enumerate(STATES)}
_CONSTANTS |= {kind.name: number for kind, number in KINDS.items()}
_CONSTANTS |= zip(("GO", "WAIT", "LOST", "REFUSE", "RESTORE", "WRITE"), _VERDICTS, strict=True)
_CONSTANTS |= {
    "DAY_MS": DAY_US // 1000,
    "FORCED_MS": FORCED_US // 1000,
    "STATE_NAMES": "{" + ", ".join(f'"{state.value}"' for state in STATES) + "}",
    "LAYOUT": LAYOUT,
    "RENEW_MS": RENEW_US // 1000,
    # Where the plain_… find what they need of a circuit, of what is told of it, and of a bucket.
    "RING_AT": CIRCUIT.end,
    "CIRCUIT_TERMS": 8 * 15,
    "STEP": 8 * 10,
    "BOOKED_AT": BUCKET.at("booked"),
}
_CONSTANT = re.compile(rf"\b({'|'.join(_CONSTANTS)})\b")


def bulk(*words: bytes) -> bytes:
    """Words as they stand in a command to Redis."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def numbers(values: Iterable[float]) -> bytes:
    """Numbers as scripts read them (wire.lua)."""
    listed = list(values)
    return struct.pack(f"<{len(listed)}d", *listed)


class Names(NamedTuple):
    """The names of so many keys, as they stand in a command."""

    number: int
    packed: bytes

    @classmethod
    def of(cls, listed: Iterable[str]) -> Self:
        """In their order."""
        words = [name.encode() for name in listed]
        return cls(len(words), bulk(*words))


@dataclass(frozen=True, slots=True)
class Script:
    """A script: how a command names it, and how it brings it where Redis does not know it."""

    by_sha: bytes
    by_source: bytes

    @classmethod
    def of(cls, *parts: str | Layout) -> Self:
        """Parts one after the other: layouts, files of `lua`, and calls; constants become their values."""
        folder = files("resilience.store") / "lua"
        bodies = [
            part.lua
            if isinstance(part, Layout)
            else (folder / f"{part}.lua").read_text(encoding="utf-8")
            if part.isidentifier()
            else part
            for part in ("start", *parts)
        ]
        source = _CONSTANT.sub(lambda found: str(_CONSTANTS[found[0]]), "\n".join(bodies)).encode()
        sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
        return cls(bulk(b"EVALSHA", sha), bulk(b"EVAL", source))

    def head(self, *several: Names, texts: int) -> bytes:
        """How a command begins: all names; after them come who asks, the numbers and so many texts."""
        count = sum([names.number for names in several])
        words = b"*%d\r\n%b%b" % (count + texts + 5, self.by_sha, bulk(b"%d" % count))
        return words + b"".join([names.packed for names in several])

    def command(self, listed: Iterable[str], actor: bytes, figures: bytes, *texts: bytes) -> bytes:
        """All of a command."""
        return self.head(Names.of(listed), texts=len(texts)) + bulk(actor, figures, *texts)

    def whole(self, command: bytes) -> bytes:
        """The same command, for a Redis that has forgotten the script."""
        return command.replace(self.by_sha, self.by_source, 1)


_CIRCUITS = ("wire", CIRCUIT, "circuit")
_BUCKETS = (BUCKET, "pace")
_WINDOWS = (WINDOW, "window")
_DECIDING = (*_CIRCUITS, GATE, *_WINDOWS, *_BUCKETS)

ADMIT = Script.of(
    *("plain_admit", "local granted = plain_admit()\nif granted then return granted end"),
    *(*_DECIDING, "bucket", "admit", "return admit()"),
)
SETTLE = Script.of(
    *("plain_settle", "if plain_settle() then return 0 end"),
    *(*_DECIDING, "gate", "learn", "settle", "return settle()"),
)
SETTLE_AND_ADMIT = Script.of(
    *("plain_settle", "plain_admit", "local plain = plain_settle()"),
    "local granted = plain and plain_admit()\nif granted then return granted end",
    *(*_DECIDING, "gate", "learn", "settle", "bucket", "admit"),
    "local settled = plain and 0 or settle()\nreturn {settled, admit()}",
)
RELEASE = Script.of("wire", WINDOW, BUCKET, "release", "return release()")
MOVE = Script.of(*_CIRCUITS, "move", "return move()")
VIEW = Script.of(*_CIRCUITS, "view", "return view()")
RETRY = Script.of("wire", "retry", "return retry()")
LIMITS = Script.of("wire", "limits", "return limits()")
ADJUST = Script.of("wire", *_BUCKETS, "adjust", "return adjust()")
REMEMBER = Script.of("wire", GATE, "gate", WINDOW, "restore", "return restore()")
REPAY = Script.of("wire", GATE, "gate", *_WINDOWS, *_BUCKETS, "repay", "return repay()")
ALLOT = Script.of("wire", *_WINDOWS, "allot", "return allot()")
