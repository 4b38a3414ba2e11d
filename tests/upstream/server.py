"""The ASGI program: count, limit, misbehave, answer; and the control endpoint."""

import asyncio
import json
import random
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from tests.upstream.apis import ALL
from tests.upstream.apis.base import Answer, Api, RejectedError, Request, encode, retry_after
from tests.upstream.faults import Faults

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PAGE = b"<html><head><title>%s</title></head><body><center><h1>%s</h1></center></body></html>\n"
UNAVAILABLE = Answer(
    503, PAGE.replace(b"%s", b"503 Service Temporarily Unavailable"), content_type="text/html"
)
WELCOME = Answer(200, PAGE.replace(b"%s", b"Please sign in"), content_type="text/html")
RESET = Answer(0, b"")  # no answer: the connection is reset
LONGEST_BODY = 1 << 20  # bytes of a request


class Stats:
    """What came in since the last reset."""

    def __init__(self) -> None:
        self.requests = self.throttled = self.max_in_flight = self.over_at_once = 0
        self.by_status: Counter[str] = Counter()
        self.arrivals: deque[float] = deque(maxlen=200_000)
        self.first_at: float | None = None
        self.last_at: float | None = None

    def arrive(self, now: float) -> None:
        self.requests += 1
        self.arrivals.append(now)
        self.last_at = time.time()
        self.first_at = self.first_at or self.last_at

    def last_minute(self, now: float) -> list[int]:
        """Arrivals in each of the last 60 seconds, oldest first."""
        counts = [0] * 60
        for at in reversed(self.arrivals):
            if now - at >= 60:
                break
            counts[59 - int(now - at)] += 1
        return counts


class Site:
    """One API with its faults and its counts."""

    def __init__(self, api: Api, seed: int):
        self.api, self.seed = api, seed
        self.in_flight = 0
        self.in_flight_by_key: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        """Everything as at the start: no faults, documented limits, nothing counted."""
        self.faults, self.stats = Faults(), Stats()
        self.rng = random.Random(f"{self.seed}:{self.api.name}")
        self.api.reset()

    def change(self, wanted: dict[str, Any]) -> None:
        """Raises ValueError or TypeError for what is not understood."""
        own = wanted.keys() - Faults.CHANGEABLE.keys() - {"limits"}
        self.faults.change({name: value for name, value in wanted.items() if name in Faults.CHANGEABLE})
        if "limits" in wanted:
            self.api.rescale(wanted["limits"])
        for name in sorted(own):
            self.api.control(name, wanted[name])

    async def serve(self, request: Request, send: Send, receive: Receive) -> None:
        now = time.monotonic()
        self.stats.arrive(now)
        try:
            key, stranger = self.api.key(request), None
        except RejectedError as error:
            key, stranger = "", Answer(error.status, encode(error.body))
        self.in_flight += 1
        self.in_flight_by_key[key] += 1
        self.stats.max_in_flight = max(self.stats.max_in_flight, self.in_flight)
        try:
            answer = self.decide(request, key, stranger, now)
            low, high = self.faults.latency_ms
            if high:
                await asyncio.sleep(self.rng.uniform(low, high) / 1000)
            self.stats.by_status[str(answer.status or "reset")] += 1
            if answer is RESET:
                await reset_connection(send, receive)
            else:
                await reply(send, answer, self.faults.drip)
        finally:
            self.in_flight -= 1
            self.in_flight_by_key[key] -= 1

    def decide(self, request: Request, key: str, stranger: Answer | None, now: float) -> Answer:
        faults = self.faults
        if left_s := faults.left_s("throttle_s", now):
            self.stats.throttled += 1
            return Answer(429, self.api.trouble(429), self.api.headers(key, now) | retry_after(left_s))
        if faults.left_s("throttle_bare_s", now):
            self.stats.throttled += 1
            return Answer(429, self.api.trouble(429))
        refusal = None
        if stranger is None:
            charges = self.api.charges(request, key)
            for meter, who, weight in charges:
                meter.arrive(who, weight, now)
            refusal = self.crowded(key) or self.api.refuse(charges, now)
        if faults.left_s("outage_s", now):
            return UNAVAILABLE
        answer = stranger or refusal or self.broken() or self.answer(request)
        if answer is RESET or answer is WELCOME:
            return answer
        return Answer(
            answer.status, answer.body, {**self.api.headers(key, now), **answer.headers}, answer.content_type
        )

    def crowded(self, key: str) -> Answer | None:
        if self.api.at_once is None or self.in_flight_by_key[key] <= self.api.at_once:
            return None
        self.stats.over_at_once += 1
        return self.api.too_many(1, "at_once")

    def broken(self) -> Answer | None:
        faults = self.faults
        if faults.fail_next > 0:
            faults.fail_next -= 1
            return Answer(faults.error_status, self.api.trouble(faults.error_status))
        if self.strikes(faults.reset_rate):
            return RESET
        if self.strikes(faults.error_rate):
            return Answer(faults.error_status, self.api.trouble(faults.error_status))
        if faults.html_200:
            return WELCOME
        return Answer(200, b"null") if faults.null_200 else None

    def strikes(self, rate: float) -> bool:
        return rate > 0 and self.rng.random() < rate

    def answer(self, request: Request) -> Answer:
        try:
            found = self.api.answer(request, self.faults.bad_symbols, self.faults.clock())
        except RejectedError as error:
            return Answer(error.status, encode(error.body))
        answer = Answer(200, found) if isinstance(found, bytes) else found
        half = answer.body[: len(answer.body) // 2]
        return replace(answer, body=half) if self.strikes(self.faults.truncate_rate) else answer

    def report(self) -> dict[str, Any]:
        stats, limits = self.stats, [meter.report() for meter in self.api.meters.values()]
        at_once = {"name": "at_once", "amount": self.api.at_once, "refused": stats.over_at_once}
        return {
            "requests": stats.requests,
            "by_status": dict(stats.by_status),
            "throttled": stats.throttled,
            "violations": sum(limit["refused"] for limit in limits) + stats.over_at_once,
            "max_in_window": self.api.meter.max_in_window,
            "limits": limits if self.api.at_once is None else [*limits, at_once],
            **self.api.report(),
            "in_flight": self.in_flight,
            "max_in_flight": stats.max_in_flight,
            "first_at": stats.first_at,
            "last_at": stats.last_at,
            "last_minute": stats.last_minute(time.monotonic()),
            "faults": self.faults.report(),
        }


class Program:
    """The ASGI application."""

    def __init__(self, seed: int = 0):
        self.sites = {api.name: Site(api(), seed) for api in ALL}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head, _, rest = scope["path"][1:].partition("/")
        if head == "control":
            await reply(send, await self.control(scope["method"], rest, receive))
        elif (site := self.sites.get(head)) and rest.startswith(site.api.prefix):
            path = rest.removeprefix(site.api.prefix)
            query = dict(parse_qsl(scope["query_string"].decode()))
            headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
            body = await self.body(receive) if scope["method"] == "POST" else b""
            if len(body) > LONGEST_BODY:
                await reply(send, Answer(413, b'{"message":"too long"}'))
                return
            request = Request(path, query, headers, scope["client"][0], scope["method"], body)
            await site.serve(request, send, receive)
        else:
            await reply(send, Answer(404, b'{"message":"no such API"}'))

    async def control(self, method: str, path: str, receive: Receive) -> Answer:
        name, _, action = path.partition("/")
        if (method, path) == ("POST", "reset"):
            for site in self.sites.values():
                site.reset()
            return Answer(200, b"{}")
        if method == "GET" and not name:
            return Answer(200, encode({name: site.report() for name, site in self.sites.items()}))
        if (site := self.sites.get(name)) is None:
            return Answer(404, b'{"message":"no such API"}')
        match method, action:
            case "GET", "":
                return Answer(200, encode(site.report()))
            case "GET", "arrivals":
                return Answer(200, encode(list(site.stats.arrivals)))
            case "POST", "reset":
                site.reset()
                return Answer(200, encode(site.report()))
            case "POST", "":
                return await self.change(site, receive)
        return Answer(404, b'{"message":"no such control"}')

    @staticmethod
    async def body(receive: Receive) -> bytes:
        body, more = b"", True
        while more and len(body) <= LONGEST_BODY:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    async def change(self, site: Site, receive: Receive) -> Answer:
        try:
            site.change(json.loads(await self.body(receive)))
        except (ValueError, TypeError, AttributeError) as error:
            return Answer(400, encode({"message": str(error)}))
        return Answer(200, encode(site.report()))


async def reply(send: Send, answer: Answer, drip_s: float = 0.0) -> None:
    sent = {**answer.headers, "Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
    headers = [(name.lower().encode(), value.encode()) for name, value in sent.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if drip_s:
        for at in range(len(answer.body)):
            await asyncio.sleep(drip_s)
            if connection(send).disconnected:
                return
            await send({"type": "http.response.body", "body": answer.body[at : at + 1], "more_body": True})
    await send({"type": "http.response.body", "body": b"" if drip_s else answer.body})


def connection(send: Send) -> Any:
    """ASGI has no way to reset a connection; uvicorn's `send` is a method of the object that can."""
    return send.__self__  # type: ignore[attr-defined]


async def reset_connection(send: Send, receive: Receive) -> None:
    transport = connection(send).transport
    # Closing with a linger of zero makes the kernel send RST instead of FIN.
    transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass
