"""Run the fake APIs until told to stop: `python -m tests.upstream --port 0`."""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import sys

import uvicorn

from tests.upstream.server import Program

PR_SET_PDEATHSIG = 1


class Server(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"upstream http://{host}:{port}", flush=True)


def die_with_parent() -> None:
    """
    Have the kernel kill this process when its parent ends, however it ends.

    The kernel means the thread that started it: start it from a thread that lives as long as it is needed.
    """
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or parent == 1:
        sys.exit("the parent is gone already")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=0, help="of the random faults")
    parser.add_argument("--die-with-parent", action="store_true", help="Linux only")
    options = parser.parse_args()
    if options.die_with_parent:
        die_with_parent()
    config = uvicorn.Config(
        Program(options.seed),
        host=options.host,
        port=options.port,
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than a client keeps an idle connection, so that only faults break one
        timeout_graceful_shutdown=1,
    )
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run()


if __name__ == "__main__":
    main()
