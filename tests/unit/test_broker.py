"""What RabbitMQ confirms, in any order and number at once."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import OperationalError

from tasks.broker import Confirms


class Channel:
    """As much of amqp's as is used."""

    def __init__(self):
        self.events, self.published, self.confirming = defaultdict(set), [], False

    def confirm_select(self):
        self.confirming = True

    def basic_publish(self, message):
        self.published.append(message)

    def say(self, kind, tag, multiple):
        for heard in self.events[kind]:
            heard(tag, multiple)


class Connection:
    """Says one thing after the other."""

    def __init__(self, channel, said):
        self.channel, self.said = channel, list(said)

    def drain_events(self, timeout):
        if not self.said:
            raise TimeoutError
        self.channel.say(*self.said.pop(0))


def confirms(count):
    channel = Channel()
    made = Confirms(channel)
    assert channel.confirming
    for n in range(count):
        channel.basic_publish(n)
    assert channel.published == list(range(count))
    return channel, made


@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=30))
def test_open_is_what_no_answer_covers(answers):
    """An answer is for one message, or for all up to it."""
    channel, made = confirms(12)
    covered = set()
    for tag, multiple in answers:
        channel.say("basic_ack", tag, multiple)
        covered |= set(range(1, tag + 1)) if multiple else {tag}
        assert made.open == set(range(1, 13)) - covered


def test_wait_ends_with_the_last_answer():
    """And not with an earlier one; more may lie there for whoever comes next."""
    channel, made = confirms(3)
    connection = Connection(
        channel, [("basic_ack", 3, False), ("basic_ack", 2, True), ("basic_ack", 9, True)]
    )
    made.wait(connection)
    assert len(connection.said) == 1


def test_silence_is_an_error():
    """The time limit of the connection's is passed on."""
    channel, made = confirms(2)
    with pytest.raises(TimeoutError):
        made.wait(Connection(channel, [("basic_ack", 1, False)]))


def test_a_refusal_is_an_error():
    """Even among many that went well."""
    channel, made = confirms(3)
    with pytest.raises(OperationalError, match="could not keep"):
        made.wait(Connection(channel, [("basic_nack", 1, False), ("basic_ack", 3, True)]))
