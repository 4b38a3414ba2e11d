"""The HTTP client against small servers that do what servers should not."""

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from resilience.errors import (
    ApiConnectionError,
    APIError,
    ApiTimeoutError,
    BadPayloadError,
    ConfigurationError,
    DNSError,
)
from tasks.collectors import Answer, Api, ApiKey, Basic, Bearer, Request
from tasks.http import Client

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
LEASE = object()

Serve = Callable[[socket.socket, bytes], None]


class Server:
    """Accepts on a free loopback port and hands each request, once read, to `serve`."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.requests: list[bytes] = []
        self.connections = 0
        self.stopped = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(0.1)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        while not self.stopped.is_set():
            try:
                peer, _ = self.listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            thread = threading.Thread(target=self.talk, args=(peer,))
            self.threads.append(thread)
            thread.start()

    def talk(self, peer: socket.socket) -> None:
        peer.settimeout(0.1)
        with peer:
            data = b""
            while not self.stopped.is_set():
                try:
                    more = peer.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not more:
                    return
                data += more
                if data.endswith(b"\r\n\r\n"):
                    self.requests.append(data)
                    data = b""
                    try:
                        self.serve(peer, self.requests[-1])
                    except OSError:
                        return

    def drip(self, peer: socket.socket, data: bytes, every_s: float) -> None:
        for n in range(len(data)):
            if self.stopped.wait(every_s):
                return
            peer.sendall(data[n : n + 1])

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        self.listener.close()


@contextmanager
def serving(serve: Serve) -> Iterator[Server]:
    server = Server(serve)
    try:
        yield server
    finally:
        server.stop()


def answer_with(data: bytes) -> Serve:
    return lambda peer, request: peer.sendall(data)


SECRETS = {"KEY": "s3cr3t-key", "USER": "ada", "PASSWORD": "s3cr3t-word", "BROKEN": "s3cr3t\n"}


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(secrets=SECRETS.__getitem__, connect_timeout_s=2, call_timeout_s=10, max_body_bytes=100_000)
    yield made
    made.close()


def get(client: Client, url: str, *, timeout_s: float = 5, params=None, **options) -> Answer:
    api = Api("shop", url, **options)
    return client.send(api, Request("GET", f"{url}/bars", params or {}, {}), lease=LEASE, timeout_s=timeout_s)


def test_an_answer_comes_back_whole(client):
    """Status, headers in any case, body, time taken."""
    body = b'HTTP/1.1 404 Gone\r\nX-Used: 7\r\nContent-Length: 4\r\n\r\n"no"'
    with serving(answer_with(body)) as server:
        answer = get(client, server.url, params={"symbol": "A B", "limit": "1"})
    assert (answer.status, answer.headers["x-USED"], answer.body) == (404, "7", b'"no"')
    assert 0 < answer.elapsed_s < 5
    head = server.requests[0].decode()
    assert head.startswith("GET /bars?symbol=A+B&limit=1 HTTP/1.1\r\n")
    assert "User-Agent: penstock/" in head


def test_connections_are_kept(client):
    """Ten calls in a row, one connection."""
    with serving(answer_with(OK)) as server:
        for _ in range(10):
            get(client, server.url)
        assert server.connections == 1


def test_a_connection_that_died_idle_is_replaced(client):
    """The server may close what nobody used; the next call does not notice."""

    def once(peer: socket.socket, request: bytes) -> None:
        peer.sendall(OK)
        peer.close()

    with serving(once) as server:
        assert get(client, server.url).body == b"[]"
        time.sleep(0.3)
        assert get(client, server.url).body == b"[]"
        assert server.connections == 2


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nX-Slow: " + b"y" * 1000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"[" * 1000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"[" * 1000,
    ],
    ids=["headers", "body", "chunks"],
)
def test_a_dripping_server_holds_nobody(client, data):
    """Every byte comes well in time; the call as a whole does not, and ends at its deadline."""
    server: Server
    start = data.index(b"\r\n\r\n") + 4 if b"\r\n\r\n" in data else 20

    def serve(peer: socket.socket, request: bytes) -> None:
        peer.sendall(data[:start])
        server.drip(peer, data[start:], 0.05)

    with serving(serve) as server:
        started = time.monotonic()
        with pytest.raises(ApiTimeoutError, match=r"127.0.0.1 did not answer within 0.6 s"):
            get(client, server.url, timeout_s=0.6)
        assert 0.5 < time.monotonic() - started < 2


def test_silence_ends_at_the_deadline_too(client):
    """A server that accepts and says nothing."""
    with serving(lambda peer, request: None) as server:
        started = time.monotonic()
        with pytest.raises(ApiTimeoutError):
            get(client, server.url, timeout_s=0.4)
        assert time.monotonic() - started < 2


def test_a_handshake_that_never_comes(client):
    """TLS to a server that accepts and says nothing."""
    with serving(lambda peer, request: None) as server:
        started = time.monotonic()
        with pytest.raises(ApiTimeoutError):
            get(client, server.url.replace("http:", "https:"), timeout_s=0.4)
        assert time.monotonic() - started < 2


def test_a_server_without_tls(client):
    """It answers a handshake with something else: a connection error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ApiConnectionError, match="the connection to 127"):
            get(client, f"https://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_a_slow_call_does_not_shorten_the_next(client):
    """What was left of one deadline is nothing to the call after it."""
    slow = [True]

    def serve(peer: socket.socket, request: bytes) -> None:
        if slow.pop() if slow else False:
            time.sleep(0.3)
        peer.sendall(OK)

    with serving(serve) as server:
        get(client, server.url, timeout_s=0.6)
        slow.append(True)
        assert get(client, server.url, timeout_s=5).body == b"[]"
        assert server.connections == 1


def test_the_api_may_allow_less(client):
    """The shortest of the three times counts."""
    with serving(lambda peer, request: None) as server:
        started = time.monotonic()
        with pytest.raises(ApiTimeoutError):
            get(client, server.url, timeout_s=8, timeout="1s")
        assert time.monotonic() - started < 4


def test_no_time_left_is_no_call(client):
    """A deadline in the past sends nothing."""
    with serving(answer_with(OK)) as server:
        with pytest.raises(ApiTimeoutError):
            get(client, server.url, timeout_s=0)
        assert server.connections == 0


@pytest.fixture
def swallowing() -> Iterator[int]:
    """The port of a listener whose backlog is full: it answers no SYN."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            waiting.append(sock)
        yield full.getsockname()[1]
        for sock in waiting:
            sock.close()


def addresses(monkeypatch, *ports: int) -> None:
    """Let every name have these addresses."""
    real = socket.getaddrinfo

    def found(host, *args, **kwargs):
        family, kind, protocol, name, _ = real("127.0.0.1", 1, type=socket.SOCK_STREAM)[0]
        return [(family, kind, protocol, name, ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_an_address_that_swallows_everything(client, swallowing):
    """Connecting ends in time too."""
    started = time.monotonic()
    with pytest.raises(ApiTimeoutError):
        get(client, f"http://127.0.0.1:{swallowing}", timeout_s=0.5)
    assert time.monotonic() - started < 2


def test_all_addresses_share_the_time_to_connect(client, swallowing, monkeypatch):
    """Six that swallow everything take no six times as long."""
    addresses(monkeypatch, *[swallowing] * 6)
    started = time.monotonic()
    with pytest.raises(ApiTimeoutError, match=r"no connection to shop\.invalid"):
        get(client, "http://shop.invalid", timeout_s=9)
    assert time.monotonic() - started < 4


def test_the_next_address_is_tried(client, swallowing, monkeypatch):
    """One that swallows, one that refuses, one that answers."""
    with socket.socket() as bound, serving(answer_with(OK)) as server:
        bound.bind(("127.0.0.1", 0))
        addresses(monkeypatch, swallowing, bound.getsockname()[1], int(server.url.rpartition(":")[2]))
        assert get(client, "http://shop.invalid").body == b"[]"


def test_a_resolver_that_hangs_holds_nobody(client, monkeypatch):
    """The system's resolver has no deadline; the call has."""
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(20) and [])
    started = time.monotonic()
    try:
        with pytest.raises(ApiTimeoutError):
            get(client, "http://slow.invalid", timeout_s=0.3)
        assert time.monotonic() - started < 2
    finally:
        release.set()


def test_a_name_that_is_none(client, monkeypatch):
    """What the resolver denies is a DNSError naming the host."""

    def deny(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", deny)
    with pytest.raises(DNSError, match=r"nowhere\.invalid"):
        get(client, "http://nowhere.invalid")


def test_a_refused_connection(client):
    """Nobody listens: an ApiConnectionError, also a ConnectionError, that says so."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError, match="Connection refused") as caught:
            get(client, f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert type(caught.value) is ApiConnectionError


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 2",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[1,",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1,",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[1,",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
)
def test_a_connection_that_breaks_off(client, data):
    """Wherever it does, it is an ApiConnectionError and no shortened body."""

    def serve(peer: socket.socket, request: bytes) -> None:
        peer.sendall(data)
        peer.close()

    with serving(serve) as server, pytest.raises(ApiConnectionError):
        get(client, server.url)


def test_a_reset(client):
    """RST in the middle of a body."""

    def serve(peer: socket.socket, request: bytes) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[1,")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()

    with serving(serve) as server, pytest.raises(ApiConnectionError):
        get(client, server.url)


@pytest.mark.parametrize("encoding", ["", "Content-Encoding: gzip\r\n"])
def test_a_body_without_end(client, encoding):
    """More than the limit is not read, packed or not."""
    import gzip

    body = b"[" * 1_000_000
    body = gzip.compress(body) if encoding else body
    head = f"HTTP/1.1 200 OK\r\n{encoding}Content-Length: {len(body)}\r\n\r\n".encode()
    with serving(answer_with(head + body)) as server, pytest.raises(BadPayloadError, match=r"shop: .*0\.095"):
        get(client, server.url)


HUGE_MIB = 200


def _whole() -> Iterator[bytes]:
    yield f"Content-Length: {HUGE_MIB << 20}\r\n\r\n".encode()
    block = b"[" * (1 << 20)
    yield from (block for _ in range(HUGE_MIB))


def _chunked() -> Iterator[bytes]:
    yield b"Transfer-Encoding: chunked\r\n\r\n"
    block = b"100000\r\n" + b"[" * (1 << 20) + b"\r\n"
    yield from (block for _ in range(HUGE_MIB))
    yield b"0\r\n\r\n"


def _packed() -> Iterator[bytes]:
    import zlib

    packer = zlib.compressobj(wbits=31)
    block = b"[" * (1 << 20)
    body = b"".join(packer.compress(block) for _ in range(HUGE_MIB)) + packer.flush()
    yield f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("pieces", [_whole, _chunked, _packed], ids=["whole", "chunked", "packed"])
def test_two_hundred_megabytes(pieces):
    """Refused at the limit, with little more than the limit held in memory, however it is sent."""
    import tracemalloc

    def serve(peer: socket.socket, request: bytes) -> None:
        peer.settimeout(20)
        peer.sendall(b"HTTP/1.1 200 OK\r\n")
        for piece in pieces():
            peer.sendall(piece)

    limit = 8 << 20
    client = Client(secrets=SECRETS.__getitem__, call_timeout_s=60, max_body_bytes=limit)
    with serving(serve) as server:
        tracemalloc.start()
        try:
            with pytest.raises(BadPayloadError, match="larger than 8 MiB"):
                get(client, server.url, timeout_s=60)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            client.close()
    assert peak < limit + (8 << 20)


def test_a_body_that_is_not_what_it_is_encoded_as(client):
    """Broken gzip is a bad payload and no connection error."""
    data = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nplop"
    with serving(answer_with(data)) as server, pytest.raises(BadPayloadError):
        get(client, server.url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(client, status):
    """The answer is an error that names the host pointed to, and the key goes nowhere else."""
    with serving(answer_with(OK)) as other:
        data = (
            f"HTTP/1.1 {status} Gone on\r\nLocation: {other.url}/x?a=b\r\nContent-Length: 0\r\n\r\n".encode()
        )
        with serving(answer_with(data)) as server:
            api = Api("shop", server.url, auth=Bearer("KEY"))
            answer = client.send(api, Request("GET", f"{server.url}/bars", {}, {}), lease=LEASE, timeout_s=5)
        assert other.connections == 0
    error = api.error_of(answer)
    assert isinstance(error, APIError)
    assert "127.0.0.1" in str(error)
    assert "a=b" not in str(error)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/bars", "https://127.0.0.1/bars", "http://evil.example/bars"]
)
def test_credentials_go_to_one_host_only(client, url):
    """Another host, port or scheme than that of base_url is refused before anything is sent."""
    api = Api("shop", "http://127.0.0.1:2", auth=Bearer("KEY"))
    with pytest.raises(ConfigurationError, match="another host"):
        client.send(api, Request("GET", url, {}, {}), lease=LEASE, timeout_s=5)


@pytest.mark.parametrize(
    ("auth", "sent"),
    [
        (Bearer("KEY"), "Authorization: Bearer s3cr3t-key\r\n"),
        (ApiKey(secret="KEY", header="X-Api-Key"), "X-Api-Key: s3cr3t-key\r\n"),
        (ApiKey(secret="KEY", query="api_key"), "/bars?api_key=s3cr3t-key "),
        (Basic(user="USER", password="PASSWORD"), "Authorization: Basic YWRhOnMzY3IzdC13b3Jk\r\n"),
    ],
)
def test_auth_is_applied(client, auth, sent):
    """In header or query, as declared; the declaration itself holds no secret."""
    with serving(answer_with(OK)) as server:
        get(client, server.url, auth=auth)
    assert sent in server.requests[0].decode()
    assert "s3cr3t" not in repr(auth)


def test_a_key_joins_the_query_of_a_link(client):
    """The address of a next page has one already, with a name twice."""
    with serving(answer_with(OK)) as server:
        api = Api("shop", server.url, auth=ApiKey(secret="KEY", query="api_key"))
        client.send(
            api, Request("GET", f"{server.url}/bars?tag=a&tag=b%20c", {}, {}), lease=LEASE, timeout_s=5
        )
    assert server.requests[0].startswith(b"GET /bars?tag=a&tag=b%20c&api_key=s3cr3t-key HTTP/1.1")


def test_no_error_shows_a_secret(client, caplog):
    """Neither its text, nor its facts, nor its traceback, nor the log, for whatever goes wrong."""
    import logging
    import traceback

    caplog.set_level(logging.DEBUG)
    auth = ApiKey(secret="KEY", query="api_key")
    shown = []
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ApiConnectionError) as caught:
            get(client, f"http://127.0.0.1:{bound.getsockname()[1]}", auth=auth)
        shown.append(caught.value)
    with serving(lambda peer, request: None) as server, pytest.raises(ApiTimeoutError) as caught:
        get(client, server.url, auth=auth, timeout_s=0.2)
    shown.append(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        get(client, "http://127.0.0.1:9", auth=Bearer("BROKEN"))
    shown.append(caught.value)
    for error in shown:
        assert "s3cr3t" not in "".join(traceback.format_exception(error))
        assert "s3cr3t" not in str(error.to_dict())
    assert "s3cr3t" not in caplog.text


def test_nothing_is_sent_without_a_lease(client):
    """The guard's leave is an argument, so that nobody forgets it."""
    with serving(answer_with(OK)) as server:
        api = Api("shop", server.url)
        with pytest.raises(TypeError, match="lease"):
            client.send(api, Request("GET", f"{server.url}/bars", {}, {}), lease=None, timeout_s=5)
        assert server.connections == 0


def test_the_environment_has_no_say(client, monkeypatch):
    """Neither a proxy nor a .netrc changes where a call goes or what it carries."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(answer_with(OK)) as server:
        assert get(client, server.url).body == b"[]"


def test_threads_share_a_client(client):
    """Thirty-two at once, each gets its own answer."""

    def echo(peer: socket.socket, request: bytes) -> None:
        body = request.split(b"n=")[1].split(b" ")[0]
        time.sleep(0.02)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    got: dict[int, list[bytes]] = {}

    def call(n: int, url: str) -> None:
        got[n] = [get(client, url, params={"n": str(n)}).body for _ in range(5)]

    with serving(echo) as server:
        threads = [threading.Thread(target=call, args=(n, server.url)) for n in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.connections <= 40
    assert got == {n: [str(n).encode()] * 5 for n in range(32)}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_gets_its_own_connections(client):
    """A child neither uses nor closes the connection of its parent."""
    with serving(answer_with(OK)) as server:
        get(client, server.url)
        context = multiprocessing.get_context("fork")
        result = context.SimpleQueue()

        def child() -> None:
            result.put(get(client, server.url).body)

        process = context.Process(target=child)
        process.start()
        process.join(10)
        assert (process.exitcode, result.get()) == (0, b"[]")
        assert get(client, server.url).body == b"[]"
        assert server.connections == 2
        assert client._pools[0] == os.getpid()
