"""Stock Flower beside the fleet: it sees the workers and the tasks."""

import contextlib
import socket
import sys

import pytest
import requests

from workers.children import spawn, stop


@pytest.mark.parametrize("fleet", ["sqlite-prefork"], indirect=True)
def test_flower_shows_workers_and_tasks(fleet):
    """By the command in the README, and under the endpoint's name."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (
        sys.executable,
        "-m",
        "celery",
        "-A",
        "workers",
        "flower",
        "--address=127.0.0.1",
        f"--port={port}",
    )
    env = fleet.env | {"FLOWER_UNAUTHENTICATED_API": "true"}
    with fleet.log("flower").open("wb") as output:
        flower = spawn(command, env=env, output=output)
    session = requests.Session()
    session.trust_env = False

    def asked(path):
        with contextlib.suppress(requests.RequestException):
            return session.get(f"http://127.0.0.1:{port}/api/{path}", timeout=5).json()
        return {}

    try:
        fleet.wait_for(lambda: len(asked("workers?refresh=1")) >= 2, "Flower to see the workers")
        fleet.collect("run", "binance.klines", "--symbols", "LTCUSDT")
        fleet.wait_for(
            lambda: any(
                task["name"] == "binance.klines"
                and task["state"] == "SUCCESS"
                and "LTCUSDT" in task["kwargs"]
                for task in asked("tasks").values()
            ),
            "Flower to see the task",
        )
    finally:
        session.close()
        stop(flower, 10)
