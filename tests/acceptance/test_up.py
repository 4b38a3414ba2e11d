"""`penstock up`, whole: everything on one machine from one command, and nothing left of it."""

import contextlib
import json
import signal
import subprocess
from pathlib import Path

import pytest

from tasks.models import workers
from tasks.runtime import Runtime, started
from tests.acceptance.fleet import PENSTOCK, Fleet


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


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 0), (signal.SIGKILL, -9)])
def test_up_runs_and_leaves_nothing(tmp_path, configuration, redis_server, how, status):
    """A command from another directory finds it and collects; a Ctrl-C ends it all, and so does a kill."""
    del redis_server
    fleet = Fleet(tmp_path, redis_url="", database_url=f"sqlite:///{tmp_path / 'penstock.db'}")
    del fleet.env["PENSTOCK_REDIS_URL"], fleet.env["PENSTOCK_DATABASE_URL"]
    fleet.configure({name: table for name, table in configuration.items() if name.startswith("binance")})
    with fleet.log("up").open("wb") as output:
        up = subprocess.Popen((*PENSTOCK, "up"), cwd=tmp_path, env=fleet.env, stdout=output, stderr=output)
    try:
        fleet.processes["up"] = up
        fleet.wait_for(lambda: Runtime.read(tmp_path), "the runtime file")
        fleet.wait_for(lambda: {"units", "ctl", "alone"} <= set(fleet.column(workers.c.kind)), "the workers")
        result = fleet.collect("run", "binance.klines", "--symbols", "BTCUSDT")
        assert (result["outcome"], result["records"]) == ("ok", 1000)
        assert len(left_of(tmp_path)) >= 6  # up, Redis, worker, ctl, alone, beat, and the children of pools
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
