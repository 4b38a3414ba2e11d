"""The class form of a collector, for logic that no declaration fits.

    class Ticker(BaseCollector):
        key = ("id",)

        def _validate_config(self): …
        def collect_data(self): …         # returns rows, or stores them and says how it went
        def backfill_historical(self, start_time, end_time, **kwargs): …

    ticker = Ticker(collector_name="ticker", api_url="https://api.example.com", api_key="TICKER_KEY")

`PENSTOCK_COLLECTORS=my_module:ticker` makes it a collector like any other: runs, units, results, circuits and
limits are the same. `with ticker:` runs it here, without a broker.
"""

import json
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from sqlalchemy import Table

from resilience.errors import CollectionError, ConfigurationError
from resilience.policy import BreakerPolicy, Limit, RetryPolicy
from tasks import local
from tasks.collectors.auth import Bearer
from tasks.collectors.endpoint import Endpoint
from tasks.collectors.rows import decode
from tasks.collectors.spec import Api
from tasks.collectors.values import Checkpoint, Fetched, Unit
from tasks.models import records

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
Result = Mapping[str, Any] | Sequence[Row] | None

CHUNK = timedelta(hours=24)
BATCH_SIZE = 100


@dataclass(slots=True)
class _Page:
    """What a method works with while it runs: its session, and the rows it has handed over."""

    session: Any
    rows: list[Row]


_page: ContextVar[_Page | None] = ContextVar("page", default=None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Collect(Endpoint):
    """The endpoint of a class: a backfill is cut into days, whatever its rows look like."""

    @property
    def timed(self) -> bool:
        return True

    @property
    def takes_range(self) -> bool:
        return True

    def window(self, symbol: str, cursor: str | None, now: datetime) -> tuple[None, None]:
        del symbol, cursor, now
        return None, None

    def chunks(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
        while start < end:
            yield start, min(start + CHUNK, end)
            start += CHUNK


class BaseCollector(ABC):
    """A collector as a class, with the three methods below; all its calls go through the guard.

    `key` names the fields that identify a row, `table` is where rows go (JSON in `records` without one).
    `api_key` is the *name* of a secret that is sent as a bearer token; `rate_limit` is in calls per second.
    `config` holds whatever the methods need, and `collection_interval` (60 s), `max_retries` (3),
    `retry_delay` (1 s), `circuit_breaker_threshold` (5), `circuit_breaker_timeout` (300 s) and
    `batch_size` (100).
    """

    key: ClassVar[Sequence[str]] = ()
    table: ClassVar[Table | None] = None

    def __init__(
        self,
        *,
        collector_name: str,
        api_url: str | None = None,
        api_key: str | None = None,
        rate_limit: float = 10.0,
        timeout: float = 30,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.collector_name = collector_name
        self.api_url = api_url
        self.api_key = api_key
        self.rate_limit = rate_limit
        self.timeout = timeout
        self.config = dict(config or {})
        self._validate_config()
        self.api = self._declared()
        self._local: local.Local | None = None
        self._ends = threading.Event()
        self._counts = local.Counts()

    @abstractmethod
    def _validate_config(self) -> None:
        """Raise ValueError for a setting that is missing or wrong; called when the collector is made."""

    @abstractmethod
    def collect_data(self) -> Result:
        """Bring everything up to date, every `collection_interval`.

        Return the rows, or hand them to `store` and return `success`, `data_points` and `errors`. They are
        kept in one transaction with the outcome: all of them, or none where `success` is false or it raises.
        """

    @abstractmethod
    def backfill_historical(self, start_time: datetime, end_time: datetime, **kwargs: Any) -> Result:
        """Collect the past, `start_time` <= t < `end_time`, a day at most: a backfill is cut into days.

        `batch_size` is in the keyword arguments. Each day is a unit that fails and is tried again alone.
        """

    def store(self, rows: Sequence[Row]) -> int:
        """Hand over rows to be checked and kept; returns how many. Those of the same key are updated."""
        page = _page.get()
        if page is not None:
            page.rows.extend(rows)
        else:
            self._connected().keep(list(rows))
        return len(rows)

    def _make_request(
        self, endpoint: str, params: Mapping[str, Any] | None = None, method: str = "GET", **options: Any
    ) -> Any:
        """Make one call through circuit and limits; returns the decoded JSON, None for an empty answer.

        `endpoint` is a path below `api_url`; `options` are those of `requests`, such as `json=`. Raises what
        the server or the guard has against it: let it pass, and the unit is tried again by the rules.
        """
        if self.api_url is None:
            raise ConfigurationError(f"{self.collector_name} has no api_url to make a request to")

        def ask(session: Any) -> Any:
            response = session.request(method, endpoint, params=params, **options)
            return decode(response.content) if response.content else None

        page = _page.get()
        return ask(page.session) if page is not None else self._connected().call(ask)

    # In this process: for scripts, tests, and a loop of one's own.

    def connect(self) -> None:
        """Get ready to run here: the database (a new SQLite one where none is set), limits and circuits.

        They are those of the whole fleet where a Redis is known, and of this process where none is.
        """
        if self._local is None:
            self._ends.clear()
            self._local = local.Local(self.api, self._counts, self._ends)

    def disconnect(self) -> None:
        """Give connections back; harmless when there are none."""
        if self._local is not None:
            self._local.close()
            self._local = None

    def __enter__(self) -> Self:
        """Connect."""
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self.disconnect()

    def collect(self) -> dict[str, Any]:
        """Run `collect_data` here, with retries, and keep its rows; what it came to is told, not raised."""
        done = self._connected().run(None, None)
        return {
            "success": not done.errors,
            "data_points": done.records,
            "errors": done.errors,
            "metadata": {"timestamp": local.now()},
        }

    def backfill(self, start_time: datetime, end_time: datetime) -> dict[str, Any]:
        """Run `backfill_historical` here, day by day; a day that fails is told and the others go on."""
        errors: list[str] = []
        found = 0
        for start, end in self._endpoint.chunks(start_time, end_time):
            done = self._connected().run(start, end)
            found += done.records
            errors += [f"{start:%Y-%m-%d %H:%M}: {error}" for error in done.errors]
        return {
            "success": not errors,
            "data_points": found,
            "time_range": {"start": local.told(start_time), "end": local.told(end_time)},
            "errors": errors,
        }

    def run_forever(self) -> None:
        """Collect every `collection_interval` until `stop` is called; what fails is logged."""
        every = self._endpoint.every
        assert every is not None
        while not self._ends.is_set():
            result = self.collect()
            if result["errors"]:
                logger.error("%s: %s", self.collector_name, "; ".join(result["errors"]))
            self._ends.wait(every.total_seconds())

    # In the fleet.

    def start(self) -> None:
        """Enable the schedule, until beat starts anew: what it then enables is in `PENSTOCK_SCHEDULES`."""
        self._ends.clear()
        local.enable(self._endpoint)

    def stop(self, timeout: float = 60) -> bool:
        """Disable the schedule, end `run_forever`, wait for units that run; says whether they are through."""
        self._ends.set()
        return local.disable(self._endpoint, timeout)

    @property
    def is_running(self) -> bool:
        """Whether the schedule is enabled."""
        return local.enabled(self._endpoint)

    def health_check(self) -> dict[str, Any]:
        """How well it is, with its circuit, its limit and its statistics; JSON-safe."""
        return local.health_of(self._endpoint, self._counts)

    def get_status(self) -> dict[str, Any]:
        """What it has done, in the fleet and here; JSON-safe."""
        return local.statistics_of(self._endpoint, self._counts)

    @property
    def _endpoint(self) -> Endpoint:
        return self.api.endpoints["collect"]

    def _connected(self) -> local.Local:
        if self._local is None:
            raise ConfigurationError(
                f"{self.collector_name} is not connected: use it in a `with`, or by `penstock run`"
            )
        return self._local

    def _declared(self) -> Api:
        api = Api(
            self.collector_name,
            self.api_url or "https://unset.invalid",
            auth=Bearer(self.api_key) if self.api_key else None,
            limits=[Limit(_spec(self.rate_limit), per="account")],
            timeout=timedelta(seconds=self.timeout),
            breaker=BreakerPolicy(
                failures=self.config.get("circuit_breaker_threshold", 5),
                open_for=timedelta(seconds=self.config.get("circuit_breaker_timeout", 300)),
            ),
            retry=RetryPolicy(
                max_retries=self.config.get("max_retries", 3), base_s=self.config.get("retry_delay", 1.0)
            ),
        )
        api.endpoints["collect"] = _Collect(
            api=api,
            name="collect",
            path="",
            parse=_as_it_is,
            key=(self.key,) if isinstance(self.key, str) else tuple(self.key),
            table=records if self.table is None else self.table,
            every=timedelta(seconds=self.config.get("collection_interval", 60)),
            fetch=self._fetch,
        )
        return api

    def _fetch(self, unit: Unit, checkpoint: Checkpoint, session: Any) -> Fetched:
        del checkpoint
        with _at(_Page(session, [])) as page:
            result = self._method(unit)()
            rows = [*page.rows, *_rows(self.collector_name, result)]
        return Fetched(rows)

    def _method(self, unit: Unit) -> Callable[[], Result]:
        start, end = unit.start, unit.end
        if start is None or end is None:
            return self.collect_data
        size = self.config.get("batch_size", BATCH_SIZE)
        return lambda: self.backfill_historical(start, end, batch_size=size)


@contextmanager
def _at(page: _Page) -> Iterator[_Page]:
    token = _page.set(page)
    try:
        yield page
    finally:
        _page.reset(token)


def _as_it_is(row: Row, unit: Unit) -> Row:
    del unit
    return row


def _rows(collector: str, result: Result) -> Sequence[Row]:
    """The rows among what a method returned. Raises CollectionError where it says that it failed."""
    if result is None:
        return ()
    if not isinstance(result, Mapping):
        return result
    if not result.get("success", True):
        errors = result.get("errors") or ["it says that it failed, and not why"]
        raise CollectionError(f"{collector}: {'; '.join(str(each) for each in errors)[:1000]}")
    return ()


def _spec(per_second: float) -> str:
    """A limit of so many calls per second, in whole numbers."""
    if not per_second > 0:
        raise ConfigurationError(f"rate_limit is {json.dumps(per_second)}, but has to be above 0")
    if per_second >= 1:
        return f"{round(per_second * 60)}/1m"
    return f"{max(1, round(per_second * 3600))}/1h"
