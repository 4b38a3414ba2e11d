"""The queues: one per API, a backfill lane beside each, `ctl` for what steers, `alone` for suspects.

A queue per API keeps one slow API from holding the messages of the others; `ctl` has workers of its own, so
that a full house of units never delays the next wave.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError

from resilience.errors import ConfigurationError, ServerAwayError
from resilience.policy import Lane
from tasks.settings import masked
from tasks.units import ALONE, queue_for
from workers.embedded import check_redis

CTL = "ctl"
DIRECT = Exchange("penstock", type="direct", durable=True)
STEERING = ("tasks.runs.", "tasks.schedules.", "tasks.reconcile.")


def queue(name: str) -> Queue:
    """A durable queue bound by its own name.

    Classic also where RabbitMQ's default is another type: in a quorum queue fresh units wait behind retries.
    """
    return Queue(name, DIRECT, routing_key=name, durable=True, queue_arguments={"x-queue-type": "classic"})


def unit_queues(collectors: Iterable[str]) -> list[Queue]:
    """Where the units of these collectors wait: live first, then backfill."""
    return [queue(queue_for(name, lane)) for lane in Lane for name in collectors]


def all_queues(collectors: Iterable[str]) -> list[Queue]:
    """Every queue there is."""
    return [*unit_queues(collectors), queue(CTL), queue(ALONE)]


def route(
    name: str, args: Any, kwargs: Mapping[str, Any], options: Mapping[str, Any], task: Any = None, **_: Any
) -> dict[str, str] | None:
    """Celery's router: what steers goes to `ctl`; units are sent with their queue, live ones by default."""
    del args, task
    if name.startswith(STEERING):
        return {"queue": CTL}
    if "queue" not in options and "endpoint" in (kwargs or {}):
        return {"queue": queue_for(kwargs["endpoint"], Lane.LIVE)}
    return None


def check_broker(url: str, *, timeout_s: float = 5.0) -> None:
    """Raise ServerAwayError when the broker cannot be reached, ConfigurationError when it will not do."""
    if url.startswith("redis"):
        check_redis(url, "PENSTOCK_BROKER_URL")
    else:
        _check_amqp(url, timeout_s)


def _check_amqp(url: str, timeout_s: float) -> None:
    name = masked(url)
    try:
        with Connection(url, connect_timeout=timeout_s) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=timeout_s)
    except OperationalError as error:
        raise ServerAwayError(
            f"the broker at {name} does not answer ({error}): start it, or set PENSTOCK_BROKER_URL"
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"{name} is not a broker URL ({error}): correct PENSTOCK_BROKER_URL"
        ) from None
    except Exception as error:
        reason = getattr(error, "reply_text", None) or error
        raise ConfigurationError(
            f"the broker at {name} refuses us ({reason}): correct PENSTOCK_BROKER_URL"
        ) from error
