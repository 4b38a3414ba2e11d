"""The only place that talks to an API and names the HTTP library's exceptions.

A call has one deadline for everything: name, connection, handshake, headers and body. urllib3 knows none:
its read timeout starts again with every byte, so a server that drips one a second would hold a worker for
ever. Here every single read gets the time that is left.
"""

import contextvars
import functools
import http.client
import importlib.metadata
import io
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)
from urllib3.response import BaseHTTPResponse
from urllib3.util import Timeout

from resilience.errors import (
    ApiConnectionError,
    ApiTimeoutError,
    BadPayloadError,
    ConfigurationError,
    DNSError,
    NetworkError,
)
from tasks.collectors.oauth import TokenAuth
from tasks.collectors.spec import Answer, Api, Request
from tasks.settings import get_settings

MIB = 1 << 20
_SHORTEST = 6  # letters of what is taken for a secret in an answer
_CHUNK_BYTES = 1 << 16

_deadline: contextvars.ContextVar[float] = contextvars.ContextVar("deadline")


def _left_s() -> float:
    """Seconds until the deadline of the call this thread makes. Raises TimeoutError when there are none."""
    left_s = _deadline.get() - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the call's time is over")
    return left_s


class _TimedReads(io.RawIOBase):
    """A socket's raw file whose every read ends at the call's deadline."""

    def __init__(self, raw: Any, sock: socket.socket) -> None:
        super().__init__()
        self._raw = raw
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        self._sock.settimeout(_left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        plain: Any = self.fp
        self.fp = io.BufferedReader(_TimedReads(plain.detach(), sock))


def _resolve(host: str, port: int) -> list[Any]:
    """The addresses of a host. The system's resolver has no time limit, so a thread waits for it."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.append(error)
        except UnicodeError:
            found.append(socket.gaierror(socket.EAI_NONAME, "not a host name"))

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(_left_s())
    if not found:
        raise TimeoutError("no answer from the resolver")
    if isinstance(found[0], OSError):
        raise found[0]
    return list(found)


def _connect(host: str, port: int, connect_timeout_s: float) -> socket.socket:
    """Connect to one of the host's addresses; all tries together take `connect_timeout_s` at most."""
    until = min(time.monotonic() + connect_timeout_s, _deadline.get())
    failure: OSError | None = None
    addresses = _resolve(host.strip("[]"), port)
    for n, (family, kind, protocol, _, address) in enumerate(addresses):
        # An equal share for each that is left: a first address that swallows everything must not take it all.
        left_s = (until - time.monotonic()) / (len(addresses) - n)
        if left_s <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(left_s)
            sock.connect(address)
        except OSError as error:
            failure = error
            sock.close()
        else:
            sock.settimeout(_left_s())  # the TLS handshake is next
            return sock
    raise failure or TimeoutError("no time left to connect")


class _TimedConnect:
    """Connections whose resolving, connecting and reading keep to the call's deadline."""

    response_class = _TimedResponse
    host: str
    port: int
    timeout: float

    def _new_conn(self) -> socket.socket:
        try:
            return _connect(self.host, self.port, self.timeout)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error  # type: ignore[arg-type]
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "connecting took too long") from error
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error  # type: ignore[arg-type]


class _Connection(_TimedConnect, HTTPConnection):  # type: ignore[misc]
    pass


class _TlsConnection(_TimedConnect, HTTPSConnection):  # type: ignore[misc]
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection  # type: ignore[assignment]  # its own class does not fit either


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection  # type: ignore[assignment]  # as above


class _BodyTooLargeError(Exception):
    pass


class Client:
    """Connections that the threads of a process share; a forked child gets its own.

    Nothing is retried, no redirect followed, no proxy or `.netrc` taken from the environment. Credentials are
    added here, from what the Api's `auth` names, and go to the host of its `base_url` only.
    """

    def __init__(
        self,
        *,
        secrets: Callable[[str], str],
        connect_timeout_s: float = 5,
        call_timeout_s: float = 30,
        max_body_bytes: int = 32 * MIB,
        pool_size: int = 32,
    ) -> None:
        self._secrets = secrets
        self._connect_timeout_s = connect_timeout_s
        self._call_timeout_s = call_timeout_s
        self._max_body_bytes = max_body_bytes
        self._pool_size = pool_size
        self._pools: tuple[int, dict[tuple[str, str], HTTPConnectionPool]] = (0, {})
        self._headers = {
            "User-Agent": f"penstock/{_version()}",
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate",
            "Connection": "keep-alive",
        }

    def send(
        self,
        api: Api,
        request: Request,
        *,
        lease: object,
        timeout_s: float | None = None,
        access: str | None = None,
        max_body_bytes: int | None = None,
    ) -> Answer:
        """Make one admitted call and read its answer completely, whatever its status.

        `access` is the token for an Api that wants one. An error that repeats a secret is read without it.
        Takes `timeout_s` at most, all in all, and never longer than the Api or the installation allows.
        Raises ApiTimeoutError, DNSError, ApiConnectionError, and BadPayloadError for a body above the size
        limit; none of them shows a query or a header. Without a `lease` nothing is sent: TypeError.
        """
        if lease is None:
            raise TypeError("a call needs the lease that the guard gave for it")
        limit_s = min(each for each in (timeout_s, api.timeout_s, self._call_timeout_s) if each is not None)
        if limit_s <= 0:
            raise ApiTimeoutError(f"{api.name}: no time was left to call")
        used: list[str] = []
        headers, target = self._prepare(api, request, access, used)
        most_bytes = min(self._max_body_bytes, max_body_bytes or self._max_body_bytes)
        started = time.monotonic()
        token = _deadline.set(started + limit_s)
        try:
            answer = self._exchange(
                request, headers, target, limit_s=limit_s, started=started, most_bytes=most_bytes
            )
            return _without(used, answer) if answer.status >= 400 else answer
        except DecodeError:
            raise BadPayloadError(f"{api.name}: the body is not encoded as its header says") from None
        except _BodyTooLargeError as error:
            raise BadPayloadError(f"{api.name}: {error}") from None
        except (HTTPError, OSError) as error:
            # Their texts and causes hold the address with its query, and a query may hold a key.
            raise _network_error(api, error, limit_s, late=time.monotonic() >= _deadline.get()) from None
        finally:
            _deadline.reset(token)

    def close(self) -> None:
        """Close the connections of this process."""
        (pid, pools), self._pools = self._pools, (0, {})
        if pid == os.getpid():
            for pool in pools.values():
                pool.close()

    def _prepare(
        self, api: Api, request: Request, access: str | None, used: list[str]
    ) -> tuple[dict[str, str], str]:
        """Headers with credentials, and the path with its query; the secrets in them go into `used`."""

        def resolve(name: str) -> str:
            used.append(self._secrets(name))
            return used[-1]

        if _origin(request.url) != _origin(api.base_url):
            raise ConfigurationError(
                f"{api.name}: a request for another host than that of its base_url is not sent"
            )
        headers, params = {**self._headers, **request.headers}, dict(request.params)
        if isinstance(api.auth, TokenAuth):
            if access is None:
                raise ConfigurationError(f"{api.name}: a call without the access token is not sent")
            used.append(access)
            api.auth.carry(headers, access)
        elif api.auth is not None:
            api.auth.apply(headers, params, resolve)
        for name, secret in api.secret_headers.items():
            headers[name] = resolve(secret)
        _check_headers(api, headers)
        if request.body is not None:
            headers["Content-Length"] = str(len(request.body))
        # Names that differ only in case are one header, and the last one counts.
        distinct = {name.lower(): (name, value) for name, value in headers.items()}
        parts = urlsplit(request.url)
        query = "&".join(filter(None, (parts.query, urlencode(params))))
        return dict(distinct.values()), f"{parts.path or '/'}{'?' if query else ''}{query}"

    def _exchange(
        self,
        request: Request,
        headers: dict[str, str],
        target: str,
        *,
        limit_s: float,
        started: float,
        most_bytes: int,
    ) -> Answer:
        # The pool and not a session of `requests` sends: a session takes half as long again, follows, keeps
        # cookies, and reads without limit.
        response: Any = self._pool(request.url).urlopen(
            request.method,
            target,
            body=request.body,
            headers=headers,
            timeout=Timeout(connect=min(self._connect_timeout_s, limit_s), read=limit_s),
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
        )
        try:
            body = b"".join(_read(response, most_bytes))
        except BaseException:
            response.close()
            response.release_conn()
            raise
        return Answer(response.status, dict(response.headers), body, time.monotonic() - started)

    def _pool(self, url: str) -> HTTPConnectionPool:
        # No lock: a lock held at a fork would stay held in the child, and a pool made twice harms nobody.
        pid, pools = self._pools
        if pid != os.getpid():
            pools = {}
            self._pools = (os.getpid(), pools)
            # Its log shows addresses with their queries, and a query may hold a key.
            logging.getLogger("urllib3").setLevel(logging.ERROR)
        origin = _origin(url)
        pool = pools.get(origin)
        if pool is None:
            pool = pools[origin] = self._open(url)
        return pool

    def _open(self, url: str) -> HTTPConnectionPool:
        parts = urlsplit(url)
        assert parts.hostname
        if parts.scheme == "http":
            return _Pool(parts.hostname, parts.port, maxsize=self._pool_size)
        return _TlsPool(
            parts.hostname,
            parts.port,
            maxsize=self._pool_size,
            cert_reqs="CERT_REQUIRED",
            ca_certs=DEFAULT_CA_BUNDLE_PATH,  # the same ones on every host
        )


@functools.cache
def client() -> Client:
    """The client of this installation."""
    settings = get_settings()
    return Client(
        secrets=settings.secret,
        connect_timeout_s=settings.connect_timeout_s,
        call_timeout_s=settings.call_timeout_s,
        max_body_bytes=settings.max_body_mib * MIB,
        pool_size=max(settings.concurrency, 4),
    )


def _read(response: BaseHTTPResponse, most_bytes: int) -> Iterator[bytes]:
    size = 0
    while chunk := response.read(_CHUNK_BYTES, decode_content=True):
        size += len(chunk)
        if size > most_bytes:
            raise _BodyTooLargeError(f"the body is larger than {most_bytes / MIB:g} MiB")
        yield chunk


def _without(secrets: list[str], answer: Answer) -> Answer:
    """An answer that repeats no secret: errors are shown."""
    body = answer.body
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            body = body.replace(secret.encode(), b"***")
    return answer if body is answer.body else replace(answer, body=body)


def _network_error(api: Api, error: BaseException, limit_s: float, *, late: bool) -> NetworkError:
    host = api.host or urlsplit(api.base_url).hostname
    chain = list(_chain(error))
    if any(isinstance(each, NameResolutionError | socket.gaierror) for each in chain):
        return DNSError(f"{api.name}: the name {host} could not be resolved")
    # NewConnectionError, a refusal, is a ConnectTimeoutError for historical reasons.
    if not late and any(type(each) is ConnectTimeoutError for each in chain):
        return ApiTimeoutError(f"{api.name}: no connection to {host} came about in time")
    if late or any(isinstance(each, ReadTimeoutError | TimeoutError) for each in chain):
        return ApiTimeoutError(f"{api.name}: {host} did not answer within {limit_s:g} s")
    reason = next((each.strerror for each in chain if isinstance(each, OSError) and each.strerror), None)
    what = reason or type(chain[-1]).__name__
    return ApiConnectionError(f"{api.name}: the connection to {host} failed: {what}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        reason = getattr(error, "reason", None)  # urllib3 keeps an error there, ssl a text
        error = (
            error.__cause__ or error.__context__ or (reason if isinstance(reason, BaseException) else None)
        )


def _check_headers(api: Api, headers: dict[str, str]) -> None:
    for name, value in headers.items():
        # What is underneath would refuse such a value too, but shows it, and it may be a secret.
        if not value.isprintable() or not value.isascii():
            raise ConfigurationError(f"{api.name}: what header {name} is given cannot stand in a header")


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _version() -> str:
    try:
        return importlib.metadata.version("penstock")
    except importlib.metadata.PackageNotFoundError:
        return "source"
