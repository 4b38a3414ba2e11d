"""One delivery of a unit: its pages, read and stored, from the checkpoint where it stands."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from sqlalchemy import Connection

from resilience.errors import AllTiersFailedError, BadPayloadError, NoRowsError, PenstockError
from resilience.policy import Lane
from tasks import bad_rows, drift, store
from tasks.calls import Calls
from tasks.collectors.spec import Answer, Checkpoint, Endpoint, Page, Unit
from tasks.collectors.values import Fetch
from tasks.outcomes import Outcome, UnitState
from tasks.session import GuardedSession
from tasks.settings import Settings
from tasks.upsert import upsert
from tasks.ways import Way, ways_of

logger = logging.getLogger(__name__)

# Items that come one by one wait for each other: so many, so long. What a killed process held comes again.
HELD_MOST = 20
HELD_S = 2.0


class SliceOver(PenstockError):  # noqa: N818 - it is news, not a mistake
    """The unit goes back to the queue at its checkpoint, so that no delivery lasts for ever."""

    code = "slice_over"


class Delivery:
    """One delivery of one unit: what `collect` holds while it works."""

    def __init__(
        self, claim: store.Claim, endpoint: Endpoint, settings: Settings, *, stopping: Callable[[], bool]
    ) -> None:
        row = claim.row
        self.claim = claim
        self.endpoint = endpoint
        self.settings = settings
        self.stopping = stopping
        self.unit = Unit(
            run=claim.run,
            n=claim.n,
            collector=endpoint.api.name,
            endpoint=endpoint.name,
            symbol=row["symbol"],
            start=row["start_at"],
            end=row["end_at"],
            cursor=row["cursor"],
        )
        self.lane = Lane(row["lane"])
        saved: Mapping[str, Any] = row["checkpoint"] or {}
        self.ways = ways_of(
            endpoint, self.unit, lane=self.lane, claim=claim, settings=settings, stopping=stopping
        )
        self.way = next((each for each in self.ways if each.name == saved.get("tier")), self.ways[0])
        begun = "page" in saved and self.way.name == saved.get("tier")
        self.checkpoint: Checkpoint = saved["page"] if begun else self._first(self.way)
        self.seen: str | None = saved.get("cursor")
        self.records: int = row["records"] if begun else 0
        self.bad_rows: int = row["bad_rows"]
        self.done = False
        self.started = time.monotonic()
        self._held: list[Page] = []  # read, and not yet in SQL
        self._held_since = 0.0

    @property
    def calls(self) -> Calls:
        """The calls on the way that is taken."""
        return self.way.calls

    def _first(self, way: Way) -> Checkpoint:
        if way.fetch is not None:
            return {}
        known = None
        if self.endpoint.conditional and self.lane == Lane.LIVE:
            known = store.read_known(self.endpoint.full_name, self.unit.symbol)
        return self.endpoint.first(self.unit, known)

    def read(self) -> Page:
        """The next page: by the way that is taken or, where that fails, by the next one that does not.

        A checkpoint is understood by the tier that made it only: another one begins at its first page.
        """
        if len(self.ways) == 1:
            return self._read()
        errors: dict[str, Exception] = {}
        for way in [self.way, *(each for each in self.ways if each is not self.way)]:
            if way is not self.way:
                logger.warning("%s: from tier %s to %s", self.endpoint.full_name, self.way.name, way.name)
                self.way, self.checkpoint, self.records = way, self._first(way), 0
            try:
                return self._read()
            except PenstockError as error:
                if not way.gives_way(error):
                    raise
                way.calls.settle(error)
                errors[way.name or ""] = error
        raise AllTiersFailedError(errors=errors)

    def _read(self) -> Page:
        if self.way.fetch is not None:
            page = self._read_by(self.way.fetch)
        else:
            self.calls.weighing(self.endpoint.weigh(self.unit, self.checkpoint))
            self.calls.admit()
            page = self.parse(self.fetch())
            self.calls.failure = None  # whatever its status: it was an answer that could be read
        if self.endpoint.expect_rows and page.next is None and page.reason is None:
            self._expect(page)
        return page

    def _expect(self, page: Page) -> None:
        if not self.records + len(page.rows):
            raise NoRowsError(f"{self.endpoint.full_name} {self.unit.symbol}: there is no row, not even one")

    def fetch(self) -> Answer:
        """Make the declared call; raises what the network had against it."""
        return self.calls.send(self.endpoint.request(self.unit, self.checkpoint), raises=False)

    def parse(self, answer: Answer) -> Page:
        """Turn the body into rows; raises what the server said was wrong, or BadPayloadError."""
        with self._watching():
            return self.endpoint.read(self.unit, self.checkpoint, answer)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Have a look also at rows that are so different that nothing could be made of them."""
        try:
            yield
        except BadPayloadError as error:
            drift.watch(self.endpoint.full_name, vars(error).pop("sample", ()))
            raise

    def _read_by(self, fetch: Fetch) -> Page:
        """Let the function fetch; it has its session for this page only."""
        with GuardedSession(self.calls, placeholder=self.way.placeholder) as session:
            fetched = session.let(fetch, self.unit, dict(self.checkpoint))
        with self._watching():
            return self.endpoint.take(self.unit, self.checkpoint, fetched, self.calls.answer)

    def store(self, page: Page) -> None:
        """Keep a page: at once or, where it is light, with those that follow it within two seconds."""
        self.records += len(page.rows)
        self.seen = max(filter(None, (self.seen, page.cursor)), default=None)
        self.checkpoint = page.next or {}
        self.done = page.next is None
        if not self._held:
            self._held_since = time.monotonic()
        self._held.append(page)
        if page.vanished:
            self.claim.spend(vanished=page.vanished)
        held_s = time.monotonic() - self._held_since
        if self.done or not page.light or len(self._held) >= HELD_MOST or held_s >= HELD_S:
            self.flush()

    def flush(self) -> None:
        """Rows, checkpoint and, with the last page, cursor and outcome: one transaction, if still ours."""
        pages, self._held = self._held, []
        if not pages:
            return
        bad = sum(page.bad_rows for page in pages)
        counted = {"records": self.records} | ({"bad_rows": self.bad_rows + bad} if bad else {})
        with store.writing() as connection:
            if self.done:
                reason = pages[-1].reason
                self.claim.write(connection, **counted, **self._ending(reason), **self._tier())
                if reason is None and self.lane == Lane.LIVE:  # a backfill never moves a cursor
                    self._move_cursor(connection, pages[-1])
            else:
                checkpoint = {"page": self.checkpoint, "cursor": self.seen} | self._tier()
                self.claim.write(
                    connection, **counted, checkpoint=checkpoint, deliveries=0, attempts=0, throttles=0
                )
            for rows in _alike([row for page in pages for row in page.rows]):
                upsert(connection, self.endpoint.table, self.endpoint.stamped(rows))
            if bad:
                self._keep_bad(connection, pages)
        if bad:
            self._tell_bad(bad, pages)
        drift.watch(self.endpoint.full_name, [row for page in pages for row in page.sample])
        # What comes next counts from this page on, as it now stands in SQL.
        self.claim.row = {**self.claim.row, "attempts": 0, "throttles": 0}  # a new page has all its attempts

    def _keep_bad(self, connection: Connection, pages: Sequence[Page]) -> None:
        before = self.bad_rows
        for page in pages:
            bad_rows.keep(connection, self.endpoint.full_name, self.unit, page.bad, before=before)
            before += page.bad_rows

    def _tell_bad(self, count: int, pages: Sequence[Page]) -> None:
        self.bad_rows += count
        logger.warning(
            "%s %s: rows that could not be stored: %s, the first: %s",
            self.endpoint.full_name,
            self.unit.symbol,
            count,
            next(page.bad[0].reason for page in pages if page.bad),
        )

    def _tier(self) -> dict[str, str]:
        return {} if self.way.name is None else {"tier": self.way.name}

    def _ending(self, reason: str | None) -> dict[str, Any]:
        return {
            "state": UnitState.DONE,
            "outcome": Outcome.STORED if self.records else Outcome.EMPTY,
            "reason": reason,
            "checkpoint": None,
            "error": None,
            "finished_at": store.NOW,
        }

    def _move_cursor(self, connection: Connection, last: Page) -> None:
        name, symbol = self.endpoint.full_name, self.unit.symbol
        if last.known is not None:
            store.keep_known(connection, name, symbol, last.known)
        if last.token is not None:
            store.replace_cursor(connection, name, symbol, last.token)
        elif (value := self.endpoint.finished(self.unit, self.seen)) is not None:
            store.move_cursor(connection, name, symbol, value)

    def settle(self) -> None:
        """Tell the guard that the page went well; if another one follows, its first call does that.

        Raises SliceOver when this delivery has lasted long enough.
        """
        if self.done:
            self.calls.settle()
        elif self._slice_is_over():
            self.calls.settle()
            raise SliceOver

    def _slice_is_over(self) -> bool:
        """A slice starts no call that could outlast it."""
        left_s = self.settings.slice_s - (time.monotonic() - self.started)
        return self.stopping() or left_s < self.settings.call_timeout_s

    def returned(self) -> dict[str, Any]:
        """What goes to the chord: small, and the same however often the unit is delivered."""
        outcome = Outcome.STORED if self.records else Outcome.EMPTY
        return {"unit": self.claim.n, "outcome": outcome.value, "records": self.records}


def _alike(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The rows in order, cut where their columns change: a statement writes those of its first row."""
    for _, some in groupby(rows, key=lambda row: row.keys()):
        yield list(some)
