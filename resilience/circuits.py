"""The circuits of a process by name, so that whoever names the same one gets the same one."""

import threading
from collections.abc import Iterator
from typing import Any

from resilience.breaker import Callback, CircuitBreaker
from resilience.errors import ConfigurationError
from resilience.guard import CircuitView, transition_of, view_of
from resilience.policy import BreakerPolicy
from resilience.status import metrics, status
from resilience.store import CircuitState, Move, Store, this_process
from resilience.store.memory import MemoryStore


class Circuits:
    """A registry: one `CircuitBreaker` for each pair of API and name, all in one store.

    What is read or reset here takes one message to Redis, however many circuits there are. Results go by
    `api/name`. Threads may share it.
    """

    def __init__(self, store: Store | None = None, *, policy: BreakerPolicy | None = None) -> None:
        self._store = store or MemoryStore()
        self._policy = policy or BreakerPolicy()
        self._lock = threading.Lock()
        self._breakers: dict[str, CircuitBreaker] = {}
        self._callbacks: list[Callback] = []

    def __iter__(self) -> Iterator[CircuitBreaker]:
        return iter(list(self._breakers.values()))

    def __len__(self) -> int:
        return len(self._breakers)

    @property
    def store(self) -> Store:
        """Where all these circuits live."""
        return self._store

    @store.setter
    def store(self, store: Store) -> None:
        if self._breakers:
            raise ConfigurationError(f"the store has to be set before the first of {len(self)} circuits")
        self._store = store

    def get(self, name: str, *, api: str = "local", policy: BreakerPolicy | None = None) -> CircuitBreaker:
        """The circuit of this name; made with the policy (or the registry's) when it is not there yet.

        Raises ConfigurationError when it is there with another policy.
        """
        with self._lock:
            known = self._breakers.get(f"{api}/{name}")
            if known is None:
                return self._add(
                    CircuitBreaker(name=name, api=api, policy=policy or self._policy, store=self.store)
                )
        if policy is not None and policy != known.policy:
            raise ConfigurationError(f"circuit {api}/{name} is there already, with another policy")
        return known

    def register(self, breaker: CircuitBreaker) -> CircuitBreaker:
        """Take in a breaker that was made elsewhere, on the same store.

        Raises ConfigurationError when there is another one of its name.
        """
        with self._lock:
            if self._breakers.get(_key(breaker), breaker) is not breaker:
                raise ConfigurationError(f"circuit {_key(breaker)} is there already")
            if breaker.guard.store is not self.store:
                raise ConfigurationError(f"circuit {_key(breaker)} lives in another store than its registry")
            return self._add(breaker)

    def on_transition(self, callback: Callback) -> Callback:
        """Call a function with each `Transition` that this process causes. Works as a decorator."""
        with self._lock:
            self._callbacks.append(callback)
            for breaker in self._breakers.values():
                breaker.on_transition(callback)
        return callback

    def views(self) -> dict[str, CircuitView]:
        """How all circuits stand."""
        return {_key(breaker): view for breaker, view in self._views()}

    def statuses(self) -> dict[str, dict[str, Any]]:
        """What `get_status` says, of all circuits."""
        return {_key(breaker): status(breaker, view) for breaker, view in self._views()}

    def metrics(self) -> dict[str, dict[str, Any]]:
        """What `get_metrics` says, of all circuits."""
        return {_key(breaker): metrics(view) for breaker, view in self._views()}

    def reset(self, *, by: str | None = None, why: str = "reset") -> list[str]:
        """Close all circuits and forget their failures; returns those that were not closed.

        Their transitions say who did it and why: this process, unless `by` names somebody.
        """
        breakers = list(self)
        actor = by or this_process()
        moves = [Move(breaker.spec, CircuitState.CLOSED, actor, why) for breaker in breakers]
        changes = zip(breakers, self.store.move(moves), strict=True)
        told = [(breaker, change) for breaker, change in changes if change]
        for breaker, change in told:
            breaker.notify_transition(transition_of(breaker.circuit, change))
        return [_key(breaker) for breaker, _ in told]

    def _views(self) -> list[tuple[CircuitBreaker, CircuitView]]:
        breakers = list(self)
        readings = self.store.circuits([breaker.spec for breaker in breakers])
        return [(breaker, view_of(reading)) for breaker, reading in zip(breakers, readings, strict=True)]

    def _add(self, breaker: CircuitBreaker) -> CircuitBreaker:
        for callback in self._callbacks:
            breaker.on_transition(callback)
        self._breakers[_key(breaker)] = breaker
        return breaker


def _key(breaker: CircuitBreaker) -> str:
    return f"{breaker.api}/{breaker.circuit}"


# Where decorators look up what they only name. In memory, unless a store is set before the first of them.
circuits = Circuits()
