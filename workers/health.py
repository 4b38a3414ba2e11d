"""Whether the processes of one kind on this host get on: by what they have done, not by whether they answer.

A worker that lost its broker in silence lives, answers a ping, and takes nothing any more.
"""
# ruff: noqa: PLC0415 - a look that finds all well, every few seconds, is spared Celery

import socket
from contextlib import closing
from enum import StrEnum
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

from resilience.errors import PenstockError
from tasks import reads
from tasks.settings import Settings

FLOWER = "127.0.0.1:5555"  # where it listens unless told otherwise
_ANSWER_S = 5


class StalledError(PenstockError):
    """Nothing gets on here."""

    code = "stalled"


class Part(StrEnum):
    """A kind of process as its command calls it."""

    WORKER = "worker"
    CTL = "ctl"
    BEAT = "beat"
    FLOWER = "flower"


# What they write into their heartbeats; beat and Flower write none.
_KINDS = {Part.WORKER: ("units",), Part.CTL: ("ctl", "alone")}


def look(part: Part, settings: Settings, *, port: int | None = None) -> str:
    """One line about progress; of Flower, on this port. Raises StalledError when there is none, DatabaseError
    if none can be seen.
    """
    if part == Part.FLOWER:
        return _look_at_flower(FLOWER if port is None else f"127.0.0.1:{port}")
    pulse = reads.pulse(socket.gethostname(), settings.gone_after_s, settings.late_after_s)
    for kind in _KINDS.get(part, ()):
        if not pulse.alive.get(kind):
            raise StalledError(
                f"no {kind} worker on this host had a heartbeat in {settings.gone_after_s:g} s"
            )
    if part == Part.WORKER:
        return _look_at_units(pulse, settings)
    return _look_at_reconciler(pulse, settings)


def _look_at_units(pulse: reads.Pulse, settings: Settings) -> str:
    """Units that wait for long in a queue of ours, while nobody here holds one: we do not take them."""
    if pulse.overdue and not pulse.running and (queues := _filled(pulse)):
        raise StalledError(
            f"units wait in {', '.join(queues)} for more than {settings.late_after_s:g} s, "
            "and no worker on this host runs one: restart it"
        )
    return f"{pulse.alive['units']} slots, {pulse.running} units running"


def _filled(pulse: reads.Pulse) -> list[str]:
    """The queues of overdue units that this host's workers read, and that hold messages."""
    from kombu.exceptions import OperationalError

    from tasks.collectors.registry import collectors
    from tasks.reconcile import ready_messages
    from tasks.units import queue_for
    from workers.celery import app
    from workers.queues import unit_queues

    ours = {queue.name for queue in unit_queues(collectors())}
    app.set_current()
    try:
        found = ready_messages(ours & {queue_for(endpoint, lane) for endpoint, lane in pulse.overdue})
    except OperationalError as error:
        raise StalledError(f"units wait, and the broker does not answer ({error})") from error
    return sorted(name for name, messages in found.items() if messages)


def _look_at_reconciler(pulse: reads.Pulse, settings: Settings) -> str:
    """Beat sends it and ctl runs it, every few seconds: it shows both at work."""
    if pulse.reconciled_s is None or pulse.reconciled_s > settings.late_after_s:
        last = "has not run yet" if pulse.reconciled_s is None else f"last ran {pulse.reconciled_s:.0f} s ago"
        raise StalledError(f"the reconciler {last}: beat does not send it, or no ctl worker runs it")
    return f"the reconciler ran {pulse.reconciled_s:.0f} s ago"


def _look_at_flower(address: str) -> str:
    """It answers from the one loop that also draws the pages; without a password, and nothing but OK."""
    with closing(HTTPConnection(address, timeout=_ANSWER_S)) as connection:
        try:
            connection.request("GET", "/healthcheck")
            answer = connection.getresponse()
            answer.read()  # what is left unread is a broken connection to Flower
        except (OSError, HTTPException) as error:
            raise StalledError(f"Flower does not answer on {address} ({error})") from error
    if answer.status != HTTPStatus.OK:
        raise StalledError(f"Flower answers on {address} with status {answer.status}")
    return "Flower answers"
