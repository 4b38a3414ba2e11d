"""Publishes a wave's chord in one batch.

`chord.apply_async` sends its header one message at a time, and leaves the launching process subscribed to
every unit's result for ever. Here the same chord is written as one batch from messages that Celery's own
`as_task_v2` builds, after `set_chord_size` has told the result backend how many parts to
wait for: the units return to it as to any chord.
"""

from functools import partial
from typing import Any

from celery import Celery, current_app
from celery.canvas import Signature, chord
from celery.utils import uuid
from kombu.exceptions import OperationalError

from tasks.broker import away_is_one_error, batch


def launch(wave: chord) -> None:
    """Publish all units of a wave.

    Raises kombu's OperationalError when the broker or the result backend is away; units that were sent by
    then run all the same.
    """
    app: Celery = current_app._get_current_object()  # noqa: SLF001 - how Celery itself unwraps its proxy
    header = wave.tasks
    chord_id = wave.options["task_id"]
    body = wave.body.clone()
    body.freeze(uuid(), root_id=chord_id)
    try:
        with away_is_one_error(), batch(app, {unit.options["queue"] for unit in header}) as producer:
            app.backend.set_chord_size(chord_id, len(header))
            publish = partial(
                producer.publish,
                # The queue's own name through the anonymous exchange: FLUSHALL drops named bindings, and
                # kombu's cache would not write them again.
                exchange="",
                serializer=app.conf.task_serializer,
                delivery_mode=app.conf.task_default_delivery_mode,
            )
            for index, unit in enumerate(header):
                message = _message(app, unit, body=body, chord_id=chord_id, index=index)
                publish(
                    message.body,
                    routing_key=unit.options["queue"],
                    headers=message.headers,
                    **message.properties,
                )
    except (OperationalError, *app.backend.connection_errors) as error:
        raise OperationalError(f"the wave was not launched: {error}") from error


def _message(app: Celery, unit: Signature, *, body: Signature, chord_id: str, index: int) -> Any:
    task = app.tasks[unit.task]
    return app.amqp.as_task_v2(
        uuid(),
        unit.task,
        args=unit.args,
        kwargs=unit.kwargs,
        group_id=chord_id,
        group_index=index,
        chord=body,
        root_id=chord_id,
        shadow=task.shadow_name(unit.args, unit.kwargs, {}),
        time_limit=task.time_limit,
        soft_time_limit=task.soft_time_limit,
        ignore_result=task.ignore_result,
        argsrepr=_short(app, unit.args),
        kwargsrepr=_short(app, unit.kwargs),
    )


def _short(app: Celery, arguments: object) -> str | None:
    """How Flower shows them. Celery's own way of cutting what is long costs half of a launch: only then."""
    shown = repr(arguments)
    return shown if len(shown) <= app.amqp.argsrepr_maxsize else None


# Redis forgets this key with everything else; a day without a reconciler looks the same and is as harmless.
SENTINEL, SENTINEL_S = "penstock:broker:sentinel", 24 * 3600


def broker_was_emptied() -> bool:
    """Whether a Redis broker lost what it held since this was last asked; other brokers keep their messages.

    Raises kombu's OperationalError when the broker is away.
    """
    with away_is_one_error(), current_app.connection_for_write() as connection:
        if connection.transport.driver_type != "redis":
            return False
        with connection.default_channel.conn_or_acquire() as client:
            if client.set(SENTINEL, "here", nx=True, ex=SENTINEL_S):
                return True
            client.expire(SENTINEL, SENTINEL_S)
            return False
