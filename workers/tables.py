"""How runs look on a terminal: numbers that people compare are drawn beside being said."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tasks.outcomes import Outcome, RunOutcome, UnitState
from tasks.reads import RunDetail, RunView, Tally

# A glyph for each, so that the bar says the same without colours.
PARTS: dict[str, tuple[str, str]] = {
    Outcome.STORED: ("█", "green"),
    Outcome.EMPTY: ("▒", "green"),
    Outcome.SKIPPED: ("░", "yellow"),
    Outcome.FAILED: ("x", "red"),
    Outcome.ABANDONED: ("?", "magenta"),
    UnitState.RUNNING: (">", "cyan"),
    UnitState.SENT: ("·", "cyan"),
    UnitState.WAITING: ("·", "bright_black"),
}
COLOURS: dict[str, str] = {
    RunOutcome.OK: "green",
    RunOutcome.EMPTY: "green",
    RunOutcome.PARTIAL: "yellow",
    RunOutcome.SKIPPED: "yellow",
    RunOutcome.CANCELLED: "yellow",
    RunOutcome.FAILED: "red",
}
CIRCUIT_COLOURS = {"closed": "green", "half_open": "yellow", "open": "red", "forced_open": "red"}
NOTHING = "-"
PLAIN_WIDTH = 140  # where the output is a file nothing has to be cut
WORDS = frozenset({"collector", "endpoint", "kind", "outcome", "units", "why", "requested (UTC)"})


def console(*, stderr: bool = False) -> Console:
    """A console for what is shown to people; JSON goes past it."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A table that leaves out columns, in the order of `spare`, until it fits the terminal."""

    rows: Sequence[Mapping[str, RenderableType]]
    spare: Sequence[str]

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for count in range(len(self.spare) + 1):
            table = self._without(frozenset(self.spare[:count]))
            if Measurement.get(screen, options.update(width=1000), table).maximum <= options.max_width:
                break
        yield table

    def _without(self, left_out: frozenset[str]) -> Table:
        names = [name for name in self.rows[0] if name not in left_out] if self.rows else []
        table = _table(*names)
        for column, name in zip(table.columns, names, strict=True):
            column.justify = "left" if name in WORDS else "right"
        for row in self.rows:
            table.add_row(*(row[name] for name in names))
        return table


def bar(counts: Mapping[str, int], width: int) -> Text:
    """Counts as cells side by side; whatever is there at all gets a cell."""
    present = {name: counts[name] for name in PARTS if counts.get(name)}
    drawn = Text()
    for name, cells in _cells(present, width).items():
        glyph, colour = PARTS[name]
        drawn.append(glyph * cells, style=colour)
    return drawn


def _cells(counts: Mapping[str, int], width: int) -> dict[str, int]:
    """Share `width` cells out in proportion, at least one each; the largest part takes the rounding."""
    total = sum(counts.values())
    if not total:
        return {}
    cells = {name: max(1, count * width // total) for name, count in counts.items()}
    largest = max(cells, key=lambda name: cells[name])
    cells[largest] = max(1, cells[largest] + width - sum(cells.values()))
    return cells


def shares(tally: Tally) -> dict[str, int]:
    """All units of a tally, done and open, as one set of counts."""
    return {**tally.by_outcome, **tally.by_state}


def duration(seconds: float | None) -> str:
    """Short and exact enough: 0.42 s, 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest:02d} s" if rest else "")
    return f"{minutes // 60} h" + (f" {minutes % 60:02d} min" if minutes % 60 else "")


def moment(at: datetime | None) -> str:
    """A time in UTC, to the second; the heading says which zone."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def count(number: int, style: str = "") -> Text:
    """A number of which none is no news."""
    return Text(f"{number:,}", style=style) if number else Text(NOTHING, style="bright_black")


def stored(tally: Tally) -> Text:
    """How many records, and how many rows could not be stored."""
    text = Text(f"{tally.records:,}")
    return text.append(f" +{tally.bad_rows:,} bad", style="red") if tally.bad_rows else text


def bad_rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows that could not be stored; `rows` as `penstock bad-rows --json` writes them."""
    table = _table("endpoint", "symbol", "run", "seen (UTC)", "why", "message")
    table.columns[-1].header = "row"
    for row in rows:
        seen = row["seen_at"][:19].replace("T", " ")
        table.add_row(
            row["endpoint"], row["symbol"], str(row["run"]), seen, Text(row["reason"]), Text(row["raw"][:200])
        )
    return table


def drift_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Fields that differ from the normal; `rows` as tasks.drift.report gives them."""
    table = _table("endpoint", "field", "drift", "types", "normally", "since (UTC)")
    for row in rows:
        since = row["missing_at"] or (row["first_seen_at"] if row["drift"] == "new" else None)
        table.add_row(
            row["endpoint"],
            Text(row["field"]),
            Text(row["drift"], style="red" if row["drift"] == "missing" else "yellow"),
            row["types"],
            row["normal_types"] or NOTHING,
            moment(since),
        )
    return table


def symbols_page(found: Mapping[str, Any]) -> RenderableType:
    """The symbols of an endpoint; `found` as tasks.symbols.report gives it."""
    head = Text(f"{found['endpoint']}: {found['count']:,} symbols from {found['from']}", style="bold")
    if found.get("found_at"):
        head.append(f", found {moment(found['found_at'])} UTC", style="not bold")
    parts: list[RenderableType] = [head]
    if found.get("error"):
        parts.append(Text(found["error"], style="red"))
    for title, rows in (("symbols", found["symbols"]), ("removed", found["removed"])):
        table = _table("symbol", "added (UTC)", "removed (UTC)", title=title)
        for row in rows:
            table.add_row(row["symbol"], moment(row["added_at"]), moment(row.get("removed_at")))
        if rows:
            parts.append(table)
    return Group(*parts)


def outcome(run: RunView) -> Text:
    """How a run ended, or where it stands."""
    if run.outcome is None:
        return Text(run.state, style="cyan")
    return Text(run.outcome, style=COLOURS.get(run.outcome, ""))


def circuit(state: str | None, until: str | None = None) -> Text:
    """A circuit's state; "?" where Redis does not answer."""
    if state is None:
        return Text("?", style="bright_black")
    text = Text(state, style=CIRCUIT_COLOURS.get(state, ""))
    return text.append(f" until {until[11:19]} UTC") if until and state != "closed" else text


def why(run: RunView) -> str:
    """What stood in the way, in few words."""
    marks = [
        run.reason or "",
        "circuit open" if run.units.circuit_broken else "",
        "rate limited" if run.units.rate_limited else "",
    ]
    return ", ".join(filter(None, marks))


def runs_table(runs: Sequence[RunView]) -> Fitted:
    """The list of runs."""
    longest = max((run.lasted_s or 0.0 for run in runs), default=0.0)
    rows: list[dict[str, RenderableType]] = [
        {
            "run": str(run.id),
            "collector": _what(run),
            "kind": run.kind,
            "outcome": outcome(run),
            "units": bar(shares(run.units), 20),
            "ok": f"{run.units.successful}/{run.units.total}",
            "records": stored(run.units),
            "calls": f"{run.units.calls:,}",
            "took": _length(run.lasted_s, longest),
            "requested (UTC)": moment(run.requested_at),
            "why": why(run),
        }
        for run in runs
    ]
    return Fitted(rows, spare=("calls", "kind", "took", "why", "records"))


def _what(run: RunView) -> str:
    return (
        run.endpoints[0] if len(run.endpoints) == 1 else f"{run.collector} ({len(run.endpoints)} endpoints)"
    )


def _length(seconds: float | None, longest: float) -> Text:
    cells = round(8 * (seconds or 0.0) / longest) if longest else 0
    return Text(duration(seconds)).append(f" {'━' * cells:<8}", style="blue")


def results_table(runs: Sequence[RunView]) -> Fitted:
    """CollectionResults side by side."""
    rows: list[dict[str, RenderableType]] = [
        {
            "run": str(run.id),
            "collector": run.collector,
            "kind": run.kind,
            "outcome": outcome(run),
            "units": bar(shares(run.units), 16),
            "ok": f"{run.units.successful}/{run.units.total}",
            "failed": count(run.units.failed, "red"),
            "skipped": count(run.units.skipped, "yellow"),
            "success": _rate(run.units),
            "records": stored(run.units),
            "calls": f"{run.units.calls:,}",
            "retries": count(run.units.retries),
            "took": duration(run.lasted_s),
            "why": why(run),
        }
        for run in runs
    ]
    return Fitted(rows, spare=("retries", "success", "calls", "kind", "took", "units"))


def _rate(tally: Tally) -> str:
    return f"{tally.successful / tally.total:.1%}" if tally.total else NOTHING


def collectors_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What can be collected; `rows` as `penstock collectors --json` writes them."""
    tiered = any(row["tiers"] for row in rows)
    headings = ("endpoint", "symbols", "every", "scheduled", "limits", "circuit", "table")
    table = _table(*headings, *(["tiers"] if tiered else []))
    table.columns[1].justify = "right"
    for row in rows:
        table.add_row(
            row["endpoint"],
            row["symbols_from"] if row["symbols"] is None else str(row["symbols"]),
            NOTHING if row["every_s"] is None else duration(row["every_s"]),
            Text("yes", style="green") if row["scheduled"] else Text("no", style="bright_black"),
            ", ".join(row["limits"]) or "none",
            circuit(row["circuit"], row["circuit_until_at"]),
            row["table"],
            *([_tiers(row["tiers"])] if tiered else []),
        )
    return table


def _tiers(tiers: Sequence[Mapping[str, Any]]) -> Text:
    """The tiers in their order; of those that cannot be used here, why."""
    parts = [
        Text(each["tier"])
        if each["missing"] is None
        else Text(f"{each['tier']} ({each['missing']})", style="yellow")
        for each in tiers
    ]
    return Text(", ").join(parts)


def accounts_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Accounts of APIs; `rows` as `penstock accounts --json` writes them."""
    table = _table("account", "stopped (UTC)", "why", "token", "stored")
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        left_s = row["token_left_s"]
        table.add_row(
            row["account"],
            NOTHING if row["stopped_at"] is None else Text(row["stopped_at"], style="red"),
            row["reason"] or "",
            NOTHING if left_s is None else f"{duration(left_s)} left" if left_s else "used up",
            str(row["tokens_stored"]),
        )
    return table


def quarantine_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Symbols that fail; `rows` as `penstock quarantine --json` writes them."""
    table = _table("endpoint", "symbol", "failed runs", "why", "skipped until")
    table.columns[2].justify = "right"
    for row in rows:
        until = row["until_at"] or "it is released"
        table.add_row(
            row["endpoint"],
            row["symbol"],
            str(row["failures"]),
            row["error"],
            Text(until, style="yellow") if row["skipped"] else NOTHING,
        )
    return table


def circuits_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How circuits stand; `rows` as `penstock circuits --json` writes them."""
    table = _table("circuit", "state", "failures", "errors", "health", "opened", "retry (UTC)", "forced")
    for column in table.columns[2:6]:
        column.justify = "right"
    for row in rows:
        forced = row["forced"]
        table.add_row(
            row["circuit"],
            Text(row["state"], style=CIRCUIT_COLOURS.get(row["state"], "")),
            count(row["failure_count"]),
            f"{row['error_rate']:.0%}",
            f"{row['health_score']:.0%}",
            count(row["statistics"]["circuit_opens"]),
            NOTHING if row["retry_at"] is None else row["retry_at"][:19].replace("T", " "),
            NOTHING if forced is None else f"{forced['by']}: {forced['why']}",
        )
    return table


def limits_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How limits stand; `rows` as `penstock limits --json` writes them."""
    table = _table("API", "limit", "shared by", "rate now", "used", "left", "waiting", "closed (UTC)")
    for column in (5, 6):
        table.columns[column].justify = "right"
    for row in rows:
        rate, declared = row["rate_per_s"], row["declared_rate_per_s"]
        table.add_row(
            row["api"],
            row["limit"],
            row["shared_by"],
            NOTHING if rate is None else _share(rate / declared, f"{rate:.4g}/s", "green"),
            NOTHING if row["used"] is None else _share(row["used"] / row["amount"], str(row["used"]), "cyan"),
            f"{row['left']:g}",
            count(round(row["waiting"]), "yellow"),
            _closed(row),
        )
    return table


def _share(share: float, said: str, style: str, width: int = 10) -> Text:
    """A bar of a part of the whole, and the figure beside it."""
    filled = min(width, max(round(share * width), share > 0))
    bar = Text("█" * filled, style=style)
    return bar.append("·" * (width - filled), style="bright_black").append(f" {said}", style="default")


def _closed(row: Mapping[str, Any]) -> Text:
    if row["closed_until_at"] is None:
        return Text("open", style="green")
    until = f"{datetime.fromisoformat(row['closed_until_at']):%Y-%m-%d %H:%M:%S}"
    return Text(f"banned until {until}" if row["banned"] else f"until {until}", style="red")


def run_page(shown: RunDetail) -> RenderableType:
    """Everything about one run, one under the other."""
    run = shown.run
    parts: list[RenderableType] = [_head(run), _facts(shown), _units(shown)]
    if len(shown.by_endpoint) > 1:
        parts.append(_endpoints(shown))
    if shown.waiting:
        parts.append(_waiting(shown))
    if shown.failures:
        parts.append(_failures(shown))
    return Group(*parts)


def _head(run: RunView) -> Text:
    line = Text(f"run {run.id}: {', '.join(run.endpoints)} ({run.kind}) ", style="bold")
    line.append_text(outcome(run))
    if note := why(run):
        line.append(f" ({note})")
    return line


def _facts(shown: RunDetail) -> Table:
    run, tally = shown.run, shown.run.units
    grid = Table.grid(padding=(0, 2))
    partial = ", partial" if 0 < tally.successful < tally.total else ""
    facts = {
        "requested": f"{moment(run.requested_at)} UTC",
        "started": f"{moment(run.started_at)} UTC" if run.started_at else "not yet",
        "finished": f"{moment(run.finished_at)} UTC after {duration(run.lasted_s)}"
        if run.finished_at
        else "",
        "deadline": "" if run.is_done else f"{moment(run.deadline_at)} UTC",
        "slot": f"{moment(run.slot_at)} UTC" if run.slot_at else "",
        "range": f"{moment(run.start_at)} to {moment(run.end_at)} UTC" if run.start_at else "",
        "behind a circuit": "units park" if run.on_open == "park" else "units are skipped",
        "success rate": f"{_rate(tally)} ({tally.successful:,} of {tally.total:,}{partial})",
        "records": stored(tally),
        "calls": f"{tally.calls:,} ({tally.retries:,} retries), weight {tally.weight:,.0f}",
        "waits": f"{tally.waits:,}, {duration(tally.waited_s)} in all" if tally.waits else "none",
        "served by": "; ".join(f"{name}: {served_by(tiers)}" for name, tiers in shown.tiers.items()),
        "waves": _waves(shown),
        "sent again": f"{tally.resent:,}" if tally.resent else "",
    }
    for name, value in facts.items():
        if value:
            grid.add_row(Text(name, style="bright_black"), value)
    return grid


def served_by(tiers: Mapping[str, int]) -> str:
    """How many units each tier has served."""
    return ", ".join(f"{name} {n:,}" for name, n in tiers.items())


def _waves(shown: RunDetail) -> str:
    text = f"{shown.run.waves} launched, {shown.waves_done} closed by their chord"
    if shown.waves_differing:
        text += f", {shown.waves_differing} counted otherwise than SQL (SQL wins)"
    return text


def _units(shown: RunDetail) -> Table:
    counts = shares(shown.run.units)
    most = max(counts.values(), default=0)
    grid = Table.grid(padding=(0, 2))
    grid.add_row("")
    for name, (glyph, colour) in PARTS.items():
        if number := counts.get(name):
            cells = max(1, 40 * number // most)
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in shown.reasons.get(name, {}).items())
            grid.add_row(
                name, Text(f"{number:,}", justify="right"), Text(glyph * cells, style=colour), reasons
            )
    return grid


def _endpoints(shown: RunDetail) -> Table:
    table = _table("endpoint", "units", "ok", "failed", "skipped", "records", "calls", title="by endpoint")
    for name, tally in shown.by_endpoint.items():
        table.add_row(
            name,
            bar(shares(tally), 20),
            f"{tally.successful}/{tally.total}",
            count(tally.failed, "red"),
            count(tally.skipped, "yellow"),
            stored(tally),
            f"{tally.calls:,}",
        )
    return table


def _waiting(shown: RunDetail) -> Table:
    table = _table("state", "units", "waits for", "until (UTC)", title="open units")
    for each in shown.waiting:
        table.add_row(each.state, f"{each.units:,}", each.reason, moment(each.until_at))
    return table


def _failures(shown: RunDetail) -> Table:
    total = shown.run.units.failed
    title = (
        "errors" if total == len(shown.failures) else f"the first {len(shown.failures)} of {total:,} errors"
    )
    table = _table("endpoint", "symbol", "error", "attempts", "at (UTC)", "message", title=title)
    for each in shown.failures:
        table.add_row(
            each.endpoint,
            each.symbol,
            Text(each.error, style="red"),
            str(each.attempts),
            moment(each.at),
            Text(each.message[:200]),
        )
    return table


def _table(*headings: str, title: str | None = None) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bright_black",
        title=title and f"\n{title}",
        title_justify="left",
        title_style="bold",
    )
    for heading in headings:
        wraps = heading in {"message", "why", "limits"}
        table.add_column(heading, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    return table
