"""The result of a run: its units, as SQL has them, folded into one CollectionResult."""

import logging
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, func, or_, select

from tasks.models import results, units
from tasks.outcomes import (
    ERRORS_KEPT,
    SUCCESSFUL,
    UNSUCCESSFUL,
    CollectionResult,
    Outcome,
    RunOutcome,
    run_outcome,
)

logger = logging.getLogger(__name__)

SUMMED = ("records", "bad_rows", "vanished", "calls", "retries", "waits", "waited_s", "resent", "weight")


def result_of(connection: Connection, run: RowMapping) -> CollectionResult:
    """Fold the units of a run, as SQL has them, into its result."""
    mine = units.c.run == run["id"]
    by_endpoint: dict[str, dict[str, int]] = {}
    by_outcome: dict[str, int] = {}
    for endpoint, outcome, count in connection.execute(
        select(units.c.endpoint, units.c.outcome, func.count())
        .where(mine)
        .group_by(units.c.endpoint, units.c.outcome)
    ):
        by_endpoint.setdefault(endpoint, {})[outcome] = count
        by_outcome[outcome] = by_outcome.get(outcome, 0) + count
    sums = (
        connection.execute(
            select(
                *(func.coalesce(func.sum(units.c[name]), 0).label(name) for name in SUMMED),
                func.count().filter(units.c.rate_limited).label("rate_limited"),
                func.count()
                .filter(or_(units.c.reason == "circuit_open", units.c.parked_on.is_not(None)))
                .label("circuit_broken"),
            ).where(mine)
        )
        .mappings()
        .one()
    )
    bad = and_(mine, units.c.outcome.in_(UNSUCCESSFUL))
    errors = [
        {
            "endpoint": row["endpoint"],
            "symbol": row["symbol"],
            "error": row["reason"],
            "attempts": row["attempts"],
            "message": f"{row['outcome']}: {row['reason']}",
            "timestamp": row["finished_at"].isoformat().replace("+00:00", "Z"),
            **{key: value for key, value in (row["error"] or {}).items() if key != "error"},
        }
        for row in connection.execute(
            select(units).where(bad).order_by(units.c.n).limit(ERRORS_KEPT)
        ).mappings()
    ]
    if run["outcome"] == RunOutcome.FAILED:
        errors.insert(0, _error_of_run(run))
    symbols = connection.execute(
        select(units.c.symbol, func.count())
        .where(bad)
        .group_by(units.c.symbol)
        .order_by(units.c.symbol)
        .limit(ERRORS_KEPT)
    )
    return CollectionResult(
        collector_name=run["collector"],
        started_at=run["started_at"] or run["now"],
        finished_at=run["now"],
        total_items=sum(by_outcome.values()),
        successful_items=sum(by_outcome.get(outcome, 0) for outcome in SUCCESSFUL),
        failed_items=sum(by_outcome.get(outcome, 0) for outcome in UNSUCCESSFUL),
        errors=errors,
        rate_limited=bool(sums["rate_limited"]),
        circuit_broken=bool(sums["circuit_broken"]),
        outcome=RunOutcome(run["outcome"]) if run["outcome"] else run_outcome(by_outcome),
        units_by_outcome=by_outcome,
        by_endpoint=by_endpoint,
        failed_symbols=dict(symbols.all()),
        **{name: sums[name] for name in SUMMED},
    )


def _error_of_run(run: RowMapping) -> dict[str, Any]:
    """What kept the run itself from being made, in the shape of a unit's error."""
    return {
        "endpoint": ", ".join(run["endpoints"]),
        "symbol": None,
        "error": "configuration",
        "message": run["reason"],
        "timestamp": run["now"].isoformat().replace("+00:00", "Z"),
        "attempts": 0,
    }


def result_columns(result: CollectionResult) -> dict[str, Any]:
    return {column.name: getattr(result, column.name) for column in results.columns if column.name != "run"}


def log_result(run: int, result: CollectionResult) -> None:
    """One line for every run, skipped ones too."""
    logger.info(
        "run %s of %s: %s, %s of %s items stored or empty, %s failed, %s skipped, %s records, %s calls, "
        "%.1f s%s%s%s%s",
        run,
        result.collector_name,
        result.outcome,
        result.successful_items,
        result.total_items,
        result.failed_items,
        result.units_by_outcome.get(Outcome.SKIPPED, 0),
        result.records,
        result.calls,
        (result.finished_at - result.started_at).total_seconds(),
        f", {result.bad_rows} bad rows" if result.bad_rows else "",
        f", {result.vanished} vanished" if result.vanished else "",
        ", rate limited" if result.rate_limited else "",
        ", circuit broken" if result.circuit_broken else "",
    )
