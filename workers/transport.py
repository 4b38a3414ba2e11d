"""kombu's Redis transport with fewer round trips for a busy worker.

A worker's main thread serves all its pool: it fetches, notes, and acknowledges every message, and kombu waits
for Redis at each of these steps. Here the messages that there is room for come together, each noted as
unacknowledged in the step that takes it from its queue; acknowledgements of one turn of the event loop go
together; and commands share a client, which kombu builds anew for each. What lies in Redis is what kombu
expects to find, so workers and senders with and without this may share a broker.
"""

import time
from contextlib import suppress
from functools import cached_property
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.json import loads
from vine import promise

TOGETHER = 16  # messages in one step: bounds how long Redis and the event loop are held

# Takes messages from the queues in turn, and notes each as kombu does (QoS.append): the message with its
# exchange and routing key under its delivery tag, and the tag by time. It is noted before it is taken, so
# that a Redis that is full refuses before anything is lost. What cannot be read is left to kombu.
# KEYS: hash of what is unacknowledged, its index by time, queues. ARGV: how many at most, now in seconds.
# Returns queue number, message, queue number, message …
TAKE = """
local taken, more = {}, true
while more do
    more = false
    for number = 3, #KEYS do
        if #taken >= 2 * tonumber(ARGV[1]) then return taken end
        local message = redis.call("LINDEX", KEYS[number], -1)
        if message then
            local readable, content = pcall(cjson.decode, message)
            local properties = readable and type(content) == "table" and content.properties
            local to = properties and properties.delivery_info
            if not (to and properties.delivery_tag and to.exchange and to.routing_key) then
                return taken
            end
            local route = string.sub(cjson.encode({to.exchange, to.routing_key}), 2)
            redis.call("HSET", KEYS[1], properties.delivery_tag, "[" .. message .. "," .. route)
            redis.call("ZADD", KEYS[2], ARGV[2], properties.delivery_tag)
            redis.call("RPOP", KEYS[number])
            taken[#taken + 1] = number - 3
            taken[#taken + 1] = message
            more = true
        end
    end
end
return taken
"""


class QoS(redis.QoS):  # type: ignore[misc]
    """Knows which messages are noted already, and gathers acknowledgements under an event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.noted: set[str] = set()
        self._acks: list[str] = []
        self._sending = promise(self.send_acks)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message; one that was taken by the script stands in Redis already."""
        if delivery_tag in self.noted:
            self.noted.discard(delivery_tag)
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge in the next turn of the event loop; without a loop, or at the end of one, at once."""
        connection = self.channel.connection  # None once the channel is closed, as after a lost connection
        if connection is None or connection.loop is None:
            super().ack(delivery_tag)
            return
        self._acks.append(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        # A thread of the pool says so while the loop sleeps: unless it is woken, the free slot stays empty.
        connection.loop.call_soon(self._sending)

    def send_acks(self) -> None:
        """Acknowledge what has gathered. If Redis is lost meanwhile it delivers them again, as kombu does."""
        tags, self._acks = self._acks, []
        if tags:
            with self.pipe_or_acquire() as pipe:
                pipe.zrem(self.unacked_index_key, *tags).hdel(self.unacked_key, *tags).execute()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """The channel closes: what is done should not be delivered again, if Redis can still be told."""
        with suppress(*self.channel.connection_errors):
            self.send_acks()
        super().restore_unacked_once(stderr)


class Channel(redis.Channel):  # type: ignore[misc]
    """A channel whose commands share a client, and which takes several messages at once."""

    QoS = QoS
    _shared: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        if asynchronous:  # BRPOP and pub/sub hold a connection, so each has a client of its own
            return super()._create_client(asynchronous=True)
        # Threads may share a client. A fork or a lost server replaces the pool, and the client with it.
        if self._shared is None or self._shared.connection_pool is not self.pool:
            self._shared = super()._create_client()
        return self._shared

    def _brpop_read(self, **options: Any) -> Any:
        """BRPOP waits for the first message; what else there is room for follows."""
        delivered = super()._brpop_read(**options)
        room = self.qos.can_consume_max_estimate()
        if room and not self._closing and not self.global_keyprefix:  # a prefix is kombu's business
            self._take(min(room, TOGETHER))
        return delivered

    @cached_property
    def _taking(self) -> Any:
        return self._create_client().register_script(TAKE)

    def _take(self, room: int) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        keys = [self.unacked_key, self.unacked_index_key, *queues]
        found = self._taking(keys, [room, time.time()], client=self._create_client())
        numbers, contents = found[::2], found[1::2]
        messages = [(queues[n], loads(each)) for n, each in zip(numbers, contents, strict=True)]
        self.qos.noted.update(message["properties"]["delivery_tag"] for _, message in messages)
        for queue, message in messages:
            self.connection._deliver(message, queue)  # noqa: SLF001 - as kombu's _brpop_read does


class Transport(redis.Transport):  # type: ignore[misc]
    """kombu's transport with the channel above."""

    Channel = Channel
    loop: Any = None

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """From now on there is a next turn."""
        super().register_with_event_loop(connection, loop)
        self.loop = loop


def use() -> None:
    """Serve redis:// and rediss:// by this transport, in this process; other brokers are untouched.

    By their alias and not by `broker_transport`, which would name it to RabbitMQ as well and hide from
    kombu that rediss:// means TLS.
    """
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{Transport.__module__}:{Transport.__qualname__}"
