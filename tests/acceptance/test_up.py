"""`penstock up`, whole, as the README has it: its declaration, its two terminals, and nothing left of them."""

import contextlib
import functools
import json
import operator
import re
import shlex
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import requests
from sqlalchemy import select

from tasks.models import records, workers
from tasks.runtime import Runtime, started
from tests.acceptance.fleet import PENSTOCK, ROOT, Fleet
from tests.deployments import REDIS_SQLITE, Deployment
from tests.upstream import data


def left_of(directory):
    """Processes that were told of this directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                str(directory).encode()
                in (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            ):
                found.append((process.name, (process / "cmdline").read_bytes()))
    return [each for each in found if started(int(each[0])) is not None]


def blocks(kind, text):
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


README = (ROOT / "README.md").read_text()
(DECLARATION,) = blocks("python", README)
_, UP, BESIDE = blocks("sh", README.partition("\n## Your own collector\n")[2].partition("\n## ")[0])
PROCESSES = {"up", "worker", "beat", "flower"}  # they do not end by themselves


def asked_in_pages():
    """Every command of the other pages that an installation answers, in its order there."""
    pages = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for page in pages for block in blocks("sh", page) for line in block.splitlines()]
    asked = [line for line in lines if line.startswith("penstock ") and line.split()[1] not in PROCESSES]
    # It looks at one port, which here another Flower may have.
    return [line for line in asked if line != "penstock health --flower"]


def typed(lines, *before):
    """A shell that runs these lines as they stand, and ends at the first that fails."""
    penstock = shlex.join((*before, *PENSTOCK))
    return "sh", "-euc", f'penstock() {{ {penstock} "$@"; }}\n{lines}'


def kept_hours(fleet):
    """What the README's parse function makes of a bar, as JSON."""
    return {
        (row["data"]["symbol"], row["data"]["open_time"]): Decimal(str(row["data"]["close"]))
        for row in fleet.rows(select(records))
    }


def served_hours(symbol, start, end):
    return {
        (symbol, datetime.fromtimestamp(row[0] / 1000, UTC).isoformat().replace("+00:00", "Z")): Decimal(
            row[4]
        )
        for row in data.klines(symbol, int(start.timestamp() * 1000), int(end.timestamp() * 1000), 3_600_000)
    }


def newest_hours(fleet, symbol):
    """A first run collects one page, and another one what has been added since."""
    end = fleet.windows(1)[symbol][1]
    return served_hours(symbol, end - timedelta(hours=500), fleet.windows(1, 2)[symbol][1])


def flower_asks_for_a_password(fleet):
    """At the address that was said; there to be looked at by whoever may read the file that was named."""
    url, place = re.search(
        r"Flower: (\S+), user penstock, password in (.+)", fleet.log("up").read_text()
    ).groups()
    auth = tuple(Path(place).read_text().strip().split(":"))
    with requests.Session() as session, contextlib.suppress(requests.ConnectionError):
        session.trust_env = False
        return [session.get(url, auth=each, timeout=20).status_code for each in (None, auth)] == [401, 200]


@pytest.fixture
def up(tmp_path, upstream, redis_server):
    """The fleet of the README's first terminal, with the fake API in place of the real one."""
    del redis_server
    fleet = Fleet(tmp_path, Deployment(REDIS_SQLITE, f"sqlite:///{tmp_path / 'penstock.db'}"), redis_url="")
    del fleet.env["PENSTOCK_REDIS_URL"], fleet.env["PENSTOCK_DATABASE_URL"]
    (tmp_path / "prices.py").write_text(DECLARATION)
    fleet.configure({"market": {"base_url": upstream.base("binance")}})
    with fleet.log("up").open("wb") as output:
        process = subprocess.Popen(
            typed(UP, "exec"), cwd=tmp_path, env=fleet.env, stdout=output, stderr=output
        )
    try:
        fleet.processes["up"] = process
        fleet.wait_for(lambda: Runtime.read(tmp_path), "the runtime file")
        fleet.wait_for(lambda: {"units", "ctl", "alone"} <= set(fleet.column(workers.c.kind)), "the workers")
        yield fleet
    finally:
        process.kill()
        process.wait()
        fleet.engine.dispose()


def end(fleet, how, status):
    """Nothing is left but what was collected."""
    # up, Redis, worker, ctl, alone, beat, Flower, and the children of pools
    assert len(left_of(fleet.directory)) >= 7
    process = fleet.processes.pop("up")
    process.send_signal(how)
    assert process.wait(40) == status
    fleet.wait_for(lambda: not left_of(fleet.directory), "every process to be gone", within_s=10)
    assert Runtime.read(fleet.directory) is None
    with contextlib.closing(fleet.engine.raw_connection()) as connection:
        assert connection.cursor().execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return [(run["run"], run["outcome"]) for run in json.loads(fleet.command("runs", "--json").stdout)]


def test_second_terminal_does_what_the_pages_say(up):
    """All commands as they stand collect, look and steer; a Ctrl-C ends it all."""
    lines = "\n".join((BESIDE, *asked_in_pages()))
    done = subprocess.run(
        typed(lines), cwd=up.directory, env=up.env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "run 1: market.hours (adhoc) ok",
        "circuit market.hours is forced open until 2099-03-01 06:00 UTC",
        "circuit market.hours is disabled until it is reset",
        "circuit market.hours is closed and no longer forced",
    ):
        assert said in done.stdout
    start, after = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC)
    parts = [newest_hours(up, symbol) for symbol in ("BTCUSDT", "ETHUSDT")]
    parts += [served_hours(symbol, start, after) for symbol in ("BTCUSDT", "ETHUSDT")]
    assert kept_hours(up) == functools.reduce(operator.or_, parts)
    up.wait_for(lambda: flower_asks_for_a_password(up), "Flower where `up` says that it is")
    assert end(up, signal.SIGINT, 0) == [(3, "ok"), (2, "ok"), (1, "ok")]


def test_a_kill_leaves_nothing(up):
    """Neither a process nor a broken database."""
    up.env["PENSTOCK_COLLECTORS"] = "prices:market"
    result = up.collect("run", "market")
    assert (result["outcome"], result["records"]) == ("ok", 2 * 500)
    assert end(up, signal.SIGKILL, -signal.SIGKILL) == [(result["run"], "ok")]
