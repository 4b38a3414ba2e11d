"""The shipped collectors on real processes against the fake APIs: what is in the database is what was served."""

import json
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from tasks.data import asana_tasks, ohlcv
from tasks.models import runs
from tasks.outcomes import RunState
from tests.upstream import data
from tests.upstream.apis import asana, binance, coinbase

MINUTE = timedelta(minutes=1)
BARS_BACK = {"binance": 1000, "coinbase": 300}


SERVED = {"binance": binance.expected, "coinbase": coinbase.expected}


def kept_bars(fleet, source, symbols):
    chosen = select(ohlcv).where(ohlcv.c.source == source, ohlcv.c.symbol.in_(symbols))
    return fleet.rows(chosen.order_by(ohlcv.c.symbol, ohlcv.c.open_time))


def assert_bars(fleet, source, made):
    """Exactly what was served, from one page before the first run up to the last bar that was complete."""
    for run in made:
        complete_until = run["requested_at"].replace(second=0, microsecond=0)
        ends = {end for _, end in fleet.windows(run["run"]).values()}
        assert ends <= {complete_until, complete_until + MINUTE}  # it may be planned in the next minute
    windows = fleet.windows(*(run["run"] for run in made))
    starts = {start for start, _ in fleet.windows(made[0]["run"]).values()}
    assert {start for start, _ in windows.values()} == starts
    assert starts == {end - BARS_BACK[source] * MINUTE for _, end in fleet.windows(made[0]["run"]).values()}
    served = [row for symbol in sorted(windows) for row in SERVED[source](symbol, *windows[symbol])]
    assert served
    assert kept_bars(fleet, source, windows) == served


def assert_tasks(fleet, projects, made):
    """Every task of every project; one that was edited while the runs went on may stand there as before or after."""
    moments = [
        {
            (project, task["gid"]): (asana.expected_task(project, task), task)
            for project in projects
            for task in data.tasks(project, at.timestamp())
        }
        for at in (made[0]["started_at"], made[-1]["finished_at"])
    ]
    kept = fleet.rows(select(asana_tasks))
    assert sorted((row["project"], row["gid"]) for row in kept) == sorted(moments[1])
    assert len(kept) > 100
    for row in kept:
        original = row.pop("data")
        original.pop("assignee")  # the API gives only its gid
        versions = [moment[row["project"], row["gid"]] for moment in moments]
        assert any(row == ours and original.items() <= theirs.items() for ours, theirs in versions)


def test_scheduled_runs_with_two_beats(fleet, upstream, configuration):
    """Beats, ctl worker and worker together: one run for each slot, each call made once, and the rows exact."""

    def done(name):
        return fleet.results(runs.c.schedule.startswith(name), runs.c.outcome != "skipped")

    def ticks(beat):
        return fleet.log(beat).read_text().count("Sending due task tick")

    upstream.reset()
    names = {"binance": "klines", "coinbase": "candles", "asana": "tasks"}
    beats = ("beat", "other-beat")
    for beat in beats:
        fleet.start(beat, "beat")
    fleet.wait_for(
        lambda: all(len(done(name)) >= 2 for name in names) and min(map(ticks, beats)) >= 3,
        "two runs of each schedule, made by two beats",
    )
    assert fleet.stop(*beats) == dict.fromkeys(beats, 0)
    fleet.wait_for(
        lambda: not fleet.column(runs.c.id, runs.c.schedule.is_not(None), runs.c.state != RunState.DONE),
        "the end of every scheduled run",
    )
    for name, endpoint in names.items():
        symbols = configuration[f"{name}.{endpoint}"]["symbols"]
        made, slots = done(name), fleet.column(runs.c.slot_at, runs.c.schedule == f"{name}.{endpoint}")
        assert len(set(slots)) == len(slots)
        for run in made:
            assert (run["kind"], run["outcome"], run["errors"]) == ("scheduled", "ok", [])
            assert run["total_items"] == run["successful_items"] == len(symbols)
            assert (run["failed_items"], run["retries"], run["resent"]) == (0, 0, 0)
            assert not run["rate_limited"]
            assert not run["circuit_broken"]
            assert run["slot_at"] <= run["started_at"] <= run["finished_at"]
        stats = upstream.stats(name)
        assert stats["by_status"] == {"200": sum(run["calls"] for run in made)}
        assert stats["violations"] == 0
    assert_bars(fleet, "binance", done("binance"))
    assert_bars(fleet, "coinbase", done("coinbase"))
    assert_tasks(fleet, configuration["asana.tasks"]["symbols"], done("asana"))
    assert "Traceback" not in fleet.log("ctl").read_text()


def test_ad_hoc_run(fleet):
    """`penstock run` waits, says in JSON what SQL says, and the rows are those of one page."""
    result = fleet.collect("run", "binance.klines", "--symbols", "DOGEUSDT")
    shown = result["shown"]
    for name in (
        "collector_name",
        "outcome",
        "total_items",
        "successful_items",
        "failed_items",
        "records",
        "calls",
    ):
        assert shown[name] == result[name]
    assert (shown["kind"], result["outcome"], result["total_items"], result["calls"]) == ("adhoc", "ok", 1, 1)
    assert (shown["success_rate"], shown["is_partial"]) == (1.0, False)
    assert_bars(fleet, "binance", [result])


def test_backfill(fleet):
    """Three windows with odd ends join without a seam, and a part of it once more doubles nothing."""
    start, end = datetime(2024, 2, 20, 12, 0, 30, tzinfo=UTC), datetime(2024, 3, 7, 7, 7, tzinfo=UTC)
    expected = binance.expected("XRPUSDT", start, end)
    for since, windows in (("2024-02-20T12:00:30", 3), ("2024-03-06T00:00", 1)):
        words = ("--start", since, "--end", "2024-03-07T07:07", "--symbols", "XRPUSDT")
        result = fleet.collect("backfill", "binance.klines", *words)
        assert (result["kind"], result["outcome"], result["total_items"]) == ("backfill", "ok", windows)
        assert result["records"] == (len(expected) if windows == 3 else 31 * 60 + 7)
        assert kept_bars(fleet, "binance", ["XRPUSDT"]) == expected


def test_one_bad_symbol_fails_alone(fleet, upstream):
    """Exit status 1, a partial result that names it with time and attempts, and the rows of the other."""
    upstream.control("binance", bad_symbols=["NOPEUSDT"])
    result = fleet.collect("run", "binance.klines", "--symbols", "ADAUSDT,NOPEUSDT", status=1)
    assert (result["outcome"], result["successful_items"], result["failed_items"]) == ("partial", 1, 1)
    (error,) = result["errors"]
    assert (error["endpoint"], error["symbol"], error["attempts"]) == ("binance.klines", "NOPEUSDT", 1)
    assert result["started_at"] <= datetime.fromisoformat(error["timestamp"]) <= result["finished_at"]
    assert result["failed_symbols"] == {"NOPEUSDT": 1}
    shown = json.loads(fleet.command("show", str(result["run"]), "--json").stdout)
    assert [each["symbol"] for each in shown["errors"]] == ["NOPEUSDT"]
    assert len(kept_bars(fleet, "binance", ["ADAUSDT", "NOPEUSDT"])) == 1000
