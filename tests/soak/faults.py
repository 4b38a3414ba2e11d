"""The faults of a soak, one after the other, each for seconds."""

import os
import random
import signal
import time
from collections import Counter

from tests.soak.samples import families
from tests.upstream.client import APIS

CALM = {"error_rate": 0, "reset_rate": 0, "truncate_rate": 0, "latency_ms": 20}
# Of an API, and for how many seconds; those without an end of their own are taken back.
OF_APIS = {
    "outage": ({"outage_s": 12}, 12),
    "errors": ({"error_rate": 0.4}, 15),
    "429 with Retry-After": ({"throttle_s": 5}, 5),
    "429 without": ({"throttle_bare_s": 1}, 1),
    "timeouts": ({"latency_ms": 4000}, 10),
    "connections dropped": ({"reset_rate": 0.5}, 12),
    "answers cut short": ({"truncate_rate": 0.4}, 12),
}
VICTIM = "worker that is killed"
OF_PROCESSES = ("worker killed", "child killed", "Redis drops all connections")
AGAIN_S = 3.0  # what a supervisor takes to start it again


class Faults:
    """Looked after by one thread: each `step` does what is due."""

    def __init__(self, upstream, fleet, client, *, every_s: float, seed: int = 7):
        self.upstream, self.fleet, self.client, self.every_s = upstream, fleet, client, every_s
        self.random = random.Random(seed)
        self.pending: list[str] = []
        self.counts: Counter[str] = Counter()
        self.last = ""
        self.next_s = time.monotonic() + every_s
        self.calm_s: dict[str, float] = {}
        self.start_s: dict[str, float] = {}

    def step(self, *, more: bool) -> None:
        """Take back what has lasted, start again what was killed, and break the next thing if there is to be `more`."""
        now = time.monotonic()
        for api in [api for api, at in self.calm_s.items() if now >= at]:
            self.upstream.control(api, **CALM)
            del self.calm_s[api]
        if more and now >= self.next_s:
            self.next_s = now + self.every_s
            self.strike(now)

    def strike(self, now: float) -> None:
        """The next fault; all have had their turn before one comes again."""
        if not self.pending:
            self.pending = [*OF_APIS, *OF_PROCESSES]
            self.random.shuffle(self.pending)
        fault = self.pending.pop()
        if fault in OF_APIS:
            changes, lasts_s = OF_APIS[fault]
            api = self.random.choice(APIS)
            self.upstream.control(api, **changes)
            self.calm_s[api] = now + lasts_s
            self.last = f"{fault} at {api}"
        else:
            {"worker killed": self.kill, "child killed": self.kill_child}.get(fault, self.cut)()
            self.last = fault
        self.counts[fault] += 1

    def kill(self) -> None:
        """SIGKILL a whole worker, which takes its children along."""
        process = self.fleet.processes.pop(VICTIM)
        process.kill()
        process.wait()
        self.start_s[VICTIM] = time.monotonic() + AGAIN_S

    def kill_child(self) -> None:
        """SIGKILL one of the processes in which it runs units."""
        found = families({VICTIM: self.fleet.processes[VICTIM].pid}) if VICTIM in self.fleet.processes else ()
        children = [process.pid for part, process in found if part.endswith("child")]
        if children:
            os.kill(self.random.choice(children), signal.SIGKILL)

    def cut(self) -> None:
        """Every connection but ours is closed by Redis."""
        for kind in ("normal", "pubsub"):
            self.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
