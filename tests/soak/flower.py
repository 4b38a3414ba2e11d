"""Flower as `penstock flower` runs it, but full within the warm-up: twenty thousand tasks would take half an hour.

    python -m tests.soak.flower flower --port=0

From then on each new task has to cost it an old one, and its memory can be judged.
"""

import contextlib
import re
from unittest.mock import patch

import requests

from workers import cli, flower

KEPT = 150  # tasks; of each unit it keeps some events, too, up to four times as many
PAGE = {
    "draw": 1,
    "start": 0,
    "length": 15,
    "search[value]": "run",
    "order[0][column]": 0,
    "columns[0][data]": "name",
}


class Onlooker:
    """Somebody who has its page of tasks open, and asks for the metrics now and then."""

    def __init__(self, fleet, log: str):
        self.log = fleet.log(log)
        self.password_file = fleet.directory / "flower.auth"
        self.session = requests.Session()
        self.session.trust_env = False
        self.refused = 0

    def url(self) -> str | None:
        """Where it listens now, or listened last."""
        said = re.findall(r"Flower: ([^\s,]+)", self.log.read_text())
        return said[-1] if said else None

    def look(self) -> int | None:
        """How many tasks it holds; None, and counted, when it does not answer."""
        with contextlib.suppress(requests.RequestException):
            self._get("/metrics")
            return int(self._get("/tasks/datatable", params=PAGE).json()["recordsTotal"])
        self.refused += 1
        return None

    def _get(self, path: str, **options) -> requests.Response:
        user, _, password = self.password_file.read_text().strip().partition(":")
        answer = self.session.get(f"{self.url()}{path}", auth=(user, password), timeout=10, **options)
        answer.raise_for_status()
        return answer

    def close(self) -> None:
        self.session.close()


if __name__ == "__main__":
    with patch.object(flower, "_MAX_TASKS", KEPT):
        cli.main(prog_name="penstock")
