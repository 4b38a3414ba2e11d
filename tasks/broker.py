"""The broker's own ways: what it raises when it is away, and how RabbitMQ confirms a wave."""

import contextlib
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from celery import Celery, current_app
from kombu import Connection
from kombu.exceptions import OperationalError

CONFIRM_S = 10.0


@contextlib.contextmanager
def away_is_one_error() -> Iterator[None]:
    """Whatever says that the broker is away or has thrown us out is raised as kombu's OperationalError.

    kombu itself translates only what it tries more than once.
    """
    lost = current_app.connection_for_write()  # not connected: it only knows its transport's errors
    try:
        yield
    except OperationalError:
        raise
    except (*lost.connection_errors, *lost.channel_errors) as error:
        raise OperationalError(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def batch(app: Celery, queues: set[str]) -> Iterator[Any]:
    """Yield a producer whose messages go out together; they have reached the broker when this is left.

    On Redis kombu's batch does it. RabbitMQ is asked to confirm them all at the end: to wait for each
    would take ten times as long. Raises OperationalError, or what the connection raises, when it is away.
    """
    with app.producer_pool.acquire(block=True) as producer:
        producer.connection.ensure_connection(timeout=2)  # sooner said than by the backend
        if producer.supports_batch_publish:
            with producer.batch():
                yield producer
            return
        with _confirmed(app, producer, queues) as channel:
            yield app.amqp.Producer(channel, auto_declare=False)


@contextlib.contextmanager
def _confirmed(app: Celery, producer: Any, queues: set[str]) -> Iterator[Any]:
    connection: Connection = producer.connection
    # A connection from the pool may have been closed by a broker that has restarted since.
    channel = connection.ensure(producer, connection.channel, max_retries=1, interval_start=0)()
    try:
        for name in queues:
            # A broker that came back empty would drop what goes to a queue that it does not know.
            app.amqp.queues[name](channel).declare()
        confirms = Confirms(channel)
        yield channel
        confirms.wait(connection)
    except BaseException:
        connection.collect()  # without a word: whoever does not answer would not answer to a goodbye either
        raise
    channel.close()


class Confirms:
    """Counts what is published on a channel, and what RabbitMQ says of it."""

    def __init__(self, channel: Any) -> None:
        self.open: set[int] = set()
        self.least = 1  # all before it are confirmed
        self.refused = False
        self._tags = count(1)
        self._publish = type(channel).basic_publish.__get__(channel)  # not the one that waits each time
        channel.confirm_select()
        channel.events["basic_ack"].add(self.on_ack)
        channel.events["basic_nack"].add(self.on_nack)
        channel.basic_publish = self.publish

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        self.open.add(next(self._tags))
        return self._publish(*args, **kwargs)

    def on_ack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - as amqp calls it
        if multiple:
            self.open.difference_update(range(self.least, tag + 1))
            self.least = tag + 1
        else:
            self.open.discard(tag)

    def on_nack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001
        self.refused = True
        self.on_ack(tag, multiple)

    def wait(self, connection: Connection) -> None:
        deadline_s = time.monotonic() + CONFIRM_S
        while self.open:
            connection.drain_events(timeout=max(0.01, deadline_s - time.monotonic()))
        if self.refused:
            raise OperationalError("RabbitMQ could not keep a message")
