"""A RabbitMQ of the tests' own, as a child process: one that may be killed, frozen and emptied."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time

from workers.children import kill, spawn

# Debian's wrapper on PATH changes the user; what it wraps does not.
_DIRECTORIES = ("/usr/lib/rabbitmq/bin", "/usr/local/sbin", "/opt/homebrew/sbin")
_START_S = 60
_HELLO = b"AMQP\x00\x00\x09\x01"


def find(program):
    """Where a program of RabbitMQ's is, None where there is none."""
    return shutil.which(program, path=os.pathsep.join((*_DIRECTORIES, os.environ.get("PATH", ""))))


def missing():
    """What is needed and not there."""
    return [program for program in ("rabbitmq-server", "epmd") if find(program) is None]


def _free_ports(count):
    with contextlib.ExitStack() as probes:
        made = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in made:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in made]


class RabbitMQ:
    """A node with everything in `directory`; its ports stay the same for the life of this object.

    It has an epmd of its own, so that it meets no other node, and ends with this process.
    """

    def __init__(self, directory):
        self.directory = directory
        self.port, distribution, epmd = _free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self.epmd_port = epmd
        self.epmd = self.process = None
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),  # where the cookie is
            "RABBITMQ_NODENAME": f"penstock-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(directory / "none"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the server, which then is our child
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def __enter__(self):
        self.directory.mkdir(parents=True)
        (self.directory / "plugins").write_text("[].\n")
        quiet = subprocess.DEVNULL
        self.epmd = spawn(
            (find("epmd"), "-port", str(self.epmd_port), "-address", "127.0.0.1"), env=self.env, output=quiet
        )
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in filter(None, (self.process, self.epmd)):
            kill(process)

    def start(self):
        """Start it with what it holds, and wait until it talks."""
        with (self.directory / "output").open("ab") as output:
            self.process = spawn((find("rabbitmq-server"),), env=self.env, output=output)
        deadline = time.monotonic() + _START_S
        while not self._talks():
            said = self.directory / "output"
            assert self.process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)

    def _talks(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as client:
            client.settimeout(5)
            client.sendall(_HELLO)
            return client.recv(1) == b"\x01"
        return False

    def restart(self, *, empty, away_s):
        """SIGKILL it; it comes back after a while, perhaps with nothing."""
        kill(self.process)
        if empty:
            shutil.rmtree(self.directory / "data")
        time.sleep(away_s)
        self.start()

    def freeze(self, seconds):
        """It stops answering, but its connections stay open."""
        os.kill(self.process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.process.pid, signal.SIGCONT)

    def close_connections(self):
        """Every client is thrown out, as by an operator."""
        self._ctl("close_all_connections", "a test")

    def purge(self, *queues):
        """These queues lose their messages."""
        for queue in queues:
            self._ctl("purge_queue", queue)

    def _ctl(self, *words):
        subprocess.run(
            (find("rabbitmqctl"), "-q", *words), env=self.env, check=True, capture_output=True, timeout=60
        )
