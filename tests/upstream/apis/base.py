"""What the fake APIs share: requests, answers, limits, and what can be told to each."""

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from tests.upstream.meter import Meter


@dataclass(frozen=True)
class Request:
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    address: str
    method: str = "GET"
    body: bytes = b""

    @property
    def form(self) -> dict[str, str]:
        """The fields of a form in the body."""
        return dict(parse_qsl(self.body.decode("latin-1")))

    @property
    def json(self) -> Any:
        """The JSON in the body, None where there is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class RejectedError(Exception):
    """The request is answered with a client error: status and JSON body."""

    def __init__(self, status: int, body: Any):
        super().__init__(status)
        self.status, self.body = status, body


def encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def seal(value: Any) -> str:
    """A token for a page, which says nothing to who does not know how it was made."""
    return base64.urlsafe_b64encode(encode(value)).decode()


def unseal(token: str) -> list[Any]:
    """What was sealed. Raises ValueError for what was not."""
    value = json.loads(base64.urlsafe_b64decode(token))
    if not isinstance(value, list):
        raise ValueError("not a token of ours")
    return value


def retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


Charge = tuple[Meter, str, int]
"""A limit, who is counted in it, and how much a request weighs there."""


class Api:
    """What the APIs share; limits may be rescaled, everything else is as documented.

    `documented` is the first limit: amount, window_s and, where there are such, burst and at_once. `further`
    are others: name → (amount, window in seconds).
    """

    name: str
    prefix = ""
    unit = "requests"
    documented: Mapping[str, float]
    further: Mapping[str, tuple[int, float]] = {}
    generation = 0  # what pages were promised in an earlier generation has expired

    def __init__(self) -> None:
        self.rescale({})

    def rescale(self, limits: Mapping[str, float]) -> None:
        """Put limits in force and forget what was counted. Raises ValueError for a name the API does not have."""
        if unknown := limits.keys() - self.documented.keys() - self.further.keys():
            raise ValueError(f"unknown limits: {', '.join(sorted(unknown))}")
        rules = {**self.documented, **limits}
        burst = int(rules["burst"]) if "burst" in rules else None
        self.meter = Meter(self.unit, int(rules["amount"]), rules["window_s"], burst)
        self.meters = {self.unit: self.meter} | {
            name: Meter(name, int(limits.get(name, amount)), window_s)
            for name, (amount, window_s) in self.further.items()
        }
        self.at_once = int(rules["at_once"]) if "at_once" in rules else None

    def reset(self) -> None:
        """Everything as at the start."""
        self.rescale({})

    def report(self) -> dict[str, Any]:
        """What the stats say of this API alone."""
        return {}

    def control(self, name: str, value: Any) -> None:
        """Do what the control endpoint asks of this API alone. Raises ValueError for what it does not know."""
        if name != "expire_offsets":
            raise ValueError(f"unknown: {name}")
        self.generation += bool(value)

    def key(self, request: Request) -> str:
        """Who is counted. Raises RejectedError where the caller has to say who it is and does not."""
        return request.address

    def weight(self, path: str) -> int:
        return 1

    def charges(self, request: Request, key: str) -> list[Charge]:
        """The limits that a request counts in."""
        return [(meter, key, self.weight(request.path)) for meter in self.meters.values()]

    def refuse(self, charges: list[Charge], now: float) -> Answer | None:
        """Spend the weight, or say how the API answers one that is over a limit."""
        waits = {
            meter.name: wait_s for meter, key, weight in charges if (wait_s := meter.take(key, weight, now))
        }
        if not waits:
            return None
        longest = max(waits, key=waits.__getitem__)
        return self.too_many(waits[longest], longest)

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(429, self.trouble(429), retry_after(wait_s))

    def wrong(self, name: str) -> RejectedError:
        """How the API answers a parameter that it does not understand."""
        return RejectedError(400, json.loads(self.trouble(400)))

    def whole(self, query: Mapping[str, str], name: str, default: int, *, low: int = 1) -> int:
        """A whole number among the parameters."""
        text = query.get(name, str(default))
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) < low:
            raise self.wrong(name)
        return int(text)

    def unsealed(self, query: Mapping[str, str], name: str, size: int) -> list[Any]:
        """What stands in a token among the parameters: so many values."""
        try:
            found = unseal(query[name])
        except ValueError:
            raise self.wrong(name) from None
        if len(found) != size:
            raise self.wrong(name)
        return found

    def headers(self, key: str, now: float) -> dict[str, str]:
        """What every answer of the API carries."""
        return {}

    def trouble(self, status: int) -> bytes:
        raise NotImplementedError

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        """The JSON body of a success, or a whole answer. Raises RejectedError for everything the API rejects."""
        raise NotImplementedError
