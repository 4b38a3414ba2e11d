"""A date range becomes windows, and windows become units of the same kind of run."""

from collections.abc import Sequence
from datetime import UTC, datetime

from resilience.errors import ConfigurationError
from tasks.collectors.spec import Endpoint
from tasks.outcomes import RunKind
from tasks.runs import UNITS_MAX, Order
from tasks.settings import get_settings


def order(
    endpoint: Endpoint,
    start: datetime,
    end: datetime,
    symbols: Sequence[str] | None,
    *,
    now: datetime | None = None,
) -> Order:
    """The run that collects `start` <= t < `end` of an endpoint again.

    Raises ConfigurationError for a range that is empty, lies in the future, or that the endpoint cannot read.
    """
    now = now or datetime.now(UTC)
    if not endpoint.timed:
        raise ConfigurationError(
            f"{endpoint.full_name} cannot be backfilled: its declaration has no cursor that holds times"
        )
    if end <= start:
        raise ConfigurationError(
            f"the range is empty: --end {end:%Y-%m-%d %H:%M} is not after --start {start:%Y-%m-%d %H:%M}"
        )
    if end > now:
        raise ConfigurationError(
            f"the range ends in the future: --end {end:%Y-%m-%d %H:%M} is after now, {now:%Y-%m-%d %H:%M} UTC"
        )
    endpoint.check_range(start, now)
    chosen = endpoint.check_symbols(symbols)
    count = max(1, len(chosen)) * sum(1 for _ in endpoint.chunks(start, end))
    if count > UNITS_MAX:
        raise ConfigurationError(
            f"{count:,} units are more than one backfill may have ({UNITS_MAX:,}): take a shorter range"
        )
    return Order(
        collector=endpoint.api.name,
        endpoints=(endpoint.full_name,),
        kind=RunKind.BACKFILL,
        symbols=chosen or None,
        start=start,
        end=end,
        deadline_s=get_settings().backfill_deadline_s,
    )
