"""What the processes, Redis and the database hold at a moment."""

import contextlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import redis
from sqlalchemy import func, select, text

from tasks.models import runs
from tasks.outcomes import RunState

PAGE = os.sysconf("SC_PAGE_SIZE")
CHORD_DONE = re.compile(r"celery-taskset-meta-.*\.c")  # Celery's own mark of each wave
MARK_S = 300  # for as long
FOR_EVER = -1  # what Redis says of a key without an end; -2 is one that is gone already
KINDS = {"--only-ctl": "ctl worker", "--alone": "worker for suspects"}


class Process:
    """One process as /proc shows it; what has ended in between counts as nothing."""

    def __init__(self, pid: int):
        self.folder = Path(f"/proc/{pid}")
        self.pid = pid

    def rss_mb(self) -> float | None:
        with contextlib.suppress(OSError, IndexError):
            return int((self.folder / "statm").read_text().split()[1]) * PAGE / 1e6
        return None

    def words(self) -> list[str]:
        with contextlib.suppress(OSError):
            return (self.folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        return []

    def parent(self) -> int | None:
        with contextlib.suppress(OSError, IndexError):
            return int((self.folder / "stat").read_text().rpartition(")")[2].split()[1])
        return None

    def files(self) -> Iterator[str]:
        """What its open file descriptors lead to."""
        with contextlib.suppress(OSError):
            for entry in (self.folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield str(entry.readlink())


def families(roots: dict[str, int]) -> Iterator[tuple[str, Process]]:
    """Every process of each root's family with the name of its part: a fork runs the words of its parent."""
    everybody = [Process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    children: dict[int | None, list[Process]] = defaultdict(list)
    for process in everybody:
        children[process.parent()].append(process)
    for name, root in roots.items():
        pending = [(name, Process(root))]
        while pending:
            part, process = pending.pop()
            yield part, process
            words = process.words()
            for child in children[process.pid]:
                theirs = child.words()
                kind = next((KINDS[word] for word in theirs if word in KINDS), part)
                pending.append((f"{part}, child" if theirs == words else kind, child))


def prefix(key: str) -> str:
    """What keys of one kind have in common: everything before the first identifier."""
    return re.split(r"[0-9a-f]{8}-|\d+|\{", key, maxsplit=1)[0]


def lasting(marks: Mapping[str, int]) -> set[str]:
    """Marks that stay for longer than Celery means them to, given the seconds that each has left."""
    return {mark for mark, left_s in marks.items() if left_s == FOR_EVER or left_s > MARK_S}


class Sampler:
    """Series by measure, and in each by life: a process, or the one server there is."""

    def __init__(self, fleet, server, onlooker):
        self.fleet, self.server, self.onlooker = fleet, server, onlooker
        self.client = redis.Redis.from_url(server.url)
        self.series = defaultdict(lambda: defaultdict(list))
        self.prefixes: list[tuple[float, Counter]] = []
        self.lasting: set[str] = set()

    def take(self, now: float) -> None:
        """One sample of everything."""
        roots = {name: process.pid for name, process in self.fleet.processes.items()}
        files: Counter[str] = Counter()
        connections = 0
        for part, process in families({**roots, "redis": self.server.pid}):
            if (rss := process.rss_mb()) is None:
                continue
            self.series["memory", part][process.pid].append((now, rss))
            targets = list(process.files())
            connections += sum(target.endswith("penstock.db") for target in targets)
            # Open files of a part as a whole: a killed child's successor has them again.
            files[part.removesuffix(", child")] += len(targets)
        for part, count in files.items():
            self._add("files", part, now, count)
        self._redis(now)
        self._database(now, connections)
        if (tasks := self.onlooker.look()) is not None:
            self._add("tasks", "Flower", now, tasks)

    def _add(self, measure: str, part: str, now: float, value: float) -> None:
        self.series[measure, part][None].append((now, value))

    def _redis(self, now: float) -> None:
        keys = [key.decode(errors="replace") for key in self.client.scan_iter(count=1000)]
        self.prefixes.append((now, Counter(map(prefix, keys))))
        marks = [key for key in keys if CHORD_DONE.fullmatch(key)]
        self.lasting |= lasting(self._left_s(marks))
        self._add("keys", "redis", now, len(keys) - len(marks))
        self._add("all keys", "redis", now, len(keys))
        self._add("channels", "redis", now, len(self.client.pubsub_channels()))
        self._add("clients", "redis", now, self.client.info("clients")["connected_clients"])
        self._add("used", "redis", now, self.client.info("memory")["used_memory"] / 1e6)

    def _left_s(self, keys: Sequence[str]) -> dict[str, int]:
        pipeline = self.client.pipeline(transaction=False)
        for key in keys:
            pipeline.ttl(key)
        return dict(zip(keys, pipeline.execute(), strict=True))

    def _database(self, now: float, connections: int) -> None:
        with self.fleet.engine.connect().execution_options(penstock_read=True) as connection:
            if connection.dialect.name == "postgresql":
                ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                connections = connection.execute(text(ours)).scalar_one()
            counted = select(func.count()).where(runs.c.state != RunState.DONE)
            self._add("open", "runs", now, connection.execute(counted).scalar_one())
        self._add("connections", "database", now, connections)

    def now(self, measure: str, part: str) -> float:
        """The newest value of something there is one of."""
        return self.series[measure, part][None][-1][1]

    def write(self, path: Path) -> None:
        """All series, for whoever wants to look closer."""
        found = [
            {"measure": measure, "part": part, "life": life, "points": points}
            for (measure, part), lives in self.series.items()
            for life, points in lives.items()
        ]
        path.write_text(json.dumps(found))

    def close(self) -> None:
        self.client.close()
