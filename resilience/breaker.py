"""The circuit that a fleet shares, as a `pybreaker.CircuitBreaker`."""

import contextlib
import functools
import inspect
import logging
import threading
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import pybreaker

from resilience.errors import CircuitOpenError, ConfigurationError, PenstockError, Scope
from resilience.guard import (
    Ask,
    CallResult,
    CircuitView,
    Go,
    Guard,
    Kind,
    Lease,
    Refuse,
    Transition,
    Verdict,
    Wait,
    kind_of,
    transition_of,
)
from resilience.guard_async import AsyncGuard
from resilience.policy import BreakerPolicy
from resilience.status import metrics, status
from resilience.store import CircuitSpec, CircuitState, Move, Store, this_process
from resilience.store.memory import MemoryStore

log = logging.getLogger(__name__)

T = TypeVar("T")
Exclusion = type[BaseException] | Callable[[Any], bool]
Callback = Callable[[Transition], object]

_US = timedelta(microseconds=1)
_WORDS_MOST = 200  # of who forced a circuit, and why


class _Held(NamedTuple):
    """What `can_attempt` got for a call, until it is recorded."""

    lease: Lease
    began: float


_held: ContextVar[Mapping["CircuitBreaker", _Held]] = ContextVar("held", default={})  # noqa: B039 - never changed


class StateName(str):
    """A state as pybreaker's users read it: compares as a string, and has a `.name`."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The state's name."""
        return str(self)


class CircuitBreaker(pybreaker.CircuitBreaker):  # type: ignore[misc]
    """A circuit whose state lives in a store: every decision is one atomic step there, for the whole fleet.

    Built with pybreaker's names or with `policy=`; `api` and `name` say which circuit it is, so that two
    objects with the same pair are one circuit. It works through a guard with limits, or alone by `call()`,
    `calling()` and as a decorator; no lock is held during a call. Making one asks the store nothing.

    What differs from pybreaker: a half-open circuit lets a fixed number of probes through, however many
    processes ask; a refusal is a `CircuitOpenError` with `retry_at`; the call that opens the circuit raises
    its own error; what an error says about the service is read from its class where it is ours. Listeners
    hear a transition once in the fleet, in the process that caused it. A call that takes longer than the
    policy's `permit_lease` no longer counts as a probe. A coroutine function is decorated as one, and the
    store is awaited before and after its call.

    `scope` is for circuits of one symbol or account: such a circuit counts the errors that speak of it, which
    say nothing to those of the service, and no others.

    Where the store is away, asking for a call raises `StoreUnavailableError`; after a call that is only
    logged, so that its result or its error is what the caller gets.
    """

    def __init__(  # noqa: PLR0917 - pybreaker takes these by position
        self,
        fail_max: int | None = None,
        reset_timeout: float | None = None,
        success_threshold: int | None = None,
        exclude: Iterable[Exclusion] | None = None,
        listeners: Sequence[pybreaker.CircuitBreakerListener] | None = None,
        name: str | None = None,
        *,
        throw_new_error_on_trip: bool = False,
        policy: BreakerPolicy | None = None,
        api: str = "local",
        store: Store | None = None,
        scope: Scope = Scope.SERVICE,
    ) -> None:
        # The parent's __init__ asks for the state: a round trip at import. Its fields are set here instead.
        self._lock = threading.RLock()
        self._excluded_exceptions = list(exclude or [])
        self._listeners = list(listeners or [])
        self._callbacks: list[Callback] = []
        self._name = name
        self._throw_new_error_on_trip = throw_new_error_on_trip
        named = {"fail_max": fail_max, "reset_timeout": reset_timeout, "success_threshold": success_threshold}
        if policy is not None and any(value is not None for value in named.values()):
            raise ConfigurationError("a CircuitBreaker takes either policy= or pybreaker's names, not both")
        self.api, self.scope = api, scope
        self.guard = Guard(store or MemoryStore())
        self._ask = Ask(api, (self,), (), gate=None)  # a 429 holds back who shares a limit; here is none
        self._policy = policy or _policy_from(fail_max, reset_timeout, success_threshold)
        self._respec()

    def __repr__(self) -> str:
        return f"CircuitBreaker(name={self.circuit!r}, api={self.api!r})"

    @functools.cached_property
    def guard_async(self) -> AsyncGuard:
        """The guard of what is awaited: the same store, asked without blocking the loop."""
        return AsyncGuard(self.guard.store)

    @property
    def circuit(self) -> str:
        """The circuit's name; two breakers without a name are two circuits."""
        return self._name or f"unnamed-{id(self)}"

    @property
    def name(self) -> str | None:
        """The name as given."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name
        self._respec()

    @property
    def policy(self) -> BreakerPolicy:
        """When this circuit opens, for how long, and what closes it."""
        return self._policy

    @property
    def view(self) -> CircuitView:
        """How the circuit stands in the store, in one round trip."""
        return self.guard.circuits([self])[self.circuit]

    @property
    def current_state(self) -> str:
        """The state's name: closed, open, half_open, forced_open or disabled."""
        return self.view.state.value

    @property
    def state(self) -> StateName:
        """The state as a string that has a `.name`."""
        return StateName(self.current_state)

    @property
    def fail_counter(self) -> int:
        """Consecutive failures."""
        return self.view.failure_count

    @property
    def success_counter(self) -> int:
        """Probes that succeeded since the circuit is half-open."""
        return self.view.success_count

    @property
    def fail_max(self) -> int:
        """Consecutive failures that open the circuit; 0 where only the rate of failures does."""
        return self._policy.failures or 0

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        self._change(failures=number)

    @property
    def reset_timeout(self) -> float:
        """Seconds for which the circuit stays open at first."""
        return self._policy.open_for.total_seconds()

    @reset_timeout.setter
    def reset_timeout(self, timeout: float) -> None:
        self._change(open_for=_span(timeout))

    @property
    def success_threshold(self) -> int:
        """Probes that have to succeed to close the circuit."""
        return self._policy.half_open_successes

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._change(half_open_successes=threshold)

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `func` if the circuit lets it, and learn from how it ends.

        Raises `CircuitOpenError` instead of calling while the circuit is open, or half-open without a permit.
        """
        lease = self._enter()
        self._notify("before_call", func, *args, **kwargs)
        with self._settling(lease) as outcome:
            result = func(*args, **kwargs)
            if inspect.isgenerator(result):
                outcome.handed_over = True
                return self._drain(lease, result)  # type: ignore[return-value]
        return result

    async def call_async(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Await `func` if the circuit lets it, as `call` does; a call that is cancelled says nothing."""
        async with self._calling_async(func, *args, **kwargs):
            return await func(*args, **kwargs)

    def __call__(self, *call_args: Any, **call_kwargs: Any) -> Any:
        """Decorate a function, with or without brackets; a coroutine function stays one."""
        call_kwargs.pop("__pybreaker_call_async", None)  # seen from the function itself

        def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(func)
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                return self.call(func, *args, **kwargs)

            @functools.wraps(func)
            async def wrapped_async(*args: Any, **kwargs: Any) -> Any:
                return await self.call_async(func, *args, **kwargs)

            return wrapped_async if inspect.iscoroutinefunction(func) else wrapped

        return decorate(*call_args) if call_args else decorate

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """The block of a `with` statement as a call."""
        lease = self._enter()
        self._notify("before_call", None)
        with self._settling(lease):
            yield

    @contextlib.asynccontextmanager
    async def calling_async(self) -> AsyncIterator[None]:
        """The block of an `async with` statement as a call."""
        async with self._calling_async(None):
            yield

    def can_attempt(self) -> bool:
        """Whether a call may start now; an open circuit whose time is over turns half-open.

        True takes what the call needs: of a half-open circuit a permit. `record_success` or `record_failure`
        of the same thread or asyncio task gives it back, and so does asking again; from a process that died
        it comes back after `permit_lease`. So ask when you are about to call; `current_state` only looks.
        """
        if held := self._take_held():
            self.guard.release(held.lease)
        return self._hold(self.guard.admit(self._ask))

    async def can_attempt_async(self) -> bool:
        """`can_attempt`, without blocking the loop; the same task records."""
        if held := self._take_held():
            await self.guard_async.release(held.lease)
        return self._hold(await self.guard_async.admit(self._ask))

    def record_success(self) -> None:
        """A call went well. Without `can_attempt` before it counts as a probe only where a permit is free."""
        self.guard.settle_quietly(*self._recorded(Kind.SUCCESS))

    async def record_success_async(self) -> None:
        """`record_success`, without blocking the loop."""
        await self.guard_async.settle_quietly(*self._recorded(Kind.SUCCESS))

    def record_failure(self, error: BaseException | None = None) -> None:
        """A call failed. An error that says nothing about the service, as a 404, only gives back a permit."""
        self.guard.settle_quietly(*self._failed(error))

    async def record_failure_async(self, error: BaseException | None = None) -> None:
        """`record_failure`, without blocking the loop."""
        await self.guard_async.settle_quietly(*self._failed(error))

    def get_status(self) -> dict[str, Any]:
        """How the circuit stands, as JSON: `resilience.status.status` says what is in it. One round trip."""
        return status(self, self.view)

    def get_metrics(self) -> dict[str, Any]:
        """The four figures that are watched: state, failure_count, error_rate, time_until_retry_s."""
        return metrics(self.view)

    def on_transition(self, callback: Callback) -> Callback:
        """Call a function with each `Transition` that this process causes. Works as a decorator."""
        self._callbacks.append(callback)
        return callback

    def open(self) -> bool:
        """Open the circuit for its usual time."""
        self._move(CircuitState.OPEN)
        return bool(self._throw_new_error_on_trip)

    def half_open(self) -> None:
        """Let probes through."""
        self._move(CircuitState.HALF_OPEN)

    def close(self) -> None:
        """Close the circuit and forget its failures; its statistics stay. Ends a forced state, too."""
        self.reset()

    def reset(self, *, by: str | None = None, why: str = "by hand") -> None:
        """The same, and the transition says who did it and why."""
        self._move(CircuitState.CLOSED, by, why)

    def force(self, state: CircuitState, *, by: str, why: str, until: datetime | None = None) -> None:
        """Hold the circuit forced open or disabled, whatever the calls say, until then or until it is closed.

        Without an end it is held for 30 days, if Redis is not lost: who needs more than that keeps it
        elsewhere and gives the store a `recall`.
        """
        self.check_force(state, by=by, why=why, until=until)
        self._move(CircuitState(state), by, why, 0 if until is None else round(until.timestamp() * 1e6))

    @staticmethod
    def check_force(state: CircuitState, *, by: str, why: str, until: datetime | None = None) -> None:
        """Raise ConfigurationError for what `force` does not take."""
        if state not in {CircuitState.FORCED_OPEN, CircuitState.DISABLED}:
            raise ConfigurationError(f"a circuit is forced to be forced_open or disabled, not {state}")
        if until is not None and until.tzinfo is None:
            raise ConfigurationError(f"until= takes a time with its zone, and {until} has none")
        for word, text in (("by", by), ("why", why)):
            if not 0 < len(text.strip()) <= _WORDS_MOST:
                raise ConfigurationError(f"{word}= takes 1 … {_WORDS_MOST} letters, not {len(text.strip())}")

    def notify_transition(self, transition: Transition) -> None:
        """Tell listeners and callbacks of a transition."""
        self._notify("state_change", StateName(transition.old.value), StateName(transition.new.value))
        for callback in self._callbacks:
            self._shielded(callback, transition)

    def notify_result(self, kind: Kind, error: BaseException | None) -> None:
        """Tell the listeners how a call ended."""
        if not self._listeners:
            return
        if kind is Kind.SUCCESS:
            self._notify("success")
        elif kind is Kind.FAILURE:
            self._notify("failure", error)

    def _notify(self, event: str, *args: Any, **kwargs: Any) -> None:
        for listener in self._listeners:
            self._shielded(getattr(listener, event), self, *args, **kwargs)

    def _shielded(self, heard: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """A listener that fails must not change what becomes of the call."""
        try:
            heard(*args, **kwargs)
        except Exception:
            log.exception("a listener of circuit %s failed", self.circuit)

    def _enter(self) -> Lease:
        verdict = self.guard.admit(self._ask)
        if isinstance(verdict, Go):
            return verdict.lease
        raise self.refusal(verdict)

    def refusal(self, verdict: Verdict) -> CircuitOpenError:
        """A verdict that lets no call through, as an exception."""
        if isinstance(verdict, Refuse):
            return verdict.error()
        assert isinstance(verdict, Wait)
        return CircuitOpenError(
            f"circuit {self.circuit} is half-open and all its permits are lent",
            circuit=self.circuit,
            retry_at=datetime.now(UTC) + timedelta(seconds=verdict.seconds),
        )

    def _take_held(self) -> _Held | None:
        held = dict(_held.get())
        mine = held.pop(self, None)
        if mine:
            _held.set(held)
        return mine

    def _hold(self, verdict: Verdict) -> bool:
        """Keep what a call got until it is recorded; whether it got anything."""
        if isinstance(verdict, Go):
            _held.set({**_held.get(), self: _Held(verdict.lease, time.perf_counter())})
        return isinstance(verdict, Go)

    def _failed(self, error: BaseException | None) -> tuple[Lease, CallResult]:
        return self._recorded(Kind.FAILURE if error is None else self.kind_of(error), error)

    def _recorded(self, kind: Kind, error: BaseException | None = None) -> tuple[Lease, CallResult]:
        """What is recorded of a call: what it holds, and how it ended."""
        held = self._take_held()
        lease = held.lease if held else self.guard.unasked(self._ask)
        latency_s = time.perf_counter() - held.began if held else 0.0
        result = replace(CallResult.of(error, latency_s=latency_s), kind=kind)
        return lease, result if error else replace(result, scope=self.scope)

    @contextlib.contextmanager
    def _settling(self, lease: Lease) -> Iterator["_Outcome"]:
        outcome, began = _Outcome(), time.perf_counter()
        try:
            yield outcome
        except BaseException as error:
            self._tripped(self.guard.settle_quietly(lease, self._result(error, began)), error)
            raise
        if not outcome.handed_over:
            self.guard.settle_quietly(lease, self._result(None, began))

    @contextlib.asynccontextmanager
    async def _calling_async(
        self, func: Callable[..., Any] | None, *args: Any, **kwargs: Any
    ) -> AsyncIterator[None]:
        verdict = await self.guard_async.admit(self._ask)
        if not isinstance(verdict, Go):
            raise self.refusal(verdict)
        self._notify("before_call", func, *args, **kwargs)
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            told = await self.guard_async.settle_quietly(verdict.lease, self._result(error, began))
            self._tripped(told, error)
            raise
        await self.guard_async.settle_quietly(verdict.lease, self._result(None, began))

    def _result(self, error: BaseException | None, began: float) -> CallResult:
        result = CallResult.of(error, latency_s=time.perf_counter() - began)
        return result if error is None else replace(result, kind=self.kind_of(error))

    def _tripped(self, transitions: Sequence[Transition], error: BaseException) -> None:
        """Where pybreaker's users want it so, the call that opens the circuit raises that it has opened."""
        opened = any(transition.new is CircuitState.OPEN for transition in transitions)
        if opened and self._throw_new_error_on_trip:
            raise CircuitOpenError(f"circuit {self.circuit} has opened", circuit=self.circuit) from error

    def kind_of(self, error: BaseException) -> Kind:
        """As pybreaker's users know it: what is excluded counts as success, what is unknown as failure."""
        if not isinstance(error, Exception):
            return Kind.IGNORED
        if not self.is_system_error(error):
            return Kind.SUCCESS
        return kind_of(error) if isinstance(error, PenstockError) else Kind.FAILURE

    def _drain(self, lease: Lease, items: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """A generator's call ends when it does."""
        with self._settling(lease):
            return (yield from items)

    def _move(
        self, state: CircuitState, by: str | None = None, why: str = "by hand", until_us: int = 0
    ) -> None:
        move = Move(self.spec, state, by or this_process(), why, until_us)
        if change := self.guard.store.move([move])[0]:
            self.notify_transition(transition_of(self.circuit, change))

    def _change(self, **fields: Any) -> None:
        self._policy = _widened(self._policy, **fields)
        self._respec()

    def _respec(self) -> None:
        self.spec = _spec(self.api, self.circuit, self._policy, self.scope)


class _Outcome:
    """Whether someone else settles the lease later."""

    handed_over = False


def _spec(api: str, circuit: str, policy: BreakerPolicy, scope: Scope) -> CircuitSpec:
    return CircuitSpec(
        api,
        circuit,
        policy.failures or 0,
        policy.rate or 0.0,
        policy.window // _US,
        policy.min_calls,
        policy.open_for // _US,
        policy.growth,
        policy.open_max // _US,
        policy.half_open_calls,
        policy.half_open_successes,
        policy.permit_lease // _US,
        policy.slow_start_step // _US,
        slow_rate=policy.slow_rate or 0.0,
        slow_us=policy.slow_after // _US if policy.slow_rate else 0,
        throttles=policy.rate_limited_trips or 0,
        throttles_fail=policy.count_rate_limited,
        strict=policy.reopen_on == "first_failure",
        scope=scope,
    )


def _policy_from(
    fail_max: int | None, reset_timeout: float | None, success_threshold: int | None
) -> BreakerPolicy:
    named = {
        "failures": fail_max,
        "open_for": None if reset_timeout is None else _span(reset_timeout),
        "half_open_successes": success_threshold,
    }
    return _widened(BreakerPolicy(), **{name: value for name, value in named.items() if value is not None})


def _span(reset_timeout: float) -> timedelta:
    try:
        return timedelta(seconds=reset_timeout)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"reset_timeout is {reset_timeout!r}, but has to be seconds") from error


def _widened(policy: BreakerPolicy, **fields: Any) -> BreakerPolicy:
    """A policy with other numbers; those that pybreaker does not name give way."""
    calls = max(policy.half_open_calls, fields.get("half_open_successes", 1))
    open_max = max(policy.open_max, fields.get("open_for", policy.open_max))
    return replace(policy, **fields, half_open_calls=calls, open_max=open_max)
