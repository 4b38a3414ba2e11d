"""The store in Redis: every decision is one script, on the clock of Redis.

A command costs ten times more in a client than in Redis, so a connection is used directly (line.py): a write
and a read per decision. A lost connection is healed once; if Redis is away, `StoreUnavailableError` says so.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import hiredis
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from resilience.errors import StoreUnavailableError
from resilience.store import (
    Answer,
    Ban,
    Change,
    CircuitSpec,
    CircuitState,
    Closed,
    Event,
    Grant,
    LimitReading,
    LimitSpec,
    Move,
    RateSpec,
    Reading,
    Recall,
    Remembered,
    Report,
    Request,
    RetrySpec,
    SeatSpec,
    Settled,
    WindowSpec,
    keys,
    scripts,
    this_process,
    wire,
)
from resilience.store.line import Line
from resilience.store.scripts import Script, bulk, numbers
from resilience.store.wire import DAY_MS, Asker, flat, move_keys, policy, ttl_ms, window_terms

if TYPE_CHECKING:
    from resilience.store.redis_async import AsyncRedisStore

_NOTHING_SETTLED = Settled()
_stores: "WeakSet[RedisStore]" = WeakSet()


def _begin_in_child() -> None:
    for store in list(_stores):
        store._begin()  # noqa: SLF001


# To ask for the pid with every command would be one more call to the kernel.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


class RedisStore:
    """The state that a fleet shares.

    `url` as redis-py takes it (redis, rediss, unix). A reply later than `timeout_s` counts as none.
    `recall` is asked about a circuit of which Redis knows nothing, before anything is admitted; what it
    raises reaches whoever asked. `actor` is who transitions are put down to, by default host and pid.
    `now_us` replaces the clock of Redis, for tests. Thread-safe, and safe to use after a fork.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 5.0,
        recall: Recall | None = None,
        actor: str | None = None,
        now_us: Callable[[], int] | None = None,
    ) -> None:
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=2**31,
        )
        self._url, self._timeout_s = url, timeout_s
        self._now_us = now_us
        self._recall = recall
        self._named = actor
        self._idle: deque[Line] = deque()
        self._begin()
        _stores.add(self)

    def _begin(self) -> None:
        """In this process: connections and name are its own."""
        self._idle = deque()
        self._actor = self._named or this_process()
        self._asker = Asker(bulk(self._actor.encode()), self._recall is not None, self._now_us)

    def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""
        found = request.route.wire
        reply = self._run(scripts.ADMIT, found.admit(request, self._asker))
        return found.granted(request, reply) if isinstance(reply, bytes) else self._answer(request, reply)

    def settle(self, report: Report) -> Settled:
        """See `Store.settle`."""
        command = report.grant.request.route.wire.settle(report, self._asker)
        reply = self._run(scripts.SETTLE, command)
        return _NOTHING_SETTLED if reply == 0 else self._settled(report, reply)

    def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""
        command = report.grant.request.route.wire.settle_and_admit(report, request, self._asker)
        reply = self._run(scripts.SETTLE_AND_ADMIT, command)
        if isinstance(reply, bytes):
            return _NOTHING_SETTLED, request.route.wire.granted(request, reply)
        settled, admitted = reply
        return self._settled(report, settled), self._answer(request, admitted)

    def release(self, grant: Grant) -> None:
        """See `Store.release`."""
        self._run(scripts.RELEASE, self._release_command(grant))

    def circuits(self, specs: Sequence[CircuitSpec]) -> list[Reading]:
        """See `Store.circuits`. One message to Redis, whatever number of APIs they belong to."""
        seen = self._view(specs)
        lost = [spec for spec in specs if seen[spec.key][0] < 0]
        if self._recall and lost:
            self._restore(lost)
            seen = self._view(specs)
        return [wire.circuit_reading(*seen[spec.key]) for spec in specs]

    def _view(self, specs: Sequence[CircuitSpec]) -> dict[str, list[Any]]:
        by_api: dict[str, list[CircuitSpec]] = {}
        for spec in specs:
            by_api.setdefault(spec.api, []).append(spec)
        replies = self._run_all(
            scripts.VIEW,
            [
                self._call(
                    scripts.VIEW,
                    [key for spec in asked for key in move_keys(spec)],
                    (len(asked), *flat(*map(policy, asked))),
                )
                for asked in by_api.values()
            ],
        )
        asked = [spec.key for several in by_api.values() for spec in several]
        return dict(zip(asked, [seen for reply in replies for seen in reply], strict=True))

    def move(self, moves: Sequence[Move]) -> list[Change | None]:
        """See `Store.move`. One message to Redis, whatever their number."""
        replies = self._run_all(scripts.MOVE, [self._move_command(move) for move in moves])
        changes = [wire.changes_of(move.by, *reply)[0] for move, reply in zip(moves, replies, strict=True)]
        return [change if change.old is not change.new else None for change in changes]

    def events(self, api: str, after: str = "0-0") -> list[Event]:
        """See `Store.events`."""
        entries = self._command(("XRANGE", keys.events(api), f"({after}", "+"))
        return [wire.event_of(*entry) for entry in entries]

    def _move_command(self, move: Move, *, only_if_missing: bool = False) -> bytes:
        names = (keys.events(move.spec.api), *move_keys(move.spec))
        state = scripts.STATES.index(move.state)
        terms = (*policy(move.spec), state, move.until_us, only_if_missing)
        return self._call(scripts.MOVE, names, terms, move.why, actor=move.by)

    def _restore(self, specs: Iterable[CircuitSpec]) -> None:
        """Bring back what was decided about circuits of which Redis knows nothing."""
        assert self._recall
        moves = []
        for spec in specs:
            decided = self._recall(spec.api, spec.name)
            if decided:
                moves.append(Move(spec, decided.state, decided.by, decided.why, decided.until_us))
            else:
                moves.append(Move(spec, CircuitState.CLOSED, self._actor, "nothing was decided"))
        self._run_all(scripts.MOVE, [self._move_command(move, only_if_missing=True) for move in moves])

    def retry(self, spec: RetrySpec, earned_us: int) -> bool:
        """See `Store.retry`."""
        return bool(self._run(scripts.RETRY, self._retry_command(spec, earned_us)))

    def limits(self, specs: Sequence[LimitSpec]) -> list[LimitReading]:
        """See `Store.limits`. Nothing to be read is a question whether Redis is there."""
        if not specs:
            self._command(("PING",))
        readings: dict[LimitSpec, LimitReading] = {}
        for api in dict.fromkeys(spec.api for spec in specs):
            asked = [spec for spec in specs if spec.api == api]
            names = [name for spec in asked for name in (spec.gate, spec.key)]
            kinds = (len(asked), *[isinstance(spec, SeatSpec) for spec in asked])
            now, *seen = self._run(scripts.LIMITS, self._call(scripts.LIMITS, names, kinds))
            for spec, gate, kept in zip(asked, seen[::2], seen[1::2], strict=True):
                readings[spec] = wire.limit_reading(spec, gate, kept, now)
        return [readings[spec] for spec in specs]

    def adjust(self, spec: RateSpec, factor: float) -> None:
        """See `Store.adjust`."""
        self._run(scripts.ADJUST, self._call(scripts.ADJUST, (spec.key,), (spec.start, factor)))

    def restore(self, api: str, remembered: Remembered) -> None:
        """See `Store.restore`."""
        gates = [keys.gate(api, ban.sharer) for ban in remembered.bans]
        names = (keys.restored(api), *gates, *[spent.key for spent in remembered.budgets])
        bans = flat((len(gates),), *((ban.until_us, ban.count) for ban in remembered.bans))
        budgets = ((spent.begin_us, spent.amount) for spent in remembered.budgets)
        terms = (*bans, *flat((len(remembered.budgets),), *budgets))
        self._run(scripts.REMEMBER, self._call(scripts.REMEMBER, names, terms))

    def allot(self, budget: WindowSpec, begin_us: int, amount: int) -> None:
        """See `Store.allot`."""
        terms = (*window_terms(budget, 0, self._asker.about_us()), begin_us, amount)
        self._run(scripts.ALLOT, self._call(scripts.ALLOT, (budget.key,), terms))

    def repay(
        self, debts: Sequence[tuple[LimitSpec, int]], hold_us: int, gates: Sequence[Closed] = ()
    ) -> None:
        """See `Store.repay`."""
        for api in dict.fromkeys((*(spec.api for spec, _ in debts), *(closed.api for closed in gates))):
            owed = [(spec, debt) for spec, debt in debts if spec.api == api]
            shut = [closed for closed in gates if closed.api == api]
            rates = [(spec, debt) for spec, debt in owed if isinstance(spec, RateSpec)]
            windows = [spec for spec, _ in owed if isinstance(spec, WindowSpec)]
            in_flight = any(isinstance(spec, SeatSpec) for spec, _ in owed)
            names = (
                *(keys.since(api), *[spec.key for spec, _ in rates], *[spec.key for spec in windows]),
                *[keys.gate(api, closed.sharer) for closed in shut],
            )
            spent = ((spec.burst_us, spec.slack_us, ttl_ms(spec.window_us), debt) for spec, debt in rates)
            terms = flat(
                (hold_us, 8 * DAY_MS, in_flight),
                flat((len(rates),), *spent),
                flat((len(windows),), *(window_terms(spec, 0, self._asker.about_us()) for spec in windows)),
                flat((len(shut),), *((each.for_us, each.banned_for_us, each.bans) for each in shut)),
            )
            self._run(scripts.REPAY, self._call(scripts.REPAY, names, terms))

    def mark_fresh(self, apis: Iterable[str]) -> None:
        """See `Store.mark_fresh`."""
        for api in apis:
            self._command(("SET", keys.since(api), 1, "NX", "PX", 8 * DAY_MS))

    @cached_property
    def asynchronous(self) -> "AsyncRedisStore":
        """The same store for asyncio programs."""
        from resilience.store.redis_async import AsyncRedisStore  # noqa: PLC0415 - others need no asyncio

        return AsyncRedisStore(self, self._url, self._timeout_s)

    def close(self) -> None:
        """Drop the connections; the next question opens one again."""
        while self._idle:
            self._idle.pop().close()

    def _release_command(self, grant: Grant) -> bytes:
        return self._call(scripts.RELEASE, *wire.released(grant), grant.request.id)

    def _retry_command(self, spec: RetrySpec, earned_us: int) -> bytes:
        return self._call(scripts.RETRY, (spec.key,), (spec.unit_us, spec.room_us, earned_us))

    def _call(
        self,
        script: Script,
        names: Iterable[str],
        terms: Iterable[float],
        *texts: str,
        actor: str | None = None,
    ) -> bytes:
        """A command that is not asked for with every call."""
        who, figures = (actor or self._actor).encode(), self._asker.when() + numbers(terms)
        return script.command(names, who, figures, *[text.encode() for text in texts])

    def _run(self, script: Script, command: bytes) -> Any:
        """The reply to a script; without `_heal` and `_ask` as long as nothing is wrong."""
        try:
            line = self._idle.pop()
        except IndexError:
            reply = self._heal(self._ask, command)
        else:
            try:
                reply = line.ask(command)
            except RedisError as error:
                reply = self._ask_again(self._ask, command, error)
            else:
                self._idle.append(line)
        if not isinstance(reply, RedisError):
            return reply
        if isinstance(reply, NoScriptError):
            reply = self._heal(self._ask, script.whole(command))
        return _said(reply)

    def _run_all(self, script: Script, commands: Sequence[bytes]) -> list[Any]:
        """Run a script several times in one message."""
        if not commands:
            return []
        replies: list[Any] = self._heal(self._ask_all, commands)
        for index, (command, reply) in enumerate(zip(commands, replies, strict=True)):
            if isinstance(reply, NoScriptError):
                replies[index] = self._heal(self._ask, script.whole(command))
        return [_said(reply) for reply in replies]

    def _command(self, words: tuple[str | float, ...]) -> Any:
        # hiredis' stub speaks of tuples of one.
        return _said(self._heal(self._ask, hiredis.pack_command(words)))  # type: ignore[arg-type]

    def _heal(self, ask: Callable[[Line, Any], Any], command: Any) -> Any:
        try:
            return ask(self._line(), command)
        except RedisError as error:
            return self._ask_again(ask, command, error)

    def _ask_again(self, ask: Callable[[Line, Any], Any], command: Any, error: RedisError) -> Any:
        """The reply over a new connection, if it was the old one that failed."""
        if not isinstance(error, RedisConnectionError):
            raise _away(error) from error
        # Idle connections die with the server that held them; a new one tells whether it is back.
        self.close()
        try:
            return ask(self._open(), command)
        except RedisError as still:
            raise _away(still) from still

    def _line(self) -> Line:
        try:
            return self._idle.pop()
        except IndexError:
            return self._open()

    def _open(self) -> Line:
        return Line.open(self._pool, self._timeout_s)

    def _ask(self, line: Line, command: bytes) -> Any:
        reply = line.ask(command)
        self._idle.append(line)
        return reply

    def _ask_all(self, line: Line, commands: Sequence[bytes]) -> list[Any]:
        replies = line.ask_all(commands)
        self._idle.append(line)
        return replies

    def _settled(self, report: Report, reply: Any) -> Settled:
        if reply == 0:
            return _NOTHING_SETTLED
        now, listed, bans = reply
        gates = report.grant.request.route.gates
        each = zip(bans[::3], bans[1::3], bans[2::3], strict=True)
        made = tuple(Ban(gates[index], until, count) for index, until, count in each)
        return Settled(wire.changes_of(self._actor, now, listed), made)

    def _answer(self, request: Request, reply: Any) -> Answer:
        found = request.route.wire
        if isinstance(reply, bytes):
            return found.granted(request, reply)
        if reply[0] != scripts.LOST:
            return wire.answer_of(found, request, reply, self._actor)
        self._restore(request.route.circuits)
        return self._after(reply, self.admit(request))

    def _after(self, lost: list[Any], answer: Answer) -> Answer:
        """The answer, with the changes that were told before it."""
        return replace(answer, changes=wire.changes_of(self._actor, *lost[1:]) + answer.changes)


def _said(reply: Any) -> Any:
    if isinstance(reply, RedisError):
        raise _away(reply) from reply
    return reply


def _away(error: RedisError) -> StoreUnavailableError:
    return StoreUnavailableError(f"Redis did not answer: {error}", cause=error)
