"""Where a unit's time goes: the real task on real messages in this process, one after the other.

Wall time contains the servers' answers; CPU time is this thread's alone and is what 32 threads share.
"""

import functools
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.benchmarks.bench_units import END, START
from tests.benchmarks.measure import configure
from tests.upstream.client import Upstream
from workers.embedded import EmbeddedRedis

PARTS = ("claim", "admit", "HTTP", "parse", "store", "settle")


class Clock:
    """Wall and CPU seconds of what was wrapped, by part."""

    def __init__(self):
        self.wall_s, self.cpu_s = defaultdict(float), defaultdict(float)

    def wrap(self, owner, name, part):
        """Put a timed function in a function's place."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args, **kwargs):
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.wall_s[part] += time.perf_counter() - wall
                self.cpu_s[part] += time.thread_time() - cpu

        setattr(owner, name, timed)


def planned(count):
    """A run whose first wave is published."""
    from tasks import runs
    from tasks.outcomes import RunKind

    symbols = tuple(f"SYM{n:05d}" for n in range(count))
    run = runs.request(runs.Order("pond", ("pond.klines",), RunKind.ADHOC, symbols, START, END))
    runs.plan(run=run)
    return run


def deliver(app, connection, traced, count):
    """Run the messages of the wave as a worker does, its chord part included; returns how many there were."""
    from celery.app.trace import build_tracer

    tracers = {}
    for done in range(count):
        message = connection.default_channel.basic_get("collect.pond", no_ack=True)
        if message is None:
            return done
        args, kwargs, embed = message.payload
        name = message.headers["task"]
        tracer = tracers.setdefault(name, build_tracer(name, app.tasks[name], app=app))
        request = {
            **message.headers,
            **embed,
            "delivery_info": message.delivery_info,
            "is_eager": False,
            "hostname": "bench",
        }
        traced.trace(tracer, message.headers["id"], args, kwargs, request)
    return count


class Traced:
    """The tracer behind one name, so that it is timed like the parts."""

    def trace(self, tracer, *args):
        return tracer(*args)


def measure(quick):
    count = 200 if quick else 2000
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis(Path(folder) / "redis") as server,
        Upstream() as upstream,
    ):
        upstream.control("binance", limits={"amount": 600_000, "window_s": 60})
        configure(Path(folder), server.url, symbols=count, api=upstream.base("binance"))
        from tasks import calls, heartbeat, http, limits, store, units
        from tasks.collectors.registry import collectors
        from workers.celery import app

        app.loader.import_default_modules()
        app.finalize()
        limits.guard().store.mark_fresh(collectors())
        heartbeat.beat("units", 32)
        traced = Traced()
        with app.connection_for_read() as connection:
            planned(20)
            deliver(app, connection, traced, 20)
            clock = Clock()
            clock.wrap(traced, "trace", "all")
            clock.wrap(units.store, "claim", "claim")
            clock.wrap(calls.Calls, "admit", "admit")
            clock.wrap(units.Delivery, "fetch", "HTTP")
            clock.wrap(units.Delivery, "parse", "parse")
            clock.wrap(units.Delivery, "store", "store")
            clock.wrap(units.Delivery, "settle", "settle")
            clock.wrap(app.backend, "on_chord_part_return", "chord part")
            planned(count)
            done = deliver(app, connection, traced, count)
        assert done, "no unit was sent"
        http.client().close()
        store.engine().dispose()
    return [table(clock, done)]


def table(clock, units):
    """Markdown: µs per unit, wall and CPU, and each part's share."""
    parts = [*PARTS, "chord part"]
    wall = {name: clock.wall_s[name] for name in parts}
    cpu = {name: clock.cpu_s[name] for name in parts}
    wall["rest of Celery"] = clock.wall_s["all"] - sum(wall.values())
    cpu["rest of Celery"] = clock.cpu_s["all"] - sum(cpu.values())
    head = (
        f"Where a unit's time goes (one thread, {units} units, an API that answers at once; a worker adds "
        "receiving and acknowledging the message):"
    )
    lines = [
        head,
        "",
        "| | wall µs | CPU µs | share of CPU |",
        "|---|---|---|---|",
    ]
    for name, wall_s in wall.items():
        share = cpu[name] / clock.cpu_s["all"]
        lines.append(f"| {name} | {1e6 * wall_s / units:.0f} | {1e6 * cpu[name] / units:.0f} | {share:.0%} |")
    lines.append(
        f"| all | {1e6 * clock.wall_s['all'] / units:.0f} | {1e6 * clock.cpu_s['all'] / units:.0f} | 100% |"
    )
    return "\n".join(lines)
