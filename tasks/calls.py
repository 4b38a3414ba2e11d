"""The guarded calls of one delivery: admit → send → classify → settle, and nothing past it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from resilience.errors import APIError, PenstockError, RateLimitError, Refused
from resilience.guard import Ask, CallResult, Go, Kind, Lease, Refuse, Verdict, Wait
from tasks.collectors.spec import Answer, Api, Request
from tasks.http import client
from tasks.limits import guard
from tasks.settings import Settings
from tasks.tokens import Credential, TokenWait, keeper

logger = logging.getLogger(__name__)


class Snooze(Refused):
    """The unit has to wait longer than a worker may be held."""

    code = "snooze"

    def __init__(self, seconds: float, ticket: str | None, reason: str) -> None:
        super().__init__(f"waits {seconds:.1f} s for {reason}")
        self.seconds = seconds
        self.ticket = ticket
        self.reason = reason


class TimeLimit(PenstockError):  # noqa: N818
    """The delivery ran into its time limit."""

    code = "time_limit"
    recoverable = True


class Spending(Protocol):
    """What the calls are counted by."""

    def spend(self, **amounts: float) -> None:
        """Count calls, weight, waits."""


class Calls:
    """The calls of a delivery to one Api, one after the other.

    A call that was answered is settled when its rows are stored, or with the leave for the next one, in one
    round trip. So rows that are broken count as what they are: a failure of the server.
    """

    def __init__(
        self,
        api: Api,
        ask: Ask,
        claim: Spending,
        settings: Settings,
        *,
        ticket: str | None,
        stopping: Callable[[], bool],
        symbol: str = "",
        patient: bool = True,
    ) -> None:
        self.api = api
        self.ask = ask
        self.ticket = ticket
        self.probed = False  # whether the last call was let through to try a half-open circuit
        self.answer: Answer | None = None
        self.failure: PenstockError | None = None  # what the last call came to, if it failed
        self.refused: Refused | None = None  # why the last call was not made
        self._claim = claim
        self._symbol = symbol
        self._settings = settings
        self._stopping = stopping
        self._patient = patient  # whether it waits for the permit of a half-open circuit
        self._lease: Lease | None = None
        self._answered = False
        self._took_s = 0.0
        self._one = threading.RLock()
        self._started = time.monotonic()

    def weighing(self, weight: float) -> None:
        """Let the calls from now on cost so much."""
        if weight != self.ask.weight:
            self.ask = replace(self.ask, weight=weight)

    def admit(self) -> None:
        """Get leave for a call; waits two seconds at most, else raises Snooze or CircuitOpenError."""
        lease, self._lease = self._lease, None
        if lease is None:
            return self._enter(guard().admit(self.ask, ticket=self.ticket))
        if not self._answered:
            self._lease = lease
            return None
        if _told_alone(self.failure):
            self._tell(lease, self.failure)
            return self._enter(guard().admit(self.ask, ticket=self.ticket))
        _, verdict = guard().settle_and_admit(lease, self._result(self.failure), self.ask)
        return self._enter(verdict)

    def _enter(self, verdict: Verdict) -> None:
        inline_s = self._settings.inline_wait_s
        while not isinstance(verdict, Go):
            if isinstance(verdict, Refuse):
                raise verdict.error()
            assert isinstance(verdict, Wait)
            self.ticket = verdict.ticket
            if verdict.reason == "half_open" and not self._patient:
                raise Snooze(verdict.seconds, verdict.ticket, verdict.reason)
            self._claim.spend(waits=1, waited_s=verdict.seconds)
            if verdict.seconds > inline_s or self._stopping():
                raise Snooze(verdict.seconds, verdict.ticket, verdict.reason)
            time.sleep(verdict.seconds)
            inline_s -= verdict.seconds
            verdict = guard().admit(self.ask, ticket=self.ticket)
        self._lease, self.ticket = verdict.lease, None
        self.answer, self.failure, self.refused, self._answered = None, None, None, False
        self.probed = verdict.lease.probe

    def send(self, request: Request, *, timeout_s: float | None = None, raises: bool = True) -> Answer:
        """Make one call: wait for leave, send, and read the answer completely.

        Raises what the network or the server had against it. Without `raises` an answer that is an error
        comes back as it is; the guard hears of it all the same.
        """
        credential = self._credential()  # before the leave: who waits for a token holds no place
        answer = self._send(request, timeout_s, credential)
        if credential is not None and credential.access is not None and self.api.refuses(answer):
            self.settle()
            credential = self._credential(refused=credential)
            answer = self._send(request, timeout_s, credential)
        if credential is not None and self.api.refuses(answer):
            keeper().stop(self.api, self._symbol, credential, str(self.failure))
        if self.failure is not None and raises:
            raise self.failure
        return answer

    def _credential(self, refused: Credential | None = None) -> Credential | None:
        try:
            return keeper().credential(self.api, self._symbol, refused=refused, timeout_s=self._left_s())
        except TokenWait as wait:
            self._claim.spend(waits=1, waited_s=wait.seconds)
            raise Snooze(wait.seconds, self.ticket, wait.reason) from wait

    def _send(self, request: Request, timeout_s: float | None, credential: Credential | None) -> Answer:
        limits_s = (timeout_s, self.api.timeout_s, self._settings.call_timeout_s, self._left_s())
        limit_s = min(each for each in limits_s if each is not None)
        access = None if credential is None else credential.access
        with self.calling() as lease:
            self.answer = client().send(self.api, request, lease=lease, timeout_s=limit_s, access=access)
            self.failure = self.api.error_of(self.answer)
            return self.answer

    @contextmanager
    def calling(self) -> Iterator[Lease]:
        """One call that is made inside the block: admitted before it, and settled by what leaves it."""
        with self._one:
            try:
                self.admit()
            except Refused as refused:
                self.refused = self.failure = refused
                raise
            assert self._lease is not None
            self._claim.spend(calls=1, weight=self.ask.weight)
            begun = time.monotonic()
            try:
                yield self._lease
            except PenstockError as error:
                self.failure = error
                raise
            finally:
                self._answered = True
                self._took_s = time.monotonic() - begun

    def settle(self, error: BaseException | None = None) -> None:
        """Tell the guard how the last call went; a Redis that is away does not undo what is stored."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        if error is not None:
            wait_s = error.retry_after_s if isinstance(error, APIError) else None
            logger.debug("call failed: %s (retry after %s s)", error, wait_s)
        self._tell(lease, error or self.failure)

    def _tell(self, lease: Lease, error: BaseException | None) -> None:
        """Settle a call. A 429 or a ban that speaks of some only, by a rule's scope, holds back no others."""
        result = self._result(error)
        if isinstance(error, PenstockError) and _told_alone(error):
            for ask in _those(self.ask, error):
                guard().settle_quietly(guard().unasked(ask, after=lease), result)
            result = replace(result, kind=Kind.IGNORED, retry_after_s=None)
        guard().settle_quietly(lease, result)

    def _result(self, error: BaseException | None) -> CallResult:
        if self.answer is not None:
            return CallResult.of(error, latency_s=self.answer.elapsed_s, headers=self.answer.headers)
        return CallResult.of(error, latency_s=0.0 if error else self._took_s)

    def _left_s(self) -> float:
        """What is left of the delivery's time. Nothing else ends one in a pool of threads."""
        left_s = self._settings.soft_time_limit_s - (time.monotonic() - self._started)
        if left_s <= 0:
            raise TimeLimit(
                f"{self.api.name}: a page takes more calls than fit into its time; end it earlier"
            )
        return left_s


def _told_alone(error: BaseException | None) -> bool:
    return isinstance(error, RateLimitError) and error.whom is not None


def _those(ask: Ask, error: PenstockError) -> Iterator[Ask]:
    """What the error says something of: those who share a limit of that kind, or else the host or account."""
    per = "ip" if error.whom == "host" else error.whom
    limits = tuple(each for each in ask.limits if each.limit.per == per)
    banned = tuple(each for each in ask.banned if each.partition(":")[0] == per)
    if limits or banned:
        circuits = () if error.whom == "symbol" else ask.circuits
        gate = banned[0] if banned else None
        yield replace(ask, circuits=circuits, limits=limits, gate=gate, banned=banned)
