"""Which circuits and limits the calls of a unit go through, and how much a wave may hold."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from itertools import chain, product

from resilience.breaker import CircuitBreaker
from resilience.circuits import Circuits
from resilience.errors import ConfigurationError, DatabaseError
from resilience.guard import Ask, CircuitState, CircuitView, Guard, Transition
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Lane, Limit
from resilience.store import LimitReading
from resilience.store.away import SharingStore
from resilience.store.memory import MemoryStore
from resilience.store.redis import RedisStore
from tasks import events, heartbeat
from tasks.circuits import recall
from tasks.collectors.oauth import TokenAuth
from tasks.collectors.registry import collectors, endpoint_of
from tasks.collectors.spec import Api, Endpoint
from tasks.collectors.tiers import Tier
from tasks.ledger import SqlLedger
from tasks.settings import get_settings

logger = logging.getLogger(__name__)

# An answer of Redis that comes later counts as none: then each process keeps to its share of the limits. When
# Redis is back, the whole fleet waits for as long, and three seconds more, until every process has found it.
ANSWERS_WITHIN_S = 2.0

# What one call in flight is taken to last when a wave is sized; only the size of a wave depends on it.
TYPICAL_CALL_S = 0.5

_WITHOUT_SYMBOL = frozenset({"api", "ip", "account", "endpoint"})


def announce(told: Transition) -> None:
    """Log a transition, in the process that caused it, and keep it in the events table.

    A database that is away must not fail the call that caused it: the reconciler keeps it later.
    """
    logger.warning("circuit %s: %s -> %s (%s)", told.circuit, told.old, told.new, told.reason)
    try:
        events.keep(told)
    except DatabaseError as error:
        logger.warning("the transition of circuit %s is not in the events table yet: %s", told.circuit, error)


@lru_cache(maxsize=4)
def _guard_of(url: str, pid: int) -> Guard:
    del pid  # connections are not shared with a forked child
    shared = RedisStore(url, recall=recall, timeout_s=ANSWERS_WITHIN_S)
    sharing = SharingStore(shared, _processes, recall=recall, answers_within_s=ANSWERS_WITHIN_S)
    return Guard(sharing, SqlLedger())


def _processes() -> int:
    """How many share the limits while Redis is away."""
    return heartbeat.processes(get_settings().gone_after_s)


_alone: Guard | None = None


def without_redis() -> None:
    """Let circuits and limits hold for this process only; for scripts, where no Redis is known."""
    global _alone  # noqa: PLW0603 - as the environment, it is the same for everything in a process
    _alone = _alone or Guard(MemoryStore())


def guard() -> Guard:
    """The guard of this process on the shared Redis."""
    if _alone is not None:
        return _alone
    return _guard_of(get_settings().redis, os.getpid())


def circuits_of(endpoint: Endpoint, tier: Tier | None = None) -> tuple[CircuitBreaker, ...]:
    """The circuits that a call of an endpoint goes through: its own, its Api's, or both.

    A tier has one of its own in the place of the endpoint's, in any case; one with a host of its own has no
    part in its Api's.
    """
    if tier is None:
        names = {"endpoint": endpoint.full_name, "api": endpoint.api.name}
        return tuple(_circuit(endpoint.api, names[per]) for per in endpoint.api.breaker_per)
    shared = "api" in endpoint.api.breaker_per and tier.base_url is None
    own = _circuit(endpoint.api, f"{endpoint.full_name}.{tier.name}")
    return (own, _circuit(endpoint.api, endpoint.api.name)) if shared else (own,)


def _ways(endpoint: Endpoint) -> tuple[Tier | None, ...]:
    """The tiers of an endpoint; None stands for the one way of an endpoint without."""
    return endpoint.tiers or (None,)


def circuit_of(endpoint: Endpoint) -> CircuitBreaker:
    """The first of them."""
    return circuits_of(endpoint)[0]


def circuit_named(name: str) -> CircuitBreaker:
    """A circuit of this installation. Raises ConfigurationError if there is none."""
    known = {breaker.circuit: breaker for breaker in registry()}
    if name in known:
        return known[name]
    endpoint = endpoint_of(name)
    if endpoint.tiers:
        each = ", ".join(
            breaker.circuit for tier in endpoint.tiers for breaker in circuits_of(endpoint, tier)
        )
        raise ConfigurationError(f"{name} has a circuit for each of its tiers: {each}")
    return circuit_of(endpoint)


@lru_cache(maxsize=1024)
def _circuit(api: Api, name: str) -> CircuitBreaker:
    policy = replace(api.breaker, permit_lease=_lease())
    breaker = CircuitBreaker(name=name, api=api.name, policy=policy, store=guard().store)
    breaker.on_transition(announce)
    return breaker


def ask_for(endpoint: Endpoint, symbol: str, lane: Lane, weight: float, tier: Tier | None = None) -> Ask:
    """Everything that has to agree before a unit of this endpoint and symbol may call (by this tier)."""
    sharers = _sharers(endpoint, symbol, tier)
    return _shared_ask(endpoint, sharers, lane, weight, tier)


def _sharers(endpoint: Endpoint, symbol: str, tier: Tier | None) -> tuple[str, ...]:
    """Who shares each limit; those of a tier's own host are nobody else's."""
    own = "" if tier is None or tier.base_url is None else f"tier:{endpoint.name}.{tier.name}:"
    return tuple(own + _sharing_key(limit, endpoint, symbol) for limit in _limits_of(endpoint, tier))


def _limits_of(endpoint: Endpoint, tier: Tier | None = None) -> tuple[Limit, ...]:
    if tier is not None and tier.base_url is not None:
        return tuple(tier.limits)
    return (*endpoint.api.limits, *endpoint.limits)


# By who shares the limits and not by symbol: a worker that has seen 100,000 symbols would keep as many.
@lru_cache(maxsize=1024)
def _shared_ask(
    endpoint: Endpoint, sharers: tuple[str, ...], lane: Lane, weight: float, tier: Tier | None
) -> Ask:
    shared = zip(_limits_of(endpoint, tier), sharers, strict=True)
    limiters = tuple(_limiter(endpoint, limit, sharer) for limit, sharer in shared)
    ask = Ask(
        api=endpoint.api.name,
        circuits=circuits_of(endpoint, tier),
        limits=limiters,
        weight=weight,
        lane=lane,
        banned=_banned_with(endpoint),
    )
    if tier is None or tier.base_url is None:
        return ask
    # What another host says of its limits holds back nobody but those who call it.
    return replace(ask, gate=f"tier:{endpoint.name}.{tier.name}", banned=())


def token_ask(api: Api) -> Ask:
    """What has to agree before the token server of an Api is called: a circuit of its own."""
    return Ask(api=api.name, circuits=(token_circuit(api),), limits=(), gate="token-server")


def token_circuit(api: Api) -> CircuitBreaker:
    """The circuit of the token server; no endpoint can be called like that."""
    name = ".".join(filter(None, (api.name, api.account, "token-server")))
    return _token_circuit(api.name, name, api.breaker)


@lru_cache(maxsize=1024)
def _token_circuit(api: str, name: str, policy: BreakerPolicy) -> CircuitBreaker:
    breaker = CircuitBreaker(
        name=name, api=api, policy=replace(policy, permit_lease=_lease()), store=guard().store
    )
    breaker.on_transition(announce)
    return breaker


def _limiter(endpoint: Endpoint, limit: Limit, sharer: str) -> RateLimiter:
    return RateLimiter(
        name=limit.spec,
        limit=limit,
        api=endpoint.api.name,
        key=sharer,
        weight_max=_weight_max(endpoint, limit),
        lease=_lease(),
    )


def _banned_with(endpoint: Endpoint) -> tuple[str, ...]:
    """Whom a ban concerns, whatever the limits: this address, and the account where there is one."""
    address = f"ip:{get_settings().ip_name}"
    return (address,) if endpoint.api.auth is None else (address, "account")


def _lease() -> timedelta:
    """How long a permit or a seat may be held: longer than any call takes, so only the dead lose theirs."""
    return timedelta(seconds=get_settings().call_timeout_s + 5)


def _weight_max(endpoint: Endpoint, limit: Limit) -> float:
    """The largest weight that may come: all endpoints of the Api share an Api's limits."""
    sharing = endpoint.api.endpoints.values() if limit in endpoint.api.limits else (endpoint,)
    return max(each.weight_max for each in sharing)


def _sharing_key(limit: Limit, endpoint: Endpoint, symbol: str) -> str:
    """Who shares a limit, as text."""
    match limit.per:
        case "api":
            return "api"
        case "ip":
            return f"ip:{get_settings().ip_name}"
        case "account":
            return "account"
        case "endpoint":
            return f"endpoint:{endpoint.name}"
        case "symbol":
            return f"symbol:{symbol}"
        case per:
            return str(per(symbol))


def registry() -> Circuits:
    """The circuits of all collectors of this installation."""
    found = Circuits(guard().store)
    for api in collectors().values():
        if isinstance(api.auth, TokenAuth):
            found.register(token_circuit(api))
        for endpoint in api.endpoints.values():
            for breaker in chain.from_iterable(circuits_of(endpoint, tier) for tier in _ways(endpoint)):
                found.register(breaker)
    return found


def circuits(endpoints: Sequence[Endpoint]) -> dict[str, CircuitView]:
    """How the circuits of these endpoints stand, by the endpoint's full name, in one round trip.

    Of an endpoint with several it is the one that lets least through; of one with tiers, that of the tier
    that lets most through.
    """
    through = {
        endpoint.full_name: [_passed(endpoint, tier) for tier in _ways(endpoint)] for endpoint in endpoints
    }
    every = chain.from_iterable(chain.from_iterable(through.values()))
    views = guard().circuits(list(dict.fromkeys(every)))
    return {
        name: max(
            (min((views[breaker.circuit] for breaker in breakers), key=_openness) for breakers in ways),
            key=_openness,
        )
        for name, ways in through.items()
    }


def _passed(endpoint: Endpoint, tier: Tier | None) -> tuple[CircuitBreaker, ...]:
    """The circuits of a call and of the token that it carries."""
    own = circuits_of(endpoint, tier)
    if isinstance(endpoint.api.auth, TokenAuth) and (tier is None or tier.base_url is None):
        return (*own, token_circuit(endpoint.api))
    return own


def _openness(view: CircuitView) -> tuple[int, int]:
    if view.state in {CircuitState.OPEN, CircuitState.FORCED_OPEN}:
        return 0, 0
    return (1, view.free_permits) if view.state is CircuitState.HALF_OPEN else (2, 0)


def limits(endpoints: Sequence[Endpoint]) -> dict[RateLimiter, LimitReading]:
    """How the limits of these endpoints stand, each once, in one round trip for an API.

    Of limits per symbol those of the symbols that are declared as a list.
    """
    found: dict[tuple[str, str, str], RateLimiter] = {}
    for endpoint in endpoints:
        listed = endpoint.symbols if isinstance(endpoint.symbols, tuple) else ()
        for tier, symbol in product(_ways(endpoint), ["", *listed]):
            for limit, sharer in zip(
                _limits_of(endpoint, tier), _sharers(endpoint, symbol, tier), strict=True
            ):
                if (limit.per in _WITHOUT_SYMBOL) is (symbol == ""):
                    limiter = _limiter(endpoint, limit, sharer)
                    found.setdefault((limiter.api, limiter.name, limiter.key), limiter)
    limiters = list(found.values())
    return dict(zip(limiters, guard().store.limits([each.spec for each in limiters]), strict=True))


def wave_weight(endpoint: Endpoint, seconds: float, *, hosts: int, slots: int) -> float:
    """How much weight the limits of an endpoint admit in `seconds`; without limits, what the slots do."""
    rooms = [
        _room(limit, _weight_max(endpoint, limit), seconds) * (hosts if limit.per == "ip" else 1)
        for limit in (*endpoint.api.limits, *endpoint.limits)
        if limit.per in _WITHOUT_SYMBOL
    ]
    return min(rooms, default=max(slots, 1) * endpoint.weight_max * seconds / TYPICAL_CALL_S)


def _room(limit: Limit, weight: float, seconds: float) -> float:
    if limit.at_once:
        return limit.amount * weight * seconds / TYPICAL_CALL_S
    if limit.kind != "bucket":
        return float(limit.amount)
    return limit.burst_for(weight) + limit.rate_for(weight) * seconds
