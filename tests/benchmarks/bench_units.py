"""P7: a whole unit on threads 32, against Celery tasks that make the same call and store nothing.

Each repetition starts what it needs and stops it again, so that nobody's idle processes cost the others.
The machine is shared by all of them, the fake API included.
"""

import contextlib
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

from tests.benchmarks.measure import Result, cpu_s, interleaved

CONCURRENCY, LATENCY_MS = 32, 50
START = datetime(2026, 1, 5, tzinfo=UTC)
END = START + timedelta(minutes=9)  # a page that is not full, so that one call is enough for everybody


def fleet(folder, symbols, **changes):
    """Our processes, one worker, with threads unless something else is asked for."""
    from tests.chaos.fleet import Fleet

    usual = {"pool": "threads", "concurrency": CONCURRENCY, "latency_ms": LATENCY_MS}
    return Fleet(Path(folder), symbols=symbols, workers=1, **(usual | changes))


def groups_of(running):
    """The pids behind a fleet by what they are."""
    members = {name: running.members[name] for name in ("units0", "ctl", "alone", "beat")}
    pids = {name: [each.process.pid, *each.descendants()] for name, each in members.items()}
    return {**pids, "redis": [running.redis.pid], "api": [running.upstream.process.pid]}


def until_alive(running):
    """Wait until the units' worker and ctl have said that they are there."""
    from tasks import heartbeat

    deadline = time.monotonic() + 30
    while not all(heartbeat.alive(kind, 30)[0] for kind in ("units", "ctl")):
        assert time.monotonic() < deadline, "the workers did not come up"
        time.sleep(0.1)


def collected(running, symbols):
    """A run of one call a unit, from the order to its result."""
    from tasks.outcomes import RunKind
    from tasks.runs import Order, request, start
    from workers.celery import app

    assert app.conf.broker_url == running.redis.url, "another repetition's broker"
    run = request(Order("pond", ("pond.klines",), RunKind.ADHOC, symbols, START, END))
    began = time.time()
    assert start(run)
    result, _ = running.wait_for_close(run, timeout_s=1800)
    assert result["successful_items"] == result["calls"] == len(symbols), result
    return result["finished_at"].timestamp() - began


def ours(count, costs):
    """In a process of its own: an app keeps the broker that it began with, and each repetition has another."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        per_second, cost = pool.submit(per_second_and_cost, count).result()
    costs.append(cost)
    return per_second


def per_second_and_cost(count):
    with tempfile.TemporaryDirectory() as folder, fleet(folder, count) as running:
        until_alive(running)
        symbols = tuple(f"SYM{n:05d}" for n in range(count))
        collected(running, symbols[:CONCURRENCY])
        groups = groups_of(running)
        before = {name: cpu_s(pids) for name, pids in groups.items()}
        taken = collected(running, symbols)
        cost = {name: 1000 * (cpu_s(pids) - before[name]) / count for name, pids in groups.items()}
    return count / taken, cost


def theirs(task, count, costs):
    """The peer's tasks as one group, from the first message to the last answer."""
    from tests.chaos.fleet import Member
    from tests.upstream.client import Upstream
    from workers.embedded import EmbeddedRedis

    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis(Path(folder) / "redis") as server,
        Upstream() as upstream,
    ):
        limits = {"amount": 600_000, "window_s": 60}
        upstream.control("binance", limits=limits, latency_ms=LATENCY_MS)
        peer = {"PEER_REDIS_URL": server.url, "PEER_API_URL": upstream.base("binance")}
        argv = [sys.executable, "-m", "celery", "-A", "tests.benchmarks.peers", "worker", "-l", "INFO"]
        argv += ["--without-gossip", "--without-mingle", "-P", "threads", "-c", str(CONCURRENCY)]
        worker = Member("peer", argv, os.environ | peer | {"PYTHONUNBUFFERED": "1"}, Path(folder))
        worker.start()
        try:
            send(peer, task, CONCURRENCY)
            until_answered(upstream, CONCURRENCY)
            pids = {"worker": [worker.process.pid], "redis": [server.pid], "api": [upstream.process.pid]}
            before = {name: cpu_s(each) for name, each in pids.items()}
            began = time.monotonic()
            send(peer, task, count)
            arrivals = until_answered(upstream, CONCURRENCY + count)
            costs.append({name: 1000 * (cpu_s(each) - before[name]) / count for name, each in pids.items()})
        finally:
            worker.end()
    return count / (arrivals[-1] + LATENCY_MS / 1000 - began)


def send(peer, name, count):
    """As a producer does; from a fork, since each repetition has another broker."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(Exception):
            os.environ.update(peer)
            from celery import group

            from tests.benchmarks import peers

            begin, end = (int(at.timestamp() * 1000) for at in (START, END))
            task = getattr(peers, name)
            group(task.s(f"SYM{n:05d}", begin, end) for n in range(count)).apply_async()
            status = 0
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "the peer's tasks could not be sent"


def until_answered(upstream, count):
    deadline = time.monotonic() + 1800
    while len(arrivals := upstream.arrivals("binance")) < count:
        assert time.monotonic() < deadline, f"{len(arrivals)} of {count} calls"
        time.sleep(0.3)
    return sorted(arrivals)


def measure(quick):
    count, repetitions = (300, 1) if quick else (2000, 5)
    costs = {"ours": [], "plain": [], "guarded": []}
    found = interleaved(
        {
            "ours": lambda: ours(count, costs["ours"]),
            "plain": lambda: theirs("plain", count, costs["plain"]),
            "guarded": lambda: theirs("guarded", count, costs["guarded"]),
        },
        repetitions,
    )
    what = f"a whole unit, threads {CONCURRENCY}, {LATENCY_MS} ms upstream, {count:,} units"
    mine = found["ours"]
    return [
        Result("P7", what, mine, found["plain"], "Celery + requests", "units/s", at_least=0.7),
        Result(
            "P7", what, mine, found["guarded"], "Celery + pybreaker Redis + limits", "units/s", at_least=1.2
        ),
        cost_table(costs),
    ]


def cost_table(costs):
    """CPU per unit by process, the median over repetitions."""
    from statistics import median

    names = ("units0", "worker", "ctl", "alone", "beat", "redis", "api")
    lines = [
        "CPU per unit in ms, by process:",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for who, found in costs.items():
        cells = [f"{median(each[name] for each in found):.2f}" if name in found[0] else "" for name in names]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    return "\n".join(lines)
