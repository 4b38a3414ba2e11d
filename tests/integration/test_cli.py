"""The command line on a real database and a real Redis."""

import json
import re
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
import redis
from click.testing import CliRunner
from sqlalchemy import update

from tasks import heartbeat, reads, runs, store
from tasks.models import units
from workers import cli, cli_runs

DATABASES = ("sqlite",)  # what is read is tested on both in test_reads.py
HEAVY = {"celery", "kombu", "sqlalchemy", "redis", "requests", "rich", "pydantic", "alembic", "flower"}


def penstock(*words):
    return CliRunner().invoke(cli.main, words)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An installation with nothing in it."""
    monkeypatch.setenv("PENSTOCK_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def fleet_answers(inbox, monkeypatch):
    """Call it with outcomes: they are what a run's units come to, as soon as it is asked for."""

    def answer(*outcomes):
        def finish(numbers):
            for number in numbers:
                runs.plan(run=number)
                with store.writing() as connection:
                    for n, outcome in enumerate(outcomes):
                        connection.execute(
                            update(units)
                            .where(units.c.run == number, units.c.n == n)
                            .values(state="done", outcome=outcome, reason="test", finished_at=store.db_now())
                        )
                runs.close(number)

        monkeypatch.setattr(cli_runs, "_start", finish)

    return answer


def test_help_needs_no_library():
    """It answers at once because nothing is imported for it."""
    code = f"import sys, workers.cli; print(sorted({HEAVY!r} & {{name.partition('.')[0] for name in sys.modules}}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ["runs"],
        ["show", "1"],
        ["cancel", "1"],
        ["run", "binance"],
        ["backfill", "binance.klines", "--start", "2026-01-01", "--end", "2026-01-02"],
        ["worker"],
        ["worker", "--ctl"],
    ],
)
def test_no_database_is_said_and_none_is_made(bare, words):
    """Looking must not leave an empty file behind."""
    result = penstock(*words)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "run `penstock db upgrade`" in result.stderr
    assert not bare.exists()


def test_a_database_that_was_not_migrated_is_said(bare):
    """With the command that does it."""
    bare.mkdir()
    (bare / "penstock.db").touch()
    result = penstock("runs")
    assert result.exit_code == 2
    assert "is empty: run `penstock db upgrade`" in result.stderr


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["worker"], 2),
        (["worker", "--ctl"], 2),
        (["up"], 2),
        (["run", "binance"], 2),
        (["runs"], 2),
        (["db", "upgrade"], 2),
        (["health"], 1),
    ],
)
def test_a_database_of_a_newer_version_is_said(installation, words, status):
    """Nothing is started on it, and nothing written to it."""
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    result = penstock(*words)
    assert (result.exit_code, result.stdout) == (status, "")
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("penstock: "))
    assert "has schema 9999, which this version does not know: install the newer version" in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", [["beat"], ["flower"], ["worker"]])
@pytest.mark.parametrize("url", ["localhost", "kafka://u:hush-hush@host/v", "amqp://u:hush-hush@host:port/v"])
def test_a_broker_url_that_cannot_be_read_is_said(installation, words, url):
    """One sentence with the name of the variable, and without the password."""
    installation.configure(PENSTOCK_BROKER_URL=url)
    result = penstock(*words)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "PENSTOCK_BROKER_URL" in result.stderr
    assert "hush-hush" not in result.stderr


def test_a_port_in_use_is_said(installation):
    """Flower shows nothing elsewhere instead: whoever named a port will look there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "workers.cli", "flower", f"--port={port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.count("penstock: ")) == (2, 1), done.stderr
    assert f"penstock: Flower cannot listen on 127.0.0.1 port {port} (Address already in use)" in done.stderr
    assert "Traceback" not in done.stderr


def test_upgrade_makes_the_database_and_may_be_repeated(bare):
    """The second time nothing happens."""
    first, second = penstock("db", "upgrade"), penstock("db", "upgrade")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout == second.stdout
    assert "has schema" in first.stdout
    assert penstock("runs").stdout == "There is no run yet: `penstock run NAME` makes one.\n"


@pytest.mark.parametrize("words", [["worker"], ["worker", "--ctl"], ["beat"]])
def test_no_redis_is_said(installation, monkeypatch, words):
    """Nothing is started without it."""
    monkeypatch.delenv("PENSTOCK_REDIS_URL")
    installation.forget()
    result = penstock(*words)
    assert result.exit_code == 2
    assert "no Redis is known: start `penstock up`" in result.stderr


@pytest.fixture
def evicting(redis_url):
    """The session's Redis with an eviction policy."""
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        yield redis_url
        client.config_set("maxmemory-policy", "noeviction")


ALL_THAT_NEED_REDIS = [
    ["worker"],
    ["worker", "--ctl"],
    ["beat"],
    ["run", "binance", "--detach"],
    ["backfill", "binance.klines", "--start", "2026-01-01", "--end", "2026-01-02", "--detach"],
]


@pytest.mark.parametrize("words", ALL_THAT_NEED_REDIS)
def test_a_redis_that_evicts_is_refused(installation, evicting, words):
    """It would lose messages; nothing is started on it, and no run is stored."""
    result = penstock(*words)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "tell it CONFIG SET maxmemory-policy noeviction" in result.stderr
    assert reads.latest_runs() == []


@pytest.mark.parametrize(
    ("variable", "url", "sentence"),
    [
        ("PENSTOCK_REDIS_URL", "redis://:hush-hush@{redis}/0", "refuses us; check user and password"),
        ("PENSTOCK_BROKER_URL", "redis://:hush-hush@{redis}/0", "refuses us; check user and password"),
        ("PENSTOCK_REDIS_URL", "redis://127.0.0.1:port/0", "is not a Redis URL"),
        ("PENSTOCK_REDIS_URL", "redis://{redis}/main", "is not a Redis URL: after the host comes the number"),
        (
            "PENSTOCK_BROKER_URL",
            "redis://{redis}/main",
            "is not a Redis URL: after the host comes the number",
        ),
        ("PENSTOCK_BROKER_URL", "amqp://u:hush-hush@127.0.0.1:port/v", "is not a broker URL"),
        ("PENSTOCK_BROKER_URL", "amqp://u:hush-hush@[::1", "is not a broker URL"),
    ],
)
def test_a_run_is_not_stored_for_servers_that_will_not_do(
    installation, redis_server, variable, url, sentence
):
    """Time would not mend them, so the run would never start."""
    installation.configure(**{variable: url.format(redis=f"127.0.0.1:{redis_server.port}")})
    result = penstock("run", "binance", "--detach")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert sentence in result.stderr
    assert "hush-hush" not in result.stderr
    assert reads.latest_runs() == []


def test_a_broker_that_evicts_is_not_overlooked(installation, evicting):
    """While Redis, which keeps the shared state, is away."""
    installation.configure(PENSTOCK_REDIS_URL="redis://127.0.0.1:1/0", PENSTOCK_BROKER_URL=evicting)
    result = penstock("run", "binance", "--detach")
    assert result.exit_code == 2
    assert "has the eviction policy allkeys-lru" in result.stderr
    assert reads.latest_runs() == []


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "amqp://guest:hush-hush@127.0.0.1:1/vhost"])
def test_a_broker_that_is_away_is_said(installation, url):
    """Even if Redis, which keeps the shared state, is there; a run waits for the broker and for nothing else."""
    installation.configure(PENSTOCK_BROKER_URL=url)
    result = penstock("worker")
    assert result.exit_code == 2
    assert "127.0.0.1:1/" in result.stderr
    assert "set PENSTOCK_BROKER_URL" in result.stderr
    assert "hush-hush" not in result.stderr
    result = penstock("run", "binance", "--detach")
    assert result.exit_code == 0
    assert "run 1 is stored and starts when the broker is back" in result.stderr
    assert reads.latest_runs()[0].state == "planning"


@pytest.mark.parametrize("part", ["port", "password", "vhost"])
def test_a_rabbitmq_that_refuses_us_is_said(installation, rabbitmq_url, part):
    """By every command that needs it, in one sentence; nobody waits until it thinks better of it."""
    wrong = {
        "port": re.sub(r":\d+/", ":port/", rabbitmq_url),
        "password": re.sub(r":[^:@]*@", ":hush-hush@", rabbitmq_url),
        "vhost": f"{rabbitmq_url}-missing",
    }
    assert rabbitmq_url not in wrong.values()
    installation.configure(PENSTOCK_BROKER_URL=wrong[part])
    commands = ("run binance --detach", "worker", "worker --ctl", "beat", "flower", "up")
    said = {command: penstock(*command.split()) for command in commands}
    assert {command: result.exit_code for command, result in said.items()} == dict.fromkeys(commands, 2)
    for result in said.values():
        assert result.stderr.count("\n") == 1
        assert ("is not a broker URL" if part == "port" else "refuses us") in result.stderr
        assert "correct PENSTOCK_BROKER_URL" in result.stderr
        assert not [word for word in ("hush-hush", urlsplit(rabbitmq_url).password) if word in result.stderr]
        assert ("-missing" in result.stderr) == (part == "vhost")
    assert reads.latest_runs() == []


@pytest.mark.parametrize("url", [None, "redis://127.0.0.1:1/0"])
def test_a_run_is_stored_while_redis_is_away(installation, monkeypatch, url):
    """Known or not: the run is in SQL, starts when Redis is back, and the command says so."""
    monkeypatch.delenv("PENSTOCK_REDIS_URL") if url is None else monkeypatch.setenv("PENSTOCK_REDIS_URL", url)
    installation.forget()
    began_s = time.monotonic()
    result = penstock("run", "binance.klines", "--symbols", "BTCUSDT,ETHUSDT", "--detach")
    assert time.monotonic() - began_s < 20
    assert result.exit_code == 0, result.stderr
    assert "run 1 is stored and starts when Redis is back" in result.stderr
    (run,) = reads.latest_runs()
    assert (run.state, run.kind, run.on_open, run.endpoints) == (
        "planning",
        "adhoc",
        "park",
        ["binance.klines"],
    )


def test_up_wants_its_broker(bare, tmp_path):
    """Each of its processes would end at once, and be started again."""
    result = CliRunner(env={"PENSTOCK_BROKER_URL": "amqp://127.0.0.1:1/vhost"}).invoke(cli.main, ["up"])
    assert result.exit_code == 2
    assert "the broker at amqp://127.0.0.1:1/vhost does not answer" in result.stderr
    assert not bare.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--symbols", "BTCUSDT"], "klines, 1 symbol\n"),
        (["--symbols", "BTCUSDT,ETHUSDT"], "klines, 2 symbols\n"),
    ],
)
def test_a_run_is_told_in_numbers(installation, inbox, words, said):
    """As people count."""
    assert f"run 1: binance.{said}" in penstock("run", "binance.klines", "--detach", *words).stderr


def test_a_run_says_when_nobody_would_plan_it(installation, inbox):
    """The message waits in Redis until a ctl worker is there."""
    result = penstock("run", "binance", "--detach")
    assert result.exit_code == 0
    assert "none is alive; start `penstock up`, or `penstock worker --ctl`" in result.stderr
    assert inbox.length("ctl") == 1


def test_a_run_says_when_nobody_would_collect_it(installation, inbox):
    """A ctl worker alone collects nothing."""
    heartbeat.beat("ctl", 1)
    assert "no worker is alive that collects" in penstock("run", "binance", "--detach").stderr
    heartbeat.beat("units", 1)


def test_several_collectors_make_a_run_each(installation, inbox):
    """So that an open circuit of one does not hold the other's result."""
    result = penstock("run", "binance", "coinbase", "--detach", "--json")
    made = json.loads(result.stdout)
    assert [(run["run"], run["collector_name"], run["state"]) for run in made] == [
        (1, "binance", "planning"),
        (2, "coinbase", "planning"),
    ]
    assert inbox.length("ctl") == 2


@pytest.mark.parametrize(
    ("outcomes", "exit_code", "word"),
    [
        (["stored", "stored"], 0, "ok"),
        (["empty", "empty"], 0, "empty"),
        (["stored", "failed"], 1, "partial"),
        (["failed", "failed"], 1, "failed"),
        (["skipped", "skipped"], 1, "skipped"),
    ],
)
def test_the_exit_status_is_the_outcome(fleet_answers, outcomes, exit_code, word):
    """What a script asks for."""
    fleet_answers(*outcomes)
    result = penstock("run", "binance.klines")
    assert result.exit_code == exit_code, result.stderr
    assert word in result.stdout.splitlines()[1]
    assert ("what failed: penstock show 1" in result.stdout) == ("failed" in outcomes)


def test_the_result_as_json(fleet_answers):
    """On stdout alone, with the fields of CollectionResult."""
    fleet_answers("stored", "failed")
    result = penstock("run", "binance.klines", "--json")
    (run,) = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (run["outcome"], run["success_rate"], run["units_by_outcome"]) == (
        "partial",
        0.5,
        {"stored": 1, "failed": 1},
    )


def test_ctrl_c_ends_the_waiting_and_not_the_run(installation, inbox, monkeypatch):
    """It says how to look at the run, and with which status a shell ends then."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("workers.progress.watch", interrupted)
    result = penstock("run", "binance")
    assert result.exit_code == 130
    assert "it goes on without you; look at it with penstock show 1" in result.stderr
    assert reads.latest_runs()[0].state == "planning"


def test_a_backfill_is_stored_with_its_range(installation, inbox):
    """UTC, and the end is not in it."""
    words = ["--start", "2026-01-01", "--end", "2026-02-01T06:00", "--symbols", "BTCUSDT", "--detach"]
    assert penstock("backfill", "binance.klines", *words).exit_code == 0
    (run,) = reads.latest_runs()
    assert (run.kind, run.lane, run.on_open) == ("backfill", "backfill", "park")
    assert (run.start_at, run.end_at) == (
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 2, 1, 6, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    "words",
    [
        ["run", "binance", "--symbols", "not/asymbol"],
        ["run", "binance", "nothing"],
        ["backfill", "binance.klines", "--start", "2026-01-01", "--end", "2999-01-01"],
    ],
)
def test_what_is_refused_is_not_written(installation, words):
    """Not even the part of it that was right."""
    assert penstock(*words).exit_code == 2
    assert reads.latest_runs() == []


def test_runs_and_show_tell_of_a_run(fleet_answers):
    """As tables and as JSON."""
    fleet_answers("stored", "failed")
    penstock("run", "binance.klines")
    assert "binance.klines" in penstock("runs").stdout
    assert [run["run"] for run in json.loads(penstock("runs", "--json").stdout)] == [1]
    page = penstock("show", "1").stdout
    assert "run 1: binance.klines (adhoc) partial" in page
    assert "ETHUSDT" in page
    facts = json.loads(penstock("show", "1", "--json").stdout)
    assert [(error["symbol"], error["error"]) for error in facts["errors"]] == [("ETHUSDT", "test")]


def test_a_run_that_is_not_there(installation):
    """Says where to look."""
    for command in ("show", "cancel"):
        result = penstock(command, "404")
        assert result.exit_code == 2
        assert "there is no run 404; `penstock runs` lists them" in result.stderr


def test_a_cancelled_run_ends(installation, inbox):
    """Once; a second time there is nothing to end."""
    penstock("run", "binance", "--detach")
    runs.plan(run=1)
    assert penstock("cancel", "1").exit_code == 0
    (run,) = reads.latest_runs()
    assert (run.state, run.outcome, run.units.by_outcome) == ("done", "cancelled", {"skipped": 2})
    assert "has ended already (cancelled)" in penstock("cancel", "1").stderr


def test_collectors_say_their_circuits(installation):
    """Closed where nothing happened; unknown where Redis does not answer."""
    facts = json.loads(penstock("collectors", "--json").stdout)
    assert {each["endpoint"]: each["circuit"] for each in facts} == dict.fromkeys(
        ("binance.klines", "coinbase.candles", "asana.tasks", "asana.projects"), "closed"
    )
    installation.configure(PENSTOCK_REDIS_URL="redis://127.0.0.1:1/0")
    result = penstock("collectors")
    assert result.exit_code == 0
    assert " ? " in result.stdout


def test_secrets_are_not_shown(installation):
    """Not in a sentence about the server that they belong to."""
    installation.configure(PENSTOCK_REDIS_URL="redis://:geheim@127.0.0.1:1/0")
    for words in (["worker"], ["run", "binance", "--detach"], ["collectors"]):
        result = penstock(*words)
        assert "geheim" not in result.output


def test_limits_as_they_stand(installation):
    """A bucket's pace, calls in flight, what is used of a budget, and who is banned until when."""
    from resilience.errors import BannedError
    from resilience.guard import CallResult, Go
    from resilience.policy import Lane
    from tasks.collectors.registry import endpoint_of
    from tasks.limits import ask_for, guard

    guard().store.mark_fresh(["asana", "coinbase"])
    asked = guard().admit(ask_for(endpoint_of("asana.tasks"), "1", Lane.LIVE, 1))
    assert isinstance(asked, Go)
    limiter = ask_for(endpoint_of("coinbase.candles"), "BTC-USD", Lane.LIVE, 1).limits[0]
    guard().store.adjust(limiter.spec, 0.5)
    found = {(row["api"], row["limit"]): row for row in json.loads(penstock("limits", "--json").stdout)}
    assert found["coinbase", "10/1s"]["rate_per_s"] == 5
    assert found["coinbase", "10/1s"]["adjusted_by_hand"] == 0.5
    assert (found["asana", "50 at once"]["used"], found["asana", "50 at once"]["left"]) == (1, 49)
    assert found["asana", "150/1m"]["closed_until_at"] is None
    guard().settle(asked.lease, CallResult.of(BannedError(retry_after_s=600), latency_s=0.1))
    shown = penstock("limits").stdout
    assert "50 at once" in shown
    assert "█████····· 5/s" in shown
    assert "banned until" in shown
