"""Plots as PNG bytes, by matplotlib's object interface, without windows or global state.

Colors are those of Okabe and Ito (2008), which can be distinguished with color blindness. Markers differ too.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from gap.core.errors import GapError

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":")

MUTED, GRID = "#5b6470", "#e3e6ea"
LEGEND_LETTERS = 88  # letters of legend that fit side by side under a plot
BAR_LETTERS = 76  # letters of bar names that fit side by side


def accuracy_curves(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]], title: str, xlabel: str
) -> bytes:
    """Accuracy against a threshold or a cost: a curve per name, with its interval as a band.

    A point is (x, accuracy, low, high), where the last three are in [0, 1]. Raises GapError when there is no point.
    """
    figure, axes = _figure(curves, title)
    for number, (name, points) in enumerate(curves.items()):
        x_values, *fractions = zip(*sorted(points), strict=True)
        accuracy, low, high = ([100 * fraction for fraction in column] for column in fractions)
        style = _style(number)
        axes.plot(x_values, accuracy, label=_plain(name), **style)
        axes.fill_between(x_values, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axes.vlines(x_values, low, high, color=style["color"], linewidth=1, alpha=0.6)
    axes.set(xlabel=_plain(xlabel), ylabel="accuracy", ylim=(-3, 103))
    axes.yaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    _legend(figure, axes)
    return _png(figure)


def bars(values: Mapping[str, tuple[float, float, float]], title: str, ylabel: str) -> bytes:
    """A bar per name, with its interval as a line; a value is (fraction, low, high) in [0, 1].

    Raises GapError when there is no bar.
    """
    figure, axes = _figure(values, title, width=max(7.0, 0.75 * len(values) + 1))
    heights, lows, highs = ([100 * fraction for fraction in column] for column in zip(*values.values(), strict=True))
    positions = range(len(values))
    axes.bar(positions, heights, width=0.62, color=COLORS[0], zorder=2)
    axes.vlines(positions, lows, highs, color="#1c2024", linewidth=1.4, zorder=3)
    for position, height, high in zip(positions, heights, highs, strict=True):
        top = max(height, high)
        axes.annotate(f"{height:.1f}%", (position, top), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    _name_bars(axes, list(values), letters=BAR_LETTERS // min(len(values), 8))
    axes.set(ylabel=_plain(ylabel), ylim=(0, 108))
    axes.yaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    axes.set_yticks(range(0, 101, 20))
    axes.grid(visible=False, axis="x")
    return _png(figure)


def grouped_bars(series: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str, ylabel: str) -> bytes:
    """A group of bars per name, with a bar per series that has it; a value is (value, low, high), at least 0.

    Raises GapError when there is no bar.
    """
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    figure, axes = _figure(series, title, width=max(7.0, 0.45 * len(names) * len(series) + 1))
    width = 0.8 / len(series)
    containers = []
    for number, (label, values) in enumerate(series.items()):
        positions = [names.index(name) + (number - (len(series) - 1) / 2) * width for name in values]
        heights, lows, highs = zip(*values.values(), strict=True)
        color = COLORS[number % len(COLORS)]
        containers.append(axes.bar(positions, heights, width=0.92 * width, color=color, zorder=2, label=_plain(label)))
        axes.vlines(positions, lows, highs, color="#1c2024", linewidth=1.2, zorder=3)
    _name_bars(axes, names, letters=BAR_LETTERS // min(len(names), 8))
    axes.set(ylabel=_plain(ylabel))
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")
    columns = max(1, LEGEND_LETTERS // (max(map(len, series)) + 8))
    figure.legend(handles=containers, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)
    return _png(figure)


def lines(points: Mapping[str, Sequence[tuple[float, float]]], title: str, xlabel: str, ylabel: str) -> bytes:
    """A line per name, in order of x; a point is (x, y).

    Raises GapError when there is no point.
    """
    figure, axes = _figure(points, title)
    for number, (name, series) in enumerate(points.items()):
        steps, values = zip(*sorted(series), strict=True)
        every = max(1, len(steps) // 12)
        axes.plot(steps, values, label=_plain(name), markevery=every, **_style(number))
    axes.set(xlabel=_plain(xlabel), ylabel=_plain(ylabel))
    _legend(figure, axes)
    return _png(figure)


def _figure(
    series: Mapping[str, Sequence[object] | Mapping[str, object]], title: str, width: float = 7.0
) -> tuple[Figure, Axes]:
    if not series or not all(series.values()):
        empty = ", ".join(name for name, points in series.items() if not points)
        raise GapError(f"nothing to plot in {title!r}" + (f": no points for {empty}" if empty else ""))
    layout = ConstrainedLayoutEngine(rect=(0.015, 0.02, 0.97, 0.95))
    figure = Figure(figsize=(width, 4.2), dpi=160, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(_plain(title), loc="left", fontsize=12, fontweight="bold", pad=10)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=MUTED, labelcolor=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    return figure, axes


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(COLORS) % len(DASHES)],
        "linewidth": 1.8,
        "markersize": 5.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def _name_bars(axes: Axes, names: Sequence[str], letters: int) -> None:
    """Names below the bars, in lines of at most `letters` letters, rotated where a word is longer."""
    wrapped = [textwrap.fill(name, letters, break_long_words=False, break_on_hyphens=False) for name in names]
    axes.set_xticks(range(len(names)), [_plain(name) for name in wrapped])
    axes.tick_params(axis="x", length=0)
    if max(len(line) for name in wrapped for line in name.splitlines()) > letters:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")


def _legend(figure: Figure, axes: Axes) -> None:
    names = [str(line.get_label()) for line in axes.get_lines()]
    columns = min(len(names), max(1, LEGEND_LETTERS // (max(map(len, names)) + 8)))
    figure.legend(axes.get_lines(), names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)


def _plain(text: str) -> str:
    """The text with dollar signs escaped, which would begin a formula."""
    return text.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
