"""The command line without servers: what it refuses, and how it draws."""

import io
from datetime import UTC, datetime, timedelta

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from tasks.reads import RunDetail, RunView, Tally, Waiting
from workers import cli, cli_runs, command, progress, tables

AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def nothing_loaded(tmp_path, monkeypatch):
    """The shipped collectors, without settings of this machine."""
    from tasks.collectors import registry

    monkeypatch.chdir(tmp_path)
    registry.collectors.cache_clear()
    registry.endpoint_of.cache_clear()
    yield
    registry.collectors.cache_clear()
    registry.endpoint_of.cache_clear()


def penstock(*words):
    return CliRunner().invoke(cli.main, words)


def view(**changes):
    values = {
        "id": 7,
        "collector": "binance",
        "endpoints": ["binance.klines"],
        "kind": "adhoc",
        "lane": "live",
        "on_open": "park",
        "state": "done",
        "outcome": "partial",
        "reason": None,
        "schedule": None,
        "slot_at": None,
        "start_at": None,
        "end_at": None,
        "requested_at": AT,
        "started_at": AT + timedelta(seconds=1),
        "finished_at": AT + timedelta(seconds=13.5),
        "deadline_at": AT + timedelta(hours=1),
        "waves": 1,
        "seen_at": AT + timedelta(minutes=2),
        "units": Tally(by_outcome={"stored": 38, "empty": 1, "failed": 1}, records=500, calls=41),
    }
    return RunView(**values | changes)


def drawn(shown, width=140):
    screen = Console(file=io.StringIO(), width=width, highlight=False)
    screen.print(shown)
    return screen.file.getvalue()


def test_help_names_every_command_and_the_exit_status():
    """A script's author looks here first."""
    said = penstock("--help").output
    for word in (
        "up",
        "worker",
        "beat",
        "flower",
        "health",
        "db",
        "run",
        "backfill",
        "runs",
        "show",
        "cancel",
        "circuits",
        "collectors",
        "limits",
    ):
        assert f"  {word} " in said
    assert "0 all went well, 1 a run ended partial, failed or skipped, 2 usage or configuration" in " ".join(
        said.split()
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "binanse"], "there is no collector 'binanse'; did you mean binance?"),
        (["run", "binance.kline"], "binance has no endpoint 'kline'; did you mean klines?"),
        (["run", "binance", "--symbols", "btc"], "'btc' is no symbol of this API"),
        (["run", "asana"], "asana.projects has no symbols yet"),
        (
            ["backfill", "binance.klines", "--start", "2026-02-01", "--end", "2026-01-01"],
            "the range is empty",
        ),
        (["backfill", "binance.klines", "--start", "2026-02-01", "--end", "2999-01-01"], "in the future"),
        (
            ["backfill", "asana.nothing", "--start", "2026-02-01", "--end", "2026-02-02"],
            "no endpoint 'nothing'",
        ),
    ],
)
def test_a_mistake_is_one_sentence(words, sentence):
    """On stderr, with exit status 2, and never a traceback."""
    result = penstock(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("penstock: ")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "binance", "--symbols", ","],
        ["backfill", "binance.klines", "--start", "yesterday", "--end", "2026-01-01"],
        ["backfill", "binance.klines", "--start", "2026-01-01"],
        ["show", "seven"],
        ["worker", "--ctl", "--concurrency", "9"],
        ["worker", "--concurrency", "0"],
        ["worker", "--pool", "gevent"],
        ["flower", "--port", "65536"],
        ["health", "--flower", "--port", "0"],
        ["health", "--worker", "--port", "5556"],
        ["runs", "--limit", "0"],
        ["rum"],
    ],
)
def test_wrong_usage_ends_with_2(words):
    """As click does it."""
    result = penstock(*words)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


@pytest.mark.parametrize("words", [["worker", "--ctl"], ["beat"], ["up"], ["collectors"]])
@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("nope.klines", "PENSTOCK_SCHEDULES: there is no collector 'nope'"),
        ("*,binance.kline", "PENSTOCK_SCHEDULES: binance has no endpoint 'kline'; did you mean klines?"),
        ("idle", "PENSTOCK_SCHEDULES: idle has no interval"),
    ],
)
def test_a_schedule_of_nothing_is_one_sentence(monkeypatch, tmp_path, words, names, sentence):
    """It would never run, and nobody would say so; nothing is started and nothing written."""
    from tasks.collectors import Api, registry

    idle = Api("idle", "https://idle.example")

    @idle.endpoint("/", key="id")
    def things(row, unit):
        return row

    known = registry.load(["binance"], {}) | {"idle": idle}
    monkeypatch.setenv("PENSTOCK_SCHEDULES", names)
    with monkeypatch.context() as patched:
        patched.setattr(registry, "collectors", lambda: known)
        result = penstock(*words)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert sentence in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_settings_that_are_wrong_are_each_a_line(monkeypatch):
    """All of them at once, not one after the other."""
    monkeypatch.setenv("PENSTOCK_CONCURRENCY", "many")
    monkeypatch.setenv("PENSTOCK_POOLS", "prefork")
    result = penstock("run", "binance")
    assert result.exit_code == 2
    assert [line.split(" ")[:2] for line in result.stderr.splitlines()] == [
        ["penstock:", "PENSTOCK_POOLS"],
        ["penstock:", "PENSTOCK_CONCURRENCY"],
    ]


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    """A sentence is for what the user can mend."""
    monkeypatch.setattr(cli, "_views", lambda endpoints: 1 / 0)
    assert isinstance(penstock("collectors").exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:30", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30:00+02:00", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
    ],
)
def test_dates_are_utc(text, at):
    """Unless they say otherwise."""
    assert command.instant(None, None, text) == at


def test_symbols_are_split_at_commas():
    """Blanks around them do not count."""
    assert command.symbol_names(None, None, "BTCUSDT, ETHUSDT,") == ("BTCUSDT", "ETHUSDT")
    assert command.symbol_names(None, None, None) is None
    with pytest.raises(click.BadParameter):
        command.symbol_names(None, None, " , ")


def test_one_order_for_each_collector():
    """However its endpoints were named, each once."""
    from tasks.settings import Settings

    orders = cli_runs._orders(["coinbase", "binance.klines", "binance"], None, Settings(run_deadline_s=77))
    assert [(each.collector, each.endpoints) for each in orders] == [
        ("coinbase", ("coinbase.candles",)),
        ("binance", ("binance.klines",)),
    ]
    assert {(each.kind, each.symbols, each.deadline_s, each.on_open) for each in orders} == {
        ("adhoc", None, 77, "park")
    }


def test_symbols_named_twice_are_one():
    """A unit for each symbol, not for each word."""
    from tasks.settings import Settings

    (order,) = cli_runs._orders(["binance"], ("BTCUSDT", "ETHUSDT", "BTCUSDT"), Settings())
    assert order.symbols == ("BTCUSDT", "ETHUSDT")


def test_a_tally_counts_as_the_result_does():
    """Stored and empty are successes, failed and abandoned failures, skipped neither."""
    tally = Tally(
        by_state={"waiting": 5, "sent": 2},
        by_outcome={"stored": 3, "empty": 1, "failed": 2, "abandoned": 1, "skipped": 4},
    )
    assert (tally.total, tally.open, tally.successful, tally.failed, tally.skipped) == (18, 7, 4, 3, 4)


def test_json_of_a_run_is_stable():
    """Scripts rely on these names."""
    facts = view().to_dict()
    assert facts["run"] == 7
    assert facts["started_at"] == "2026-03-01T12:00:01Z"
    assert facts["lasted_s"] == 12.5
    assert (facts["total_items"], facts["successful_items"], facts["failed_items"]) == (40, 39, 1)
    assert facts["success_rate"] == 0.975
    assert facts["is_partial"] is True
    from tasks.outcomes import CollectionResult

    fields = {
        name for name in CollectionResult.__slots__ if name not in {"errors", "by_endpoint", "failed_symbols"}
    }
    assert fields <= facts.keys()


def test_a_run_that_goes_on_lasts_until_now():
    """Now being the database's."""
    assert view(state="open", outcome=None, finished_at=None).lasted_s == 119
    assert view(state="planning", outcome=None, started_at=None, finished_at=None).lasted_s is None


def test_a_bar_shows_the_smallest_part():
    """One failure among a thousand is a cell."""
    bar = tables.bar({"stored": 999, "failed": 1}, 20).plain
    assert bar == "█" * 19 + "x"


def test_a_bar_is_as_long_as_asked():
    """Whatever the rounding."""
    counts = {"stored": 1, "empty": 1, "skipped": 1, "failed": 1, "waiting": 3}
    assert len(tables.bar(counts, 24).plain) == 24
    assert tables.bar({}, 24).plain == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.418, "0.42 s"),
        (12.34, "12.3 s"),
        (60, "1 min"),
        (245, "4 min 05 s"),
        (3600, "1 h"),
        (7810, "2 h 10 min"),
    ],
)
def test_durations_are_short(seconds, text):
    """And say their unit."""
    assert tables.duration(seconds) == text


def test_results_show_partial_success():
    """Honestly: the share, the failures, and why."""
    said = drawn(
        tables.results_table([view(units=Tally(by_outcome={"stored": 39, "failed": 1}, rate_limited=2))])
    )
    for part in ("partial", "39/40", "97.5%", "rate limited"):
        assert part in said


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_tables_fit_the_terminal(width):
    """Columns go before text is cut."""
    said = drawn(tables.results_table([view()]), width)
    assert max(map(len, said.splitlines())) <= width
    assert "…" not in said
    assert all(part in said for part in ("partial", "39/40", "500"))


def test_an_open_run_says_what_it_waits_for():
    """Each circuit and limit, and until when."""
    shown = RunDetail(
        run=view(
            state="open", outcome=None, finished_at=None, units=Tally(by_state={"waiting": 12, "running": 2})
        ),
        by_endpoint={},
        reasons={},
        waiting=[
            Waiting("waiting", "circuit binance.klines", 12, AT),
            Waiting("running", "its answer", 2, None),
        ],
        failures=[],
        failed_symbols={},
        waves_done=0,
        waves_differing=0,
    )
    said = drawn(tables.run_page(shown))
    assert "circuit binance.klines" in said
    assert "2026-03-01 12:00:00" in said
    assert "deadline" in said


def test_speed_forgets_what_is_long_ago():
    """Calls per second of the last seconds, not of the whole run."""
    speed = progress.Speed()
    assert speed.at(0.0, 0) == 0.0
    assert speed.at(2.0, 100) == 50.0
    assert speed.at(100.0, 100) == 0.0
    assert speed.at(101.0, 110) == 10.0


def test_lines_say_what_the_bars_show():
    """For logs, without a terminal."""
    board = progress.Board(
        runs=[view()], circuits={"binance.klines": "open"}, note="waiting for the database"
    )
    line, note = board.lines()
    assert line.startswith("run 7 binance: 39/40 stored, 0 waiting, 1 failed, 0 skipped")
    assert "circuit open" in line
    assert note == "waiting for the database"


def test_bars_fit_80_columns():
    """The usual terminal."""
    said = drawn(progress.Board(runs=[view()], circuits={"binance.klines": "half_open"}), 80)
    assert max(map(len, said.splitlines())) <= 80
    assert all(part in said for part in ("39/40", "half_open", "partial"))
