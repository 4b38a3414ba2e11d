"""Flower as somebody with its password sees it."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests

from tests.acceptance.fleet import Fleet

PATHS = (
    "/",
    "/workers",
    "/workers?json=1",
    "/tasks",
    "/broker",
    "/metrics",
    "/nothing",
    "/tasks/datatable",
    "/api/workers",
    "/api/tasks",
    "/api/task/types",
    "/api/queues/length",
)


class Dashboard:
    """Flower as somebody with a password sees it; without `auth` as anybody does."""

    def __init__(self, url, auth):
        self.url, self.auth = url, auth
        self.session = requests.Session()
        self.session.trust_env = False

    def ask(self, path, method="GET", **options):
        return self.session.request(
            method, self.url + path, timeout=20, allow_redirects=False, **{"auth": self.auth} | options
        )

    def found(self, search):
        """What the tasks page shows for this text in its search field."""
        query = {
            "draw": 1,
            "start": 0,
            "length": 1000,
            "search[value]": search,
            "order[0][column]": 0,
            "columns[0][data]": "name",
        }
        answer = self.ask("/tasks/datatable", params=query).json()
        assert "searchError" not in answer
        return {row["uuid"]: row for row in answer["data"]}

    def results(self, search):
        """Of finished tasks, by unit."""
        rows = self.found(f"{search} state:SUCCESS").values()
        return {row["kwargs"]: row for row in rows}

    def pages(self, tasks: Sequence[str]) -> Iterator[tuple[str, requests.Response]]:
        """Every page and answer of the API, those of all workers and of these tasks among them."""
        names = self.ask("/api/workers?refresh=1").json()
        kinds = ("task", "api/task/info", "api/task/result")
        for path in (
            *PATHS,
            *(f"/worker/{name}" for name in names),
            *(f"/{kind}/{task}" for kind in kinds for task in tasks),
        ):
            yield path, self.ask(path)


@contextlib.contextmanager
def started(fleet: Fleet) -> Iterator[Dashboard]:
    """The Flower of a fleet, by the command."""
    said = fleet.log("flower")
    said.unlink(missing_ok=True)
    fleet.start("flower", "flower", "--port=0")
    try:
        fleet.wait_for(lambda: "Flower: " in said.read_text(), "Flower to listen")
        found = re.search(r"Flower: (\S+), user (\S+), password in (\S+)", said.read_text())
        assert found is not None
        url, user, place = found.groups()
        assert Path(place).stat().st_mode & 0o777 == 0o600
        kept_user, password = Path(place).read_text().strip().split(":")
        assert kept_user == user
        made = Dashboard(url, (user, password))
        fleet.wait_for(
            lambda: len(made.ask("/api/workers?refresh=1").json()) >= 2, "Flower to see the workers"
        )
        yield made
        made.session.close()
    finally:
        assert fleet.stop("flower") == {"flower": 0}
