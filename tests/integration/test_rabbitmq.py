"""Waves through a real RabbitMQ that throws us out, loses its queues and refuses messages."""

import urllib.parse

import pytest
from kombu.exceptions import OperationalError

from tasks.broker import away_is_one_error
from tasks.heartbeat import LEASE
from tasks.models import units, workers
from tasks.reconcile import ready_messages, reconcile
from tasks.runs import carry_on, start
from tasks.store import db_now
from tests.conftest import rabbitmqctl

BINANCE = "collect.binance"
DATABASES = ("sqlite",)


@pytest.fixture
def vhost(rabbitmq_url):
    """The vhost's name."""
    return urllib.parse.urlsplit(rabbitmq_url).path[1:]


@pytest.fixture
def installation(installation, rabbitmq_url):
    """With RabbitMQ as its broker."""
    installation.configure(PENSTOCK_BROKER_URL=rabbitmq_url)
    return installation


@pytest.fixture
def inbox(inbox):
    """With every queue declared and empty."""
    with inbox.app.connection_for_write() as connection:
        for queue in inbox.app.amqp.queues.values():
            queue(connection.default_channel).declare()
            queue(connection.default_channel).purge()
    return inbox


@pytest.fixture
def ask(fleet):
    """A run of so many units; its id."""
    return lambda count: fleet.run("binance.klines", [f"COIN{n}USDT" for n in range(count)])


def test_queues_are_classic_whatever_the_default(vhost, inbox):
    """In a quorum queue fresh units wait behind retries."""
    said = rabbitmqctl("list_queues", "-p", vhost, "--no-table-headers", "type").stdout.split()
    assert len(said) >= 4
    assert set(said) == {"classic"}
    assert inbox.app.amqp.queues[BINANCE].queue_arguments == {"x-queue-type": "classic"}


def throw_out(vhost):
    """Close every connection to the vhost."""
    rabbitmqctl("close_all_connections", "--vhost", vhost, "a test").check_returncode()


def waiting(queue=BINANCE):
    return ready_messages({queue})[queue]


def test_a_wave_has_arrived_when_it_is_launched(fleet, ask, inbox):
    """Every message of it is there, persistent, and leads to the chord's body."""
    run = ask(5)
    assert waiting() == 5
    message = inbox.take(BINANCE)
    assert message.properties["delivery_mode"] == 2
    inbox.run(message)
    for _ in range(4):
        inbox.deliver(BINANCE)
    assert inbox.deliver("ctl") == ("SUCCESS", None)
    assert fleet.result(run)["outcome"] == "ok"


def test_a_wave_after_the_connections_were_closed(ask, vhost):
    """The pool's connection is dead and does not know it; the wave goes out on a new one at once."""
    ask(3)
    throw_out(vhost)
    ask(3)
    assert waiting() == 6


def test_a_wave_to_a_queue_that_is_gone(ask, inbox):
    """RabbitMQ would drop the messages and confirm them; so the queue is there before they are."""
    ask(1)
    with inbox.app.connection_for_write() as connection:
        connection.default_channel.queue_delete(BINANCE)
    assert waiting() == 0
    ask(3)
    assert waiting() == 3


def test_a_wave_that_rabbitmq_refuses_waits_again(fleet, ask, inbox, monkeypatch):
    """A queue that is full by its policy: nobody has to find out that the messages are lost."""
    queue = inbox.app.amqp.queues[BINANCE]
    limits = {"x-max-length": 2, "x-overflow": "reject-publish"}
    with monkeypatch.context() as full, inbox.app.connection_for_write() as connection:
        full.setattr(queue, "queue_arguments", queue.queue_arguments | limits)
        connection.default_channel.queue_delete(BINANCE)
        with pytest.raises(OperationalError, match="could not keep a message"):
            ask(4)
        connection.default_channel.queue_delete(BINANCE)
    assert [row["state"] for row in fleet.units(1)] == ["waiting"] * 4
    carry_on(1)
    assert waiting() == 4


def test_a_message_on_a_dead_connection(fleet, vhost, inbox):
    """The command says that the broker is away instead of ending in a traceback; the next one gets through."""
    run = fleet.order("binance.klines", ["BTCUSDT"])
    assert start(run)
    throw_out(vhost)
    asked = [start(run), start(run)]
    assert asked[-1]
    assert waiting("ctl") == 1 + sum(asked)  # what was said to be sent is there


def test_a_reconciler_on_a_dead_connection(fleet, ask, vhost, inbox):
    """What was purged is sent again at once, though the connection that sent it last time is closed."""
    run = ask(2)
    lose(fleet, run)
    assert reconcile()["resent"] == waiting() == 2
    lose(fleet, run)
    throw_out(vhost)
    assert reconcile()["resent"] == waiting() == 2


def lose(fleet, run):
    """The units are overdue, and their messages are nowhere."""
    with fleet.inbox.app.connection_for_write() as connection:
        connection.default_channel.queue_purge(BINANCE)
    fleet.installation.change(units, units.c.run == run, expected_at=db_now(-10))
    fleet.installation.change(workers, workers.c.id == LEASE, beat_at=db_now(-10))


def test_what_rabbitmq_says_is_one_error(inbox):
    """Whatever the class, and with its words."""
    with (
        pytest.raises(OperationalError, match="no queue 'nowhere'"),
        away_is_one_error(),
        inbox.app.connection_for_read() as connection,
    ):
        connection.default_channel.basic_get("nowhere")
