"""Real processes on each broker: Redis, which keeps the shared state too, and RabbitMQ beside it."""

import json

import pytest
import redis

from tasks.models import runs
from tests.acceptance.fleet import Fleet
from tests.deployments import RABBITMQ_SQLITE, REDIS_POSTGRESQL
from workers.embedded import EmbeddedRedis

SYMBOLS = [f"COIN{n}USDT" for n in range(40)]
BACK_S = 20.0  # how long a run may take that only waited for Redis


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory, redis_server):
    """One that may be stopped."""
    del redis_server  # it says whether there is any Redis to be had
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module", params=[RABBITMQ_SQLITE, REDIS_POSTGRESQL])
def fleet(request, tmp_path_factory, own_redis, upstream, new_deployment):
    """Worker, ctl worker and beat on the pairs that the other acceptance tests leave out."""
    directory = tmp_path_factory.mktemp(request.param)
    settings = {"PENSTOCK_COLLECTORS": "binance", "PENSTOCK_POOL": "threads"}
    with redis.Redis.from_url(own_redis.url) as client:
        client.flushall()
    with new_deployment(request.param, directory) as deployment:
        made = Fleet(directory, deployment, redis_url=own_redis.url, **settings)
        try:
            made.configure({"binance": {"base_url": upstream.base("binance")}})
            made.start_workers()
            made.start("beat", "beat")
            yield made
        finally:
            statuses = made.stop()
            made.engine.dispose()
    assert set(statuses.values()) == {0}


def test_run(fleet, own_redis, upstream):
    """It ends well, with one call for each unit and nothing sent twice; on RabbitMQ no queue is in Redis."""
    upstream.reset("binance")
    result = fleet.collect("run", "binance.klines", "--symbols", ",".join(SYMBOLS))
    assert (result["outcome"], result["successful_items"]) == ("ok", len(SYMBOLS))
    assert (result["calls"], result["retries"], result["resent"]) == (len(SYMBOLS), 0, 0)
    assert upstream.stats("binance")["requests"] == len(SYMBOLS)
    with redis.Redis.from_url(own_redis.url) as client:
        assert bool(client.keys("_kombu.binding.*")) == ("PENSTOCK_BROKER_URL" not in fleet.env)


def test_run_that_is_requested_while_redis_is_away(fleet, own_redis):
    """It is stored, and the command says so; Redis comes back, and nobody has to ask again."""
    own_redis.stop()
    try:
        said = fleet.command(
            "run", "binance.klines", "--symbols", ",".join(SYMBOLS[:5]), "--detach", "--json"
        )
    finally:
        own_redis.revive()
    assert said.returncode == 0, said.stderr
    assert "is stored and starts when Redis is back" in said.stderr
    (shown,) = json.loads(said.stdout)
    assert shown["state"] == "planning"
    fleet.wait_for(lambda: fleet.results(runs.c.id == shown["run"]), "the end of the run", within_s=BACK_S)
    (result,) = fleet.results(runs.c.id == shown["run"])
    assert (result["outcome"], result["successful_items"], result["failed_items"]) == ("ok", 5, 0)
