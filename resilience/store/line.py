"""A connection to Redis without redis-py around every command, which takes longer than the kernel does."""

import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Self

import hiredis
from redis import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

_AT_ONCE = 65_536


class Line:
    """A connection for one question at a time. One that has raised anything is of no more use."""

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._connection = connection  # it closes the socket with itself
        self._socket = connection._sock  # noqa: SLF001 - redis-py has no other way to it
        self._reader = hiredis.Reader(replyError=error_of)
        _wait_in_the_kernel(self._socket, timeout_s)

    @classmethod
    def open(cls, pool: ConnectionPool, timeout_s: float) -> Self:
        """Connect as the pool would (addresses, TLS, passwords). Raises redis-py's exceptions."""
        connection: Any = pool.make_connection()
        connection.connect()
        return cls(connection, timeout_s)

    def ask(self, command: bytes) -> Any:
        """The reply to a command. An error reply is returned, not raised."""
        reader, connection = self._reader, self._socket
        reply: Any = False  # as long as the reader has not all of one
        try:
            connection.sendall(command)
            while reply is False:
                if not (data := connection.recv(_AT_ONCE)):
                    raise RedisConnectionError("Redis has closed the connection")
                reader.feed(data)
                reply = reader.gets()
        except (TimeoutError, BlockingIOError) as error:
            raise RedisTimeoutError("Redis did not answer in time") from error
        except OSError as error:
            raise RedisConnectionError(f"the connection to Redis was lost: {error}") from error
        return reply

    def ask_all(self, commands: Sequence[bytes]) -> list[Any]:
        """The replies to several commands that are sent as one message."""
        replies = [self.ask(b"".join(commands))]
        while len(replies) < len(commands):
            reply = self._reader.gets()
            replies.append(self.ask(b"") if reply is False else reply)
        return replies

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


def error_of(text: str) -> Exception:
    """An error reply."""
    return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)


def _wait_in_the_kernel(connection: Any, timeout_s: float) -> None:
    """Let the kernel end a wait: Python would ask it before every send and receive whether it may.

    Only a socket of the kernel's own kind can: neither one with TLS nor what gevent puts in its place.
    """
    if os.name == "posix" and type(connection).__module__ == "socket":
        connection.settimeout(None)
        seconds, rest = divmod(timeout_s, 1)
        wait = struct.pack("ll", int(seconds), max(int(rest * 1e6), not seconds))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
