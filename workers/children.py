"""Child processes that cannot outlive the process that started them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

# Runs in the child, which then becomes the program: a `preexec_fn` would run between fork and exec, where
# Python is not safe once there are threads. The kernel's promise (PR_SET_PDEATHSIG = 1) survives the exec;
# a parent that died before it was given is found by the second look.
_TETHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]} cannot be run: {error.strerror}")
"""


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    output: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; the kernel kills it when this process ends, however it ends.

    A Ctrl-C at the terminal does not reach it. Only the main thread may call this, because the kernel takes
    the end of the thread that forked for the end of the parent.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "a child process has to be started from the main thread: it would end with any other"
        )
    return subprocess.Popen(  # noqa: S603 - programs that we name
        [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *argv],
        env=env,
        stdin=stdin,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask it to end (SIGTERM), and kill it after `grace_s` seconds."""
    process.terminate()
    await_end(process, grace_s)


def await_end(
    process: subprocess.Popen[bytes], grace_s: float, *, hurry: Callable[[], bool] = lambda: False
) -> None:
    """Give it `grace_s` seconds to end, or until `hurry` says so, then kill it.

    Whatever is left of its process group goes too: children that it has not taken along.
    """
    deadline = time.monotonic() + grace_s
    while process.poll() is None and time.monotonic() < deadline and not hurry():
        time.sleep(0.02)
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it and the rest of its process group, and wait for its end."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
