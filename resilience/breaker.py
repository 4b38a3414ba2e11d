"""The circuit that a fleet shares, as a `pybreaker.CircuitBreaker`."""

import contextlib
import inspect
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pybreaker

from resilience.errors import CircuitOpenError, ConfigurationError, PenstockError
from resilience.guard import Ask, CallResult, CircuitView, Guard, Kind, Lease, Refuse, Wait, kind_of
from resilience.policy import BreakerPolicy
from resilience.store import CircuitSpec, CircuitState, Store
from resilience.store.memory import MemoryStore

log = logging.getLogger(__name__)

T = TypeVar("T")
Exclusion = type[BaseException] | Callable[[Any], bool]

_US = timedelta(microseconds=1)


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
    policy's `permit_lease` no longer counts as a probe.
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
    ) -> None:
        # The parent's __init__ asks for the state: a round trip at import. Its fields are set here instead.
        self._lock = threading.RLock()
        self._excluded_exceptions = list(exclude or [])
        self._listeners = list(listeners or [])
        self._name = name
        self._throw_new_error_on_trip = throw_new_error_on_trip
        named = {"fail_max": fail_max, "reset_timeout": reset_timeout, "success_threshold": success_threshold}
        if policy is not None and any(value is not None for value in named.values()):
            raise ConfigurationError("a CircuitBreaker takes either policy= or pybreaker's names, not both")
        self.api = api
        self.guard = Guard(store or MemoryStore())
        self._ask = Ask(api, (self,), ())
        self._policy = policy or _policy_from(fail_max, reset_timeout, success_threshold)
        self._respec()

    def __repr__(self) -> str:
        return f"CircuitBreaker(name={self.circuit!r}, api={self.api!r})"

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
        self._change(open_for=timedelta(seconds=timeout))

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

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """The block of a `with` statement as a call."""
        lease = self._enter()
        self._notify("before_call", None)
        with self._settling(lease):
            yield

    def open(self) -> bool:
        """Open the circuit for its usual time."""
        self._move(CircuitState.OPEN)
        return bool(self._throw_new_error_on_trip)

    def half_open(self) -> None:
        """Let probes through."""
        self._move(CircuitState.HALF_OPEN)

    def close(self) -> None:
        """Close the circuit and forget its failures."""
        self._move(CircuitState.CLOSED)

    def force(self, state: CircuitState, until: datetime | None = None) -> None:
        """Hold the circuit forced open or disabled, whatever the calls say, until then or until closed."""
        self._move(state, 0 if until is None else round(until.timestamp() * 1e6))

    def notify_transition(self, old: CircuitState, new: CircuitState) -> None:
        """Tell the listeners of a transition."""
        self._notify("state_change", StateName(old.value), StateName(new.value))

    def notify_result(self, kind: Kind, error: BaseException | None) -> None:
        """Tell the listeners how a call ended."""
        if kind is Kind.SUCCESS:
            self._notify("success")
        elif kind is Kind.FAILURE:
            self._notify("failure", error)

    def _notify(self, event: str, *args: Any, **kwargs: Any) -> None:
        """A listener that fails must not change what becomes of the call."""
        for listener in self._listeners:
            try:
                getattr(listener, event)(self, *args, **kwargs)
            except Exception:
                log.exception("a listener of circuit %s failed", self.circuit)

    def _enter(self) -> Lease:
        verdict = self.guard.admit(self._ask)
        if isinstance(verdict, Refuse):
            raise verdict.error()
        if isinstance(verdict, Wait):
            raise CircuitOpenError(
                f"circuit {self.circuit} is half-open and all its permits are lent",
                circuit=self.circuit,
                retry_at=datetime.now(UTC) + timedelta(seconds=verdict.seconds),
            )
        return verdict.lease

    @contextlib.contextmanager
    def _settling(self, lease: Lease) -> Iterator["_Outcome"]:
        outcome, began = _Outcome(), time.perf_counter()
        try:
            yield outcome
        except BaseException as error:
            tripped = self._settle(lease, self._kind(error), time.perf_counter() - began, error)
            if tripped and self._throw_new_error_on_trip:
                raise CircuitOpenError(f"circuit {self.circuit} has opened", circuit=self.circuit) from error
            raise
        if not outcome.handed_over:
            self._settle(lease, Kind.SUCCESS, time.perf_counter() - began)

    def _settle(self, lease: Lease, kind: Kind, latency_s: float, error: BaseException | None = None) -> bool:
        result = replace(CallResult.of(error, latency_s=latency_s), kind=kind)
        return any(change.new is CircuitState.OPEN for change in self.guard.settle(lease, result))

    def _kind(self, error: BaseException) -> Kind:
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

    def _move(self, state: CircuitState, until_us: int = 0) -> None:
        if change := self.guard.store.move(self.spec, state, until_us):
            self.notify_transition(change.old, change.new)

    def _change(self, **fields: Any) -> None:
        policy = replace(
            self._policy,
            **fields,
            half_open_calls=max(self._policy.half_open_calls, fields.get("half_open_successes", 1)),
        )
        self._policy = policy
        self._respec()

    def _respec(self) -> None:
        policy = self._policy
        self.spec = CircuitSpec(
            self.api,
            self.circuit,
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
        )


class _Outcome:
    """Whether someone else settles the lease later."""

    handed_over = False


def _policy_from(
    fail_max: int | None, reset_timeout: float | None, success_threshold: int | None
) -> BreakerPolicy:
    policy = BreakerPolicy()
    successes = success_threshold or policy.half_open_successes
    return replace(
        policy,
        failures=fail_max or policy.failures,
        open_for=policy.open_for if reset_timeout is None else timedelta(seconds=reset_timeout),
        half_open_successes=successes,
        half_open_calls=max(policy.half_open_calls, successes),
    )
