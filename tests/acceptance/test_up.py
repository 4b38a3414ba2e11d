"""`penstock up`, whole, with the declaration in the README: all of it from one command, and nothing left of it."""

import contextlib
import json
import re
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


def kept_hours(fleet):
    """What the README's parse function makes of a bar, as JSON."""
    return {
        (row["data"]["symbol"], row["data"]["open_time"]): Decimal(str(row["data"]["close"]))
        for row in fleet.rows(select(records))
    }


def served_hours(start, end):
    return {
        (symbol, datetime.fromtimestamp(row[0] / 1000, UTC).isoformat().replace("+00:00", "Z")): Decimal(
            row[4]
        )
        for symbol in ("BTCUSDT", "ETHUSDT")
        for row in data.klines(symbol, int(start.timestamp() * 1000), int(end.timestamp() * 1000), 3_600_000)
    }


def flower_asks_for_a_password(fleet):
    """At the address that was said; there to be looked at by whoever may read the file that was named."""
    url, place = re.search(
        r"Flower: (\S+), user penstock, password in (.+)", fleet.log("up").read_text()
    ).groups()
    auth = tuple(Path(place).read_text().strip().split(":"))
    with requests.Session() as session, contextlib.suppress(requests.ConnectionError):
        session.trust_env = False
        return [session.get(url, auth=each, timeout=20).status_code for each in (None, auth)] == [401, 200]


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_up_runs_and_leaves_nothing(tmp_path, upstream, redis_server, how, status):
    """A command from another directory finds it and collects; a Ctrl-C ends it all, and so does a kill."""
    del redis_server
    fleet = Fleet(tmp_path, Deployment(REDIS_SQLITE, f"sqlite:///{tmp_path / 'penstock.db'}"), redis_url="")
    del fleet.env["PENSTOCK_REDIS_URL"], fleet.env["PENSTOCK_DATABASE_URL"]
    (declaration,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "prices.py").write_text(declaration)
    fleet.env["PENSTOCK_COLLECTORS"] = "prices:market"
    fleet.configure({"market": {"base_url": upstream.base("binance")}})
    with fleet.log("up").open("wb") as output:
        up = subprocess.Popen((*PENSTOCK, "up"), cwd=tmp_path, env=fleet.env, stdout=output, stderr=output)
    try:
        fleet.processes["up"] = up
        fleet.wait_for(lambda: Runtime.read(tmp_path), "the runtime file")
        fleet.wait_for(lambda: {"units", "ctl", "alone"} <= set(fleet.column(workers.c.kind)), "the workers")
        result = fleet.collect("run", "market")
        assert (result["outcome"], result["records"]) == ("ok", 2 * 500)
        end = fleet.windows(result["run"])["BTCUSDT"][1]
        assert kept_hours(fleet) == served_hours(end - timedelta(hours=500), end)
        fleet.wait_for(lambda: flower_asks_for_a_password(fleet), "Flower where `up` says that it is")
        # up, Redis, worker, ctl, alone, beat, Flower, and the children of pools
        assert len(left_of(tmp_path)) >= 7
        up.send_signal(how)
        assert up.wait(40) == status
        del fleet.processes["up"]
        fleet.wait_for(lambda: not left_of(tmp_path), "every process to be gone", within_s=10)
    finally:
        up.kill()
        up.wait()
    assert Runtime.read(tmp_path) is None
    (kept,) = json.loads(fleet.command("runs", "--json").stdout)
    assert (kept["run"], kept["outcome"]) == (result["run"], "ok")
    with contextlib.closing(fleet.engine.raw_connection()) as connection:
        assert connection.cursor().execute("PRAGMA integrity_check").fetchone() == ("ok",)
    fleet.engine.dispose()
