"""Which units of a run are sent next: what the limits admit in about ten seconds, less what is under way.

Waves bound what lies in Redis, and make cancelling, priority and fairness between runs a matter of not
launching the next one. A wave is marked as sent in SQL before any of its messages is written.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, RowMapping, Select, and_, delete, func, insert, select, union_all, update

from resilience.errors import ConfigurationError
from resilience.guard import CircuitState, CircuitView
from resilience.policy import Lane
from tasks import heartbeat
from tasks.collectors.registry import endpoint_of
from tasks.collectors.spec import Endpoint
from tasks.limits import wave_weight
from tasks.models import NOT_DONE, runs, units, waves
from tasks.outcomes import RunState, UnitState
from tasks.settings import get_settings
from tasks.store import db_now, writing

WAVES_AT_ONCE = 2
# With two waves at most, a tiny one would keep the next from being launched before the first is through.
LEAST_WAVE = 1 / 3
WAVE_YOUNG = 3  # times what a wave is to take
IN_FLIGHT = (UnitState.SENT, UnitState.RUNNING)


def refuses(view: CircuitView | None) -> bool:
    """Whether a circuit lets nothing through; one of which nothing is known does not."""
    return view is not None and view.state in {CircuitState.OPEN, CircuitState.FORCED_OPEN}


def pick(
    run: RowMapping, endpoints: Sequence[Endpoint], views: Mapping[str, CircuitView], chord_id: str
) -> tuple[int, list[RowMapping]] | None:
    """Mark a wave's units as sent in one transaction under the run's lock; None when there is no room."""
    settings = get_settings()
    hosts, slots = heartbeat.alive("units", settings.gone_after_s)
    with writing() as connection:
        locked = connection.execute(
            select(runs.c.waves)
            .where(runs.c.id == run["id"], runs.c.state == RunState.OPEN, runs.c.outcome.is_(None))
            .with_for_update()
        ).one_or_none()
        if locked is None or _waves_in_flight(connection, run["id"]) >= WAVES_AT_ONCE:
            return None
        wave = locked.waves + 1
        flying = _in_flight(connection, run["lane"])
        used = _weight_by_api(flying)
        rows: list[RowMapping] = []
        for endpoint in endpoints:
            view = views.get(endpoint.full_name)
            if refuses(view):
                continue
            api = endpoint.api.name
            full = wave_weight(endpoint, settings.wave_s, hosts=max(hosts, 1), slots=slots)
            room = full - used.get(api, 0.0)
            count = min(int(room / endpoint.weight_max), settings.wave_max - len(rows))
            probing = view is not None and view.state == CircuitState.HALF_OPEN
            if view is not None and probing:
                count = min(count, view.free_permits - flying.get(endpoint.full_name, 0))
            elif room < full * LEAST_WAVE and _more_due(connection, run["id"], endpoint.full_name, count):
                continue
            # Another unit probes each time: the same ones might fail for reasons of their own.
            order = (units.c.sent_at.nulls_first(), units.c.n) if probing else (units.c.n,)
            due = _due(run["id"], endpoint.full_name).order_by(*order).limit(max(count, 0))
            taken = _mark_sent(connection, run["id"], endpoint.full_name, due, wave)
            used[api] = used.get(api, 0.0) + len(taken) * endpoint.weight_max
            rows.extend(taken)
        if not rows:
            return None
        connection.execute(
            insert(waves).values(run=run["id"], n=wave, chord=chord_id, units=len(rows), launched_at=db_now())
        )
        connection.execute(update(runs).where(runs.c.id == run["id"]).values(waves=wave))
    return wave, rows


def _waves_in_flight(connection: Connection, run: int) -> int:
    """Waves with sent or running units; an old one no longer counts, so a few long units hold up nothing."""
    young = select(waves.c.n).where(
        waves.c.run == run, waves.c.launched_at > db_now(-WAVE_YOUNG * get_settings().wave_s)
    )
    return connection.execute(
        select(func.count(units.c.wave.distinct())).where(
            units.c.run == run, units.c.state.in_(IN_FLIGHT), units.c.wave.in_(young)
        )
    ).scalar_one()


def _in_flight(connection: Connection, lane: str) -> dict[str, int]:
    """Units by endpoint that are sent, running or have a place reserved; live work ignores backfills."""
    reserved = and_(
        units.c.state == UnitState.WAITING, units.c.ticket.is_not(None), units.c.not_before > db_now()
    )
    # Apart, since no index serves both: together they would be looked for among all units that wait.
    found = union_all(
        *(
            select(units.c.endpoint)
            .join(runs, runs.c.id == units.c.run)
            .where(NOT_DONE, condition)
            .where(runs.c.lane == Lane.LIVE if lane == Lane.LIVE else runs.c.lane.is_not(None))
            for condition in (units.c.state.in_(IN_FLIGHT), reserved)
        )
    ).subquery()
    rows = connection.execute(select(found.c.endpoint, func.count()).group_by(found.c.endpoint))
    return dict(rows.all())


def _weight_by_api(flying: Mapping[str, int]) -> dict[str, float]:
    used: dict[str, float] = {}
    for name, count in flying.items():
        try:
            endpoint = endpoint_of(name)
        except ConfigurationError:
            continue  # its collector was removed; nobody calls that API any more
        used[endpoint.api.name] = used.get(endpoint.api.name, 0.0) + count * endpoint.weight_max
    return used


def _due(run: int, endpoint: str) -> Select[tuple[int]]:
    return select(units.c.n).where(
        units.c.run == run,
        units.c.state == UnitState.WAITING,
        units.c.endpoint == endpoint,
        units.c.not_before <= db_now(),
        units.c.deliveries < get_settings().deliveries_max,
        units.c.alone.is_(False),
    )


def _more_due(connection: Connection, run: int, endpoint: str, count: int) -> bool:
    beyond = _due(run, endpoint).limit(1).offset(max(count, 0))
    return connection.execute(beyond).first() is not None


def _mark_sent(
    connection: Connection, run: int, endpoint: str, due: Select[tuple[int]], wave: int
) -> list[RowMapping]:
    return list(
        connection.execute(
            update(units)
            # The state once more: after a wait for a row's lock only this condition is looked at again.
            .where(units.c.run == run, units.c.n.in_(due), units.c.state == UnitState.WAITING)
            .where(units.c.endpoint == endpoint)
            .values(
                state=UnitState.SENT,
                wave=wave,
                sent_at=db_now(),
                expected_at=db_now(get_settings().wave_s),
            )
            .returning(units.c.n, units.c.endpoint, units.c.symbol, units.c.start_at)
        ).mappings()
    )


def take_back(run: int, wave: int) -> None:
    """A wave that could not be published waits again: nobody has to wait until its messages are late."""
    with writing() as connection:
        connection.execute(
            update(units)
            .where(units.c.run == run, units.c.wave == wave, units.c.state == UnitState.SENT)
            .values(state=UnitState.WAITING, wave=None)
        )
        connection.execute(delete(waves).where(waves.c.run == run, waves.c.n == wave))
