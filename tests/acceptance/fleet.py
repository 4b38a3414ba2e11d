"""Worker, ctl worker and beat as real processes, with a Redis and a database of their own."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import func, select

from tasks.models import results, runs, units, workers
from tasks.outcomes import RunState
from tasks.store import open_engine
from tests.deployments import Deployment
from workers.children import kill, spawn

ROOT = Path(__file__).parents[2]
PENSTOCK = (sys.executable, "-m", "workers.cli")
STOP_S = 40.0
PATIENT_S = 90.0  # how long a test waits for what takes a second or two on a machine that is not busy


class Fleet:
    """Everything runs in `directory`, and ends with this process even when it is killed."""

    def __init__(self, directory: Path, deployment: Deployment, *, redis_url: str, **settings: str):
        self.directory = directory
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")} | {
            "PENSTOCK_REDIS_URL": redis_url,
            **deployment.settings,
            "PENSTOCK_STATE_DIR": str(directory),
            "PENSTOCK_CONFIG": str(directory / "penstock.toml"),
            "PENSTOCK_TICK_S": "1",
            "PENSTOCK_RECONCILE_S": "1",
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        self.engine = open_engine(deployment.database_url)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def configure(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the TOML file, before the first process starts; texts and lists of texts have the same look there."""
        lines = []
        for name, table in tables.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
        (self.directory / "penstock.toml").write_text("\n".join(lines) + "\n")

    def start(self, name: str, *words: str) -> None:
        """One more process, `penstock` with these words."""
        with self.log(name).open("ab") as output:
            self.processes[name] = spawn((*PENSTOCK, *words), env=self.env, output=output)

    def start_workers(self) -> None:
        """The migrated database, a worker and a ctl worker, as soon as both have said that they are alive."""
        assert self.command("db", "upgrade").returncode == 0
        self.start("worker", "worker")
        self.start("ctl", "worker", "--ctl")
        self.wait_for(lambda: {"units", "ctl"} <= set(self.column(workers.c.kind)), "workers to be alive")

    def stop(self, *names: str) -> dict[str, int]:
        """Ask the processes named, or all, to end; their exit statuses."""
        chosen = {name: self.processes.pop(name) for name in names or reversed(list(self.processes))}
        for process in chosen.values():
            process.terminate()
        for process in chosen.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            kill(process)
        return {name: process.returncode for name, process in chosen.items()}

    def command(self, *words: str, timeout_s: float = PATIENT_S) -> "subprocess.CompletedProcess[str]":
        """A command as a person types it, from a directory that is not the checkout's."""
        return subprocess.run(
            (*PENSTOCK, *words),
            cwd=self.directory,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def wait_for(self, condition: Callable[[], Any], what: str, within_s: float = PATIENT_S) -> None:
        """Look again until it holds; fails with the ends of the logs."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {within_s:g} s for {what}{self._logs()}"
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} has ended{self._logs()}"
            time.sleep(0.05)

    def _logs(self) -> str:
        ends = (f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.directory.glob("*.log"))
        return "\n".join(("", *ends))

    def rows(self, statement: sqlalchemy.Select[Any]) -> list[dict[str, Any]]:
        """What SQL says, in its own words."""
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def column(self, column: sqlalchemy.ColumnElement[Any], *where: Any) -> list[Any]:
        with self._reading() as connection:
            return list(connection.execute(select(column).where(*where)).scalars())

    def _reading(self) -> sqlalchemy.Connection:
        return self.engine.connect().execution_options(penstock_read=True)

    def open_runs(self) -> int:
        return len(self.column(runs.c.id, runs.c.state != RunState.DONE))

    def results(self, *where: Any) -> list[dict[str, Any]]:
        """Each run with its CollectionResult, oldest first."""
        found = select(results, runs.c.schedule, runs.c.slot_at, runs.c.kind, runs.c.requested_at)
        return self.rows(found.join(runs, runs.c.id == results.c.run).where(*where).order_by(results.c.run))

    def collect(self, *words: str, status: int = 0) -> dict[str, Any]:
        """The result of a command that makes one run, waits for it and says what came of it in JSON."""
        said = self.command(*words, "--json")
        assert said.returncode == status, said.stderr + self._logs()
        (shown,) = json.loads(said.stdout)
        (result,) = self.results(runs.c.id == shown["run"])
        return {**result, "shown": shown}

    def windows(self, *numbers: int) -> dict[str, tuple[Any, Any]]:
        """From when to when each symbol was collected by these runs."""
        first, last = func.min(units.c.start_at), func.max(units.c.end_at)
        found = self.rows(
            select(units.c.symbol, first.label("start"), last.label("end"))
            .where(units.c.run.in_(numbers))
            .group_by(units.c.symbol)
        )
        return {row["symbol"]: (row["start"], row["end"]) for row in found}

    def close(self) -> None:
        self.stop()
        self.engine.dispose()
