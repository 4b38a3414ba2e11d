"""The fake APIs as a process that a test or a demo owns."""

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

ROOT = Path(__file__).resolve().parents[2]
APIS = ("binance", "coinbase", "asana")  # those of the main job; there are others


class Upstream:
    """
    Starts the process, tells it what to do and ends it.

    It dies with this process (more exactly with the thread that started it) even on SIGKILL.
    """

    def __init__(self, *, port: int = 0, seed: int = 0):
        command = [
            sys.executable,
            "-m",
            "tests.upstream",
            f"--port={port}",
            f"--seed={seed}",
            "--die-with-parent",
        ]
        # In a session of its own Ctrl-C reaches the owner only, which may still want answers while it ends.
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("upstream http"):
            self.stop()
            raise RuntimeError("the fake APIs did not start; their own message stands above")
        self.url = line.split()[1]
        self._session = requests.Session()
        self._session.trust_env = False

    def base(self, api: str) -> str:
        """The base URL to give a collector in place of the real one: everything up to the documented path."""
        return f"{self.url}/{api}"

    def control(self, api: str, **changes: Any) -> dict[str, Any]:
        """Switch faults on or off, or rescale limits, and return the stats. ValueError for what is unknown."""
        stats: dict[str, Any] = self._call("POST", f"/control/{api}", changes)
        return stats

    def stats(self, api: str) -> dict[str, Any]:
        stats: dict[str, Any] = self._call("GET", f"/control/{api}")
        return stats

    def arrivals(self, api: str) -> list[float]:
        """When requests arrived, on the server's monotonic clock: `time.monotonic()` of this machine."""
        times: list[float] = self._call("GET", f"/control/{api}/arrivals")
        return times

    def reset(self, *apis: str) -> None:
        """No faults, documented limits, nothing counted: for the APIs named, or for all."""
        for path in [f"/control/{api}/reset" for api in apis] or ["/control/reset"]:
            self._call("POST", path)

    def stop(self) -> None:
        """End the process and wait for it; harmless when it has ended."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if hasattr(self, "_session"):
            self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._session.request(method, self.url + path, json=body, timeout=30)
        if not answer.ok:
            raise ValueError(answer.json()["message"])
        return answer.json()
