"""What every scenario runs on: the fleet, on a broker and a database that it may break."""

import contextlib

import pytest

from tests.chaos.fleet import Fleet
from tests.deployments import BOTH


@pytest.fixture(params=BOTH)
def deployment(request, tmp_path, new_deployment):
    """Broker and database; a scenario names others where these two will not do."""
    with new_deployment(request.param, tmp_path, breakable=True) as made:
        yield made


@pytest.fixture
def fleet(deployment, symbols, tmp_path, monkeypatch):
    """Makes the fleet for the `symbols` of the test's file, and a clean environment after it."""
    made = contextlib.ExitStack()

    def make(**options):
        for name in ("POND_URL", "POND_SYMBOLS", "PENSTOCK_REDIS_URL", "PENSTOCK_BROKER_URL"):
            monkeypatch.setenv(name, "")  # remembered, so that it is undone
        servers = {"database": deployment.database_url, "rabbitmq": deployment.rabbitmq}
        running = made.enter_context(Fleet(tmp_path, **servers, **{"symbols": symbols} | options))
        running.deployment = deployment.name
        return running

    with made:
        yield make
