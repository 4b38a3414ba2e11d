"""Our Redis transport takes several messages at once, and leaves in Redis what kombu would."""

import contextlib
import json
import threading

import kombu
import pytest
import redis
from celery import Celery
from celery.events.dispatcher import EventDispatcher
from kombu.asynchronous import Hub
from kombu.transport import redis as kombus

from workers import consumer, transport

UNACKED, INDEX = "unacked", "unacked_index"


@pytest.fixture
def client(each_redis_url):
    """The broker, seen from outside."""
    with redis.Redis.from_url(each_redis_url) as made:
        yield made


@pytest.fixture
def connect(each_redis_url):
    """Connections by transport, closed at the end."""
    with contextlib.ExitStack() as stack:

        def made(of=transport.Transport):
            return stack.enter_context(kombu.Connection(each_redis_url, transport=of))

        yield made


def sent(connection, queue, count, first=0):
    """Put messages into a queue, as any producer does."""
    producer = connection.Producer()
    for n in range(first, first + count):
        producer.publish({"n": n}, routing_key=queue, declare=[kombu.Queue(queue)])


def taking(connection, queues, *, prefetch):
    """Consume until nothing comes any more; the messages in the order in which they came."""
    got = []
    channel = connection.channel()
    channel.basic_qos(0, prefetch)
    made = kombu.Consumer(channel, [kombu.Queue(name) for name in queues], on_message=got.append)
    made.consume()
    with contextlib.suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=0.3)
    return channel, got


def numbers(messages):
    return [message.payload["n"] for message in messages]


def noted(client):
    """What stands as unacknowledged, by delivery tag, decoded."""
    return {tag: json.loads(value) for tag, value in client.hgetall(UNACKED).items()}


def test_messages_come_in_their_order_and_all_of_them(connect, client):
    """More than go together, and more than there is room for at first."""
    connection = connect()
    sent(connection, "a", 40)
    _, got = taking(connection, ["a"], prefetch=40)
    assert numbers(got) == list(range(40))
    assert client.llen("a") == 0


def test_no_more_are_taken_than_there_is_room_for(connect, client):
    """A worker that dies parks what it holds, so it must not hold more than it runs."""
    connection = connect()
    sent(connection, "a", 20)
    channel, got = taking(connection, ["a"], prefetch=5)
    assert numbers(got) == [0, 1, 2, 3, 4]
    assert client.llen("a") == 15
    assert client.hlen(UNACKED) == client.zcard(INDEX) == len(channel.qos._delivered) == 5


def test_queues_take_turns(connect):
    """No API's queue starves another's, though several messages are taken at once."""
    connection = connect()
    sent(connection, "a", 20)
    sent(connection, "b", 20, first=100)
    _, got = taking(connection, ["a", "b"], prefetch=9)
    assert 4 <= sum(n >= 100 for n in numbers(got)) <= 5


def test_what_is_noted_is_what_kombu_notes(connect, client):
    """Else the one could not give back what the other has lost."""
    notes = []
    for of in (transport.Transport, kombus.Transport):
        client.flushall()
        connection = connect(of)
        sent(connection, "a", 3)
        channel, got = taking(connection, ["a"], prefetch=3)
        assert {message.delivery_tag for message in got} == {tag.decode() for tag in noted(client)}
        assert set(noted(client)) == set(client.zrange(INDEX, 0, -1))
        for message, _exchange, _key in noted(client).values():
            message["properties"].pop("delivery_tag")
        notes.append(
            sorted(
                (message["body"], set(message), set(message["properties"]), exchange, key)
                for message, exchange, key in noted(client).values()
            )
        )
        channel.close()
    assert notes[0] == notes[1]


def test_what_a_dead_worker_held_is_given_back_by_kombu(connect, client):
    """Its visibility timeout finds our notes, and the messages are what they were."""
    connection = connect()
    sent(connection, "a", 6)
    channel, _ = taking(connection, ["a"], prefetch=6)
    channel.qos._on_collect.cancel()  # as SIGKILL does
    theirs = connect(kombus.Transport).channel()
    for tag in client.zrange(INDEX, 0, -1):
        theirs.qos.restore_by_tag(tag.decode())
    assert client.llen("a") == 6
    assert not client.exists(UNACKED, INDEX)
    _, again = taking(connect(kombus.Transport), ["a"], prefetch=6)
    assert sorted(numbers(again)) == list(range(6))
    assert all(message.headers["redelivered"] for message in again)
    channel.qos._delivered.clear()


def test_a_message_that_cannot_be_read_is_left_to_kombu(connect, client):
    """It is neither lost nor noted by the script."""
    connection = connect()
    sent(connection, "a", 1)
    client.lpush("a", "no message")
    with pytest.raises(json.JSONDecodeError):  # what kombu makes of it
        taking(connection, ["a"], prefetch=5)
    assert client.hlen(UNACKED) == 1


def test_a_full_redis_refuses_and_keeps_the_messages(connect, client):
    """Taken and noted nowhere they would be gone."""
    connection = connect()
    sent(connection, "a", 4)
    channel = connection.channel()
    channel.basic_qos(0, 4)
    kombu.Consumer(channel, [kombu.Queue("a")], on_message=lambda _: None).consume()
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            channel._take(4)
    finally:
        client.config_set("maxmemory", 0)
    assert client.llen("a") == 4


def test_acknowledgements_go_together_with_the_next_turn_of_the_loop(connect, client):
    """And what is acknowledged makes room at once."""
    connection, hub, got = connect(), Hub(), []
    sent(connection, "a", 8)
    channel = connection.channel()
    channel.basic_qos(0, 4)
    kombu.Consumer(channel, [kombu.Queue("a")], on_message=got.append).consume()
    connection.register_with_event_loop(hub)
    loop = hub.create_loop()
    while len(got) < 4:
        next(loop)
    for message in list(got):
        message.ack()
    assert client.hlen(UNACKED) == 4
    assert channel.qos.can_consume()
    while len(got) < 8:
        next(loop)
    assert set(noted(client)) == {message.delivery_tag.encode() for message in got[4:]}
    got[4].ack()
    channel.close()
    assert client.hlen(UNACKED) == 0
    assert client.llen("a") == 3, "what was not acknowledged goes back when the channel closes"
    hub.close()


def test_an_acknowledgement_by_a_thread_wakes_the_loop(connect):
    """Else the slot of a thread that has ended stays empty until the next timer."""
    connection, hub, got = connect(), Hub(), []
    sent(connection, "a", 2)
    channel = connection.channel()
    channel.basic_qos(0, 1)
    kombu.Consumer(channel, [kombu.Queue("a")], on_message=got.append).consume()
    connection.register_with_event_loop(hub)
    hub.timer.clear()
    hub.call_later(60, lambda: pytest.fail("the loop slept until a timer was due"))
    loop = hub.create_loop()
    while not got:
        next(loop)
    ending = threading.Timer(0.2, got[0].ack)  # while the loop sleeps, as a task that ends
    ending.start()
    while len(got) < 2:
        next(loop)
    ending.join()
    hub.close()


def test_who_ends_after_the_connection_was_lost_can_still_acknowledge(connect):
    """The channel is closed by then; a worker must survive it."""
    connection, hub, got = connect(), Hub(), []
    sent(connection, "a", 1)
    channel = connection.channel()
    kombu.Consumer(channel, [kombu.Queue("a")], on_message=got.append).consume()
    connection.register_with_event_loop(hub)
    loop = hub.create_loop()
    while not got:
        next(loop)
    channel.close()
    got[0].ack_log_error(None, ())
    hub.close()


def test_acknowledgements_that_cannot_be_sent_hinder_no_close(connect, monkeypatch):
    """The messages come again, as kombu's do."""
    connection, hub, got = connect(), Hub(), []
    sent(connection, "a", 1)
    channel = connection.channel()
    kombu.Consumer(channel, [kombu.Queue("a")], on_message=got.append).consume()
    connection.register_with_event_loop(hub)
    loop = hub.create_loop()
    while not got:
        next(loop)
    got[0].ack()

    def away():
        raise redis.ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(channel.qos, "pipe_or_acquire", away)
        channel.qos.restore_unacked_once()
    hub.close()


def test_an_acknowledgement_without_a_loop_goes_at_once(connect, client):
    """There would be no next turn to send it."""
    connection = connect()
    sent(connection, "a", 2)
    _, got = taking(connection, ["a"], prefetch=2)
    got[0].ack()
    assert set(noted(client)) == {got[1].delivery_tag.encode()}
    assert client.zcard(INDEX) == 1


def test_commands_share_a_client_until_its_pool_is_replaced(connect):
    """BRPOP keeps its own; after a fork or a lost server nobody writes to old connections."""
    channel = connect().channel()
    with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
        assert first is second
        assert first is not channel.client
    channel._after_fork()
    with channel.conn_or_acquire() as third:
        assert third is not first
        assert third.connection_pool is channel.pool is not first.connection_pool
        assert third.ping()


def test_only_redis_is_served_by_it():
    """TLS stays TLS, and RabbitMQ has kombu's own transport."""
    transport.use()
    for url in ("redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0?ssl_cert_reqs=CERT_REQUIRED"):
        assert kombu.Connection(url).get_transport_cls() is transport.Transport
        assert bool(kombu.Connection(url).ssl) == url.startswith("rediss")
    assert kombu.Connection("amqp://").get_transport_cls().__module__ == "kombu.transport.pyamqp"


class Dispatcher(EventDispatcher):
    """Says from which thread it is asked to publish, and how many events at once."""

    def __init__(self, connection, on_send_buffered):
        super().__init__(
            connection,
            app=Celery(set_as_current=False),
            buffer_group=["task"],
            on_send_buffered=on_send_buffered,
        )
        self.published = []

    def _publish(self, event, producer, routing_key, **options):
        self.published.append((threading.current_thread(), len(event)))


@pytest.fixture
def looping():
    """A hub, and a consumer that it serves."""
    hub, worker = Hub(), consumer.Consumer.__new__(consumer.Consumer)
    worker.hub = hub

    class Blueprint:
        send_all = shutdown = staticmethod(lambda *_args, **_options: None)

    worker.blueprint = Blueprint()
    worker.event_dispatcher = Dispatcher(kombu.Connection("memory://"), worker.on_send_event_buffered)
    worker.register_with_event_loop(hub)
    yield hub, worker
    hub.close()


def test_events_wait_for_the_timer_and_for_the_end(looping):
    """An event by itself wakes nobody; the timer and the shutdown publish."""
    hub, worker = looping
    dispatcher = worker.event_dispatcher
    dispatcher.send("task-received")
    assert not hub._ready
    assert not dispatcher.published
    (entry,) = hub.timer.queue
    entry.entry()
    assert len(dispatcher.published) == 1
    dispatcher.send("task-succeeded")
    worker.shutdown()
    assert len(dispatcher.published) == 2


def test_threads_publish_no_events(looping):
    """However many there are: the loop reads the connection, so what a thread waits for might be taken from it."""
    hub, worker = looping
    dispatcher = worker.event_dispatcher
    threads = [
        threading.Thread(target=lambda: [dispatcher.send("task-succeeded") for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (entry,) = hub.timer.queue
    entry.entry()
    assert dispatcher.published == [(threading.main_thread(), 2000)]
