"""Charts of the note, as SVG: small, the same bytes for the same figures, readable on light and dark pages.

matplotlib is for this only: tests/benchmarks/requirements.txt, which `make bench` installs.
"""

import importlib.util
import io
import re
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tests.benchmarks.measure import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn in the colours of a light page; `adaptive` has a browser take the dark ones where they are preferred.
INK, PAPER, FAINT = "#1f2328", "#ffffff", "#d0d7de"
DARK = {INK: "#e6edf3", PAPER: "#0d1117", FAINT: "#30363d"}
COLOURS = ("#2f81f7", "#d9822b", "#8957e5", "#2da44e")  # all of them readable on both
MISSED = "#cf222e"
LARGEST = 60_000  # bytes of a chart


def available() -> bool:
    """Whether charts can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def drawn(width: float, height: float, columns: int, draw: Callable[[Sequence[Any]], None]) -> str:
    """What `draw` makes of that many panels, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",  # text stays text: small, and found by a search
        "svg.hashsalt": "penstock",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.facecolor": PAPER,
        "figure.facecolor": PAPER,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
    }
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK)
    settings |= dict.fromkeys(("xtick.color", "ytick.color"), INK)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots(1, columns, squeeze=False)[0])
        return adaptive(svg(figure))


def svg(figure: "Figure") -> str:
    """The figure without a date, so that the same figures give the same bytes."""
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue().decode()


def adaptive(text: str) -> str:
    """Colours by name, with a second set for readers who prefer dark pages."""
    names = {INK: "ink", PAPER: "paper", FAINT: "faint"}
    for colour, name in names.items():
        text = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{name}, {colour})", text)
    # Text without a colour of its own is black.
    light = "".join(f"--{name}:{colour};" for colour, name in names.items())
    dark = "".join(f"--{name}:{DARK[colour]};" for colour, name in names.items())
    style = (
        f"<style>svg{{{light}}}text{{fill:var(--ink,{INK})}}"
        f"@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    )
    text = re.sub(r"(<svg [^>]*>)", rf"\1{style}", text, count=1)
    text = re.sub(r"font-family: [^;]*;", "font-family: sans-serif;", text)
    if len(text) > LARGEST:
        raise ValueError(f"the chart has {len(text):,} bytes; a page should not load more than {LARGEST:,}")
    return text


def growth(points: Mapping[int, Mapping[str, float]]) -> str:
    """Time, memory and database by the number of units; `points` are what bench_growth found."""
    counts = sorted(points)

    def draw(axes: Sequence[Any]) -> None:
        for axis, title in zip(axes, ("Seconds", "Memory at its most, MB", "Database, MB"), strict=True):
            axis.set_title(title)
            axis.set_xscale("log")
            axis.set_xlabel("units of the run")
            axis.set_xticks(counts, [f"{count:,}" for count in counts])
        values = {name: [points[count][name] for count in counts] for name in points[counts[0]]}
        axes[0].set_yscale("log")
        axes[2].set_yscale("log")
        _lines(axes[0], counts, {"a run": values["seconds"]})
        # What the run of middle size took for each of its units, for all of them.
        middle = counts[len(counts) // 2 - 1]
        ideal = [count * points[middle]["seconds"] / middle for count in counts]
        axes[0].plot(counts, ideal, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes[0].annotate(
            "ten times the units,\nten times the time",
            (counts[0], ideal[0]),
            xytext=(0.38, 0.12),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6, "relpos": (0, 0.5)},
        )
        memory = {"planner": "planner", "worker": "worker", "redis": "Redis"}
        _lines(axes[1], counts, {name: values[key] for key, name in memory.items()})
        axes[1].set_ylim(0)
        _lines(axes[2], counts, {"SQLite": values["database"]})

    return drawn(9.6, 3.0, 3, draw)


def _lines(axis: Any, counts: Sequence[int], lines: Mapping[str, Sequence[float]]) -> None:
    """Each with its name where it ends, which spares a legend."""
    for colour, (name, values) in zip(COLOURS, lines.items(), strict=False):
        axis.plot(counts, values, color=colour, marker="o", markersize=3.5, linewidth=1.6)
        if len(lines) > 1:
            axis.annotate(
                name,
                (counts[0], values[0]),
                xytext=(0, 5),
                textcoords="offset points",
                color=colour,
                fontweight="bold",
            )
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def reached(result: Result) -> float:
    """How much better than its target: 1 meets it, 2 is twice as good."""
    middle = statistics.median(result.pairs())
    return middle / result.at_least if result.at_least is not None else result.at_most / max(middle, 1e-9)


def targets(results: Sequence[Result]) -> str:
    """A bar for each target: how many times what was asked for was reached."""
    bounded = [result for result in results if result.met() is not None]

    def draw(axes: Sequence[Any]) -> None:
        (axis,) = axes
        axis.set_title("Times as good as its target: right of the line is met")
        axis.set_xscale("log")
        axis.grid(visible=False, axis="y")
        for place, result in enumerate(reversed(bounded)):
            share = reached(result)
            axis.barh(place, share - 1, left=1, height=0.62, color=COLOURS[0] if result.met() else MISSED)
            ahead = share >= 1
            axis.annotate(
                f"{share:.2f}" if share < 10 else f"{share:,.0f}",
                (share, place),
                xytext=(4 if ahead else -4, 0),
                textcoords="offset points",
                va="center",
                ha="left" if ahead else "right",
                fontsize=8,
            )
        axis.set_yticks(range(len(bounded)), [_label(result) for result in reversed(bounded)])
        axis.tick_params(axis="y", length=0)
        axis.axvline(1, color=INK, linewidth=1)
        shares = [reached(result) for result in bounded]
        axis.set_xlim(
            min([0.5, *(share / 1.5 for share in shares)]), max([2, *(share * 1.6 for share in shares)])
        )
        low, high = axis.get_xlim()
        marks = [mark for mark in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if low <= mark <= high]
        axis.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axis.minorticks_off()
        axis.set_ylim(-0.6, len(bounded) - 0.4)
        axis.spines["left"].set_visible(False)

    return drawn(9.6, 0.9 + 0.34 * len(bounded), 1, draw)


def _label(result: Result) -> str:
    """Which target, of what, against whom."""
    lines = textwrap.wrap(f"{result.target} {result.what}".replace("`", ""), 56)
    return "\n".join([*lines, f"against {result.peer_name}"] if any(result.peer) else lines)
