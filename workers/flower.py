"""Flower, Celery's own dashboard: never without a password, and bounded in memory.

Its variables (FLOWER_*) and its flowerconfig.py are not read, so that nothing found in an environment or a
directory can open it. What it shows is lost when it ends; the record of what was collected is in SQL.
"""

import ast
import contextlib
import logging
import signal
from collections.abc import Callable
from typing import Any

from celery import Celery
from flower.app import Flower
from flower.options import options
from flower.urls import settings as tornado_settings

from resilience.errors import ConfigurationError
from workers.flower_auth import FlowerAuth

# 6 KiB each. The results in SQL are the history.
_MAX_TASKS = 20_000
# Names of workers hold a pid, so each restart leaves one behind.
_PURGE_OFFLINE_S = 600
# Units of an endpoint differ in their arguments only; the identifier is long, and links to the task's page.
_COLUMNS = "name,kwargs,state,retries,result,received,runtime,worker,uuid"

# What the name of the task, or its arguments, say already.
_SAID = {"endpoint", "unit"}


def serve(app: Celery, auth: FlowerAuth, address: str, port: int, say: Callable[[str], None]) -> None:
    """Show the fleet's tasks and workers at this address until SIGTERM or Ctrl-C; port 0 is any free one.

    Raises ConfigurationError when the address cannot be listened on.
    """
    options.basic_auth = [f"{auth.user}:{auth.password}"]
    options.address, options.port = address, port
    options.max_tasks = _MAX_TASKS
    options.purge_offline_workers = _PURGE_OFFLINE_S
    options.tasks_columns = _COLUMNS
    options.format_task = shortened
    dashboard = Flower(capp=app, options=options, **tornado_settings)
    say(f"Flower: {_url(address, _listen(dashboard))}, {auth.told}")
    logging.getLogger("tornado.access").setLevel(logging.ERROR)  # its page asks again and again
    for number in (signal.SIGTERM, signal.SIGINT):
        dashboard.io_loop.asyncio_loop.add_signal_handler(number, dashboard.stop)
    dashboard.start()


def shortened(task: Any) -> Any:
    """The task as it is drawn: `symbol=BTCUSDT run=17 n=3`, as one types it to search, and so for the result.

    Its page would cut off the symbol otherwise. The search, and Flower's API, go by what the worker said.
    """
    task.kwargs, task.result = _pairs(task.kwargs), _pairs(task.result)
    return task


def _pairs(text: Any) -> Any:
    """A dict's text as pairs, the symbol first; any other text as it is, also one that was cut off."""
    with contextlib.suppress(ValueError, SyntaxError, TypeError):
        value = ast.literal_eval(text)
        if isinstance(value, dict) and value:
            shown = {name: value[name] for name in sorted(value, key=lambda name: name != "symbol")}
            return " ".join(f"{name}={each}" for name, each in shown.items() if name not in _SAID)
    return text


def _listen(dashboard: Flower) -> int:
    """The port that it listens on from now."""
    wanted = dashboard.options
    try:
        return int(dashboard.start_http_server())
    except OSError as error:
        raise ConfigurationError(
            f"Flower cannot listen on {wanted.address} port {wanted.port} ({error.strerror}); "
            "choose another --port or --address"
        ) from None


def _url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
