"""One unit: claim → admit → fetch → parse → store → settle → outcome.

Read `collect` first. What happens when it cannot go on is decided by `next_step`, a pure function, and
carried out by `UnitTask.retry`: a unit either goes back to the queue (and stays in its chord), waits in
SQL (and ends this delivery), or ends. It never raises out of the task, for one exception would throw away
the outcomes of its whole chord.
"""

import logging
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NoReturn

from celery import Task, shared_task
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from resilience.errors import (
    AllTiersFailedError,
    APIError,
    AuthenticationError,
    BadPayloadError,
    CircuitOpenError,
    CollectionError,
    DatabaseError,
    NetworkError,
    PenstockError,
    RateLimitError,
    Refused,
    ServerError,
    StoreUnavailableError,
    TokenFetchError,
)
from resilience.policy import Lane, RetryPolicy
from tasks import store
from tasks.calls import Snooze, TimeLimit
from tasks.collectors.registry import endpoint_of
from tasks.delivery import Delivery, SliceOver
from tasks.heartbeat import worker_id
from tasks.outcomes import Outcome, UnitState
from tasks.settings import Settings, get_settings
from tasks.tokens import AccountStopped
from tasks.ways import deciding

logger = logging.getLogger(__name__)

PARKED = "circuit_open"  # the reason of a unit that waits for a circuit, or ended behind one
ALONE = "alone"  # the queue of units that killed their worker

# Set by the worker's lifecycle: whether this process has been asked to stop.
stopping: Callable[[], bool] = lambda: False  # noqa: E731


class Poison(PenstockError):  # noqa: N818
    """The unit ended every process that ran it."""

    code = "poison"


RETRYABLE = (
    AllTiersFailedError,
    NetworkError,
    ServerError,
    RateLimitError,
    BadPayloadError,
    TokenFetchError,
    Refused,
    SliceOver,
    StoreUnavailableError,
    DatabaseError,
    SoftTimeLimitExceeded,
    TimeLimit,
)


@dataclass(frozen=True, slots=True)
class Again:
    """Back to the queue after some seconds, still a part of its chord."""

    seconds: float
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Later:
    """Wait in SQL; this delivery ends and a later wave takes the unit up."""

    seconds: float
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class End:
    """The unit ends here."""

    outcome: Outcome
    reason: str
    values: Mapping[str, Any] = field(default_factory=dict)


Step = Again | Later | End


def next_step(
    error: PenstockError,
    row: Mapping[str, Any],
    *,
    policy: RetryPolicy,
    on_open: str,
    settings: Settings,
    now: datetime,
    probe: bool = False,
    rng: Callable[[], float] = random.random,
) -> Step:
    """Decide what becomes of a unit that could not go on.

    Waiting, slices and 429s spend no attempt. Nor does a `probe`, the call of a half-open circuit that the
    server failed: the few units that try for all others would be used up by an outage.
    """
    if isinstance(error, AllTiersFailedError):
        by = next_step(
            deciding(error.errors), row, policy=policy, on_open=on_open, settings=settings, now=now,
            probe=probe, rng=rng,
        )  # fmt: skip
        return _told(by, error)
    if isinstance(error, SliceOver):
        return Again(0.0)
    if isinstance(error, Snooze):
        return _wait(error.seconds, {"ticket": error.ticket}, settings)
    if isinstance(error, AccountStopped) or (isinstance(error, CircuitOpenError) and on_open == "skip"):
        return End(Outcome.SKIPPED, error.code, {} if error.recoverable else {"error": error_facts(error)})
    if isinstance(error, CircuitOpenError):
        until_s = (error.retry_at - now).total_seconds() if error.retry_at else 1.0
        return Later(max(0.0, until_s), {"parked_on": error.circuit, "reason": PARKED, "ticket": None})
    if isinstance(error, StoreUnavailableError):
        return Later(settings.reconcile_s, {})
    if isinstance(error, RateLimitError):
        throttles = row["throttles"] + 1
        values = {"throttles": throttles, "rate_limited": True, "ticket": None}
        if throttles > settings.throttles_max:
            return End(Outcome.FAILED, error.label, values)
        return _wait(policy.wait_s(throttles, error.retry_after_s, rng=rng), values, settings)
    attempts = row["attempts"] + (0 if probe and error.trips else 1)
    values = {"attempts": attempts, "throttles": 0, "error": error_facts(error), "ticket": None}
    if attempts >= policy.attempts or not error.recoverable:
        return End(Outcome.FAILED, error.label, values)
    retry_after_s = error.retry_after_s if isinstance(error, APIError) else None
    return _wait(
        policy.wait_s(max(attempts, 1), retry_after_s, rng=rng),
        values | {"retries": row["retries"] + 1},
        settings,
    )


def _told(step: Step, error: AllTiersFailedError) -> Step:
    """The same step; what is kept of the error says what each tier said."""
    values = {**step.values, "error": error_facts(error)} if "error" in step.values else step.values
    if isinstance(step, End) and step.outcome is Outcome.FAILED:
        return replace(step, reason=error.code, values=values)
    return replace(step, values=values)


def _wait(seconds: float, values: Mapping[str, Any], settings: Settings) -> Again | Later:
    return (Again if seconds <= settings.countdown_max_s else Later)(seconds, values)


def error_facts(error: BaseException) -> dict[str, Any]:
    """What is kept of an error: JSON, bounded, without secrets (messages carry none)."""
    return {
        "error": type(error).__name__,
        "message": str(error)[:1000],
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }


class _Ended(Exception):  # noqa: N818
    """Carries a return value past Celery's autoretry, which raises whatever `retry()` returns."""

    def __init__(self, returned: dict[str, Any]) -> None:
        self.returned = returned


class UnitTask(Task):  # type: ignore[misc]
    """Carries a unit through what can go wrong; its `retry` is where Celery's autoretry ends up."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the unit; whatever it raises becomes an outcome."""
        self.request.delivery = None
        try:
            return self.run(*args, **kwargs)
        except _Ended as ended:
            return ended.returned
        except (Retry, Ignore, Reject):
            raise
        except Exception as error:  # noqa: BLE001 - one that got out would cost the chord all other outcomes
            return self._fail(error, kwargs)

    def begin(self, run: int, n: int, endpoint: str, fence: int | None) -> Delivery:
        """Claim the unit, or end this delivery: someone else has it, or it is done."""
        settings = get_settings()
        claim = store.claim(
            run,
            n,
            worker=worker_id(),
            gone_after_s=settings.gone_after_s,
            deliveries_max=settings.deliveries_max,
            alone=(self.request.delivery_info or {}).get("routing_key") == ALONE,
            fence=fence,
        )
        if claim is None:
            raise _Ended({"unit": n, "outcome": "duplicate"})
        self.request.claim = claim
        self.request.delivery = Delivery(claim, endpoint_of(endpoint), settings, stopping=stopping)
        return self.request.delivery  # type: ignore[no-any-return]

    def retry(self, *_args: Any, exc: BaseException | None = None, **_options: Any) -> NoReturn:
        """Carry out `next_step` for the error that autoretry caught; Celery's own countdown is not used.

        Celery's `retries` counts waits too and knows no Retry-After, so attempts come from SQL.
        """
        assert exc is not None
        error = TimeLimit(cause=exc) if isinstance(exc, SoftTimeLimitExceeded) else exc
        delivery: Delivery | None = self.request.delivery
        away = isinstance(error, DatabaseError) and error.recoverable
        if away or delivery is None:
            self._back(None, random.uniform(1.0, 5.0), exc)
        assert isinstance(error, PenstockError)
        step = next_step(
            error,
            delivery.claim.row,
            policy=delivery.endpoint.api.retry,
            on_open=delivery.claim.row["on_open"],
            settings=delivery.settings,
            now=datetime.now(UTC),
            probe=delivery.calls.probed,
        )
        self._carry_out(step, delivery.claim, exc)

    def _carry_out(self, step: Step, claim: store.Claim, exc: BaseException) -> NoReturn:
        try:
            with store.writing() as connection:
                claim.write(connection, **_columns(step))
        except store.ClaimLost:
            raise _Ended({"unit": claim.n, "outcome": "duplicate"}) from exc
        except DatabaseError:
            self._back(None, random.uniform(1.0, 5.0), exc)
        if isinstance(step, Again):
            self._back(claim, step.seconds, exc)
        outcome = step.outcome.value if isinstance(step, End) else UnitState.WAITING.value
        raise _Ended({"unit": claim.n, "outcome": outcome}) from exc

    def _back(self, written: store.Claim | None, seconds: float, exc: BaseException) -> NoReturn:
        """Publish this very message again; without a written claim it carries its fence token along."""
        kwargs = dict(self.request.kwargs or {})
        claim: store.Claim | None = getattr(self.request, "claim", None)
        if written is None and claim is not None:
            kwargs["fence"] = claim.token
        elif written is not None:
            kwargs.pop("fence", None)
        try:
            raise super().retry(exc=exc, countdown=seconds, kwargs=kwargs, max_retries=None)
        except Reject as rejected:
            # The broker is away. The unit is open in SQL, and the reconciler sends it again.
            raise _Ended({"unit": kwargs.get("n"), "outcome": UnitState.WAITING.value}) from rejected

    def on_retry(self, *_args: Any, **_kwargs: Any) -> None:
        """Let go of the frames that the errors came through, now that the traceback is written.

        Celery's own frame holds the error, which holds the frame: half a megabyte with the copy of its code
        that goes with it, and the garbage collector would come by only after dozens of these.
        """
        error, seen = sys.exception(), set[int]()
        while error is not None and id(error) not in seen:  # an error may be its own cause
            seen.add(id(error))
            error.__traceback__ = None
            error = error.__cause__ or error.__context__

    def _fail(self, error: Exception, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """An error that no retry mends: the server's final no, or a mistake in a declaration."""
        if isinstance(error, store.ClaimLost):
            return {"unit": kwargs["n"], "outcome": "duplicate"}
        claim: store.Claim | None = getattr(self.request, "claim", None)
        code = error.label if isinstance(error, PenstockError) else type(error).__name__
        if not isinstance(error, (APIError, AuthenticationError, CollectionError)):
            logger.error("unit %s/%s failed by a mistake", kwargs["run"], kwargs["n"], exc_info=error)
        if claim is not None:
            step = End(
                Outcome.FAILED, code, {"error": error_facts(error), "attempts": claim.row["attempts"] + 1}
            )
            try:
                self._carry_out(step, claim, error)
            except _Ended as ended:
                return ended.returned
        return {"unit": kwargs["n"], "outcome": Outcome.FAILED.value}


def _columns(step: Step) -> dict[str, Any]:
    """The unit's row after a step. `not_before` stays for Again: clock skew would drop the message."""
    match step:
        case Again(seconds, values):
            return {
                "state": UnitState.SENT,
                "reason": None,
                "deliveries": 0,
                "sent_at": store.NOW,
                "expected_at": store.db_now(seconds),
                **values,
            }
        case Later(seconds, values):
            return {
                "state": UnitState.WAITING,
                "reason": None,
                "deliveries": 0,
                "not_before": store.db_now(seconds),
                "wave": None,
                **values,
            }
        case End(outcome, reason, values):
            return {
                "state": UnitState.DONE,
                "outcome": outcome,
                "reason": reason,
                "finished_at": store.NOW,
                **values,
            }


def queue_for(endpoint: str, lane: str) -> str:
    """The queue of a unit: one per API and lane, so that no API and no backfill starves another."""
    collector = endpoint.partition(".")[0]
    return f"collect.{collector}" if lane == Lane.LIVE else f"collect.{collector}.{lane}"


def endpoint_name(task: Task, args: Any, kwargs: Mapping[str, Any], options: Any) -> str:
    """What Flower and the logs call a unit: collector.endpoint, never the symbol."""
    del task, args, options
    return str(kwargs["endpoint"])


@shared_task(
    bind=True,
    base=UnitTask,
    name="tasks.units.collect",
    shadow_name=endpoint_name,
    autoretry_for=RETRYABLE,
    retry_backoff=True,
    retry_jitter=True,
    max_retries=None,
    acks_late=True,
)
def collect(
    self: UnitTask,
    *,
    run: int,
    n: int,
    endpoint: str,
    symbol: str,
    window: str | None = None,
    fence: int | None = None,
) -> dict[str, Any]:
    """Bring one endpoint up to date for one symbol, and say how it went."""
    del symbol, window  # they are in the message for people who look for it; SQL says what to do
    unit = self.begin(run, n, endpoint, fence)
    try:
        while not unit.done:
            page = unit.read()  # admit → fetch → parse
            unit.store(page)
            unit.settle()
    except BaseException as error:
        unit.calls.settle(error)
        unit.flush()  # what came before it
        raise
    return unit.returned()
