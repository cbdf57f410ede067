import io
import sys
import warnings

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from gap.core.errors import GapError
from gap.report.plots import COLORS, MARKERS, accuracy_curves, bars, lines

CURVE = [(0.2, 0.5, 0.4, 0.6), (0.1, 0.9, 0.85, 0.93)]


@pytest.fixture
def saved_figures(monkeypatch):
    """The matplotlib figures that were saved, for tests of their content."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def record(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


def axes_of(figures: list[Figure]) -> Axes:
    return figures[-1].axes[0]


def test_accuracy_curves_are_in_percent_sorted_by_epsilon_with_an_interval(saved_figures):
    png = accuracy_curves({"pgd": CURVE}, "title", "epsilon")
    axes = axes_of(saved_figures)
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [0.1, 0.2]
    assert list(line.get_ydata()) == pytest.approx([90, 50])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == pytest.approx((40, 93))
    assert axes.get_xlabel() == "epsilon"
    assert axes.yaxis.get_major_formatter()(50, 0) == "50%"
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.width >= 1000


def test_accuracy_curves_up_to_twenty_differ_in_color_marker_or_dash(saved_figures):
    accuracy_curves({f"attack {k}": CURVE for k in range(20)}, "", "")
    lines = axes_of(saved_figures).get_lines()
    styles = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(styles) == 20
    assert lines[0].get_color() == lines[7].get_color()
    assert lines[0].get_linestyle() != lines[7].get_linestyle()
    assert len({line.get_color() for line in lines[:7]}) == len(COLORS) == 7
    assert len({line.get_marker() for line in lines[:8]}) == len(MARKERS) == 8


def test_accuracy_curves_legend_shows_names_literally(saved_figures):
    """Catches: names with a leading underscore that matplotlib hides, and names with `$` that it takes for math."""
    names = ["_private", r"no $\formula{$", "runs/per-image", "50% {braces}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accuracy_curves(dict.fromkeys(names, CURVE), "$x", "y$")
    shown = [text.get_text().replace(r"\$", "$") for text in saved_figures[-1].legends[0].get_texts()]
    assert shown == names


def test_bars_are_in_percent_with_whiskers(saved_figures):
    bars({"pgd": (0.25, 0.2, 0.35), "noise": (1.0, 0.98, 1.0)}, "left", "accuracy under attack")
    axes = axes_of(saved_figures)
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([25, 100])
    whiskers = axes.collections[0].get_segments()
    assert np.concatenate(whiskers)[:, 1].tolist() == pytest.approx([20, 35, 98, 100])
    assert [text.get_text() for text in axes.texts] == ["25.0%", "100.0%"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pgd", "noise"]
    assert axes.get_ylabel() == "accuracy under attack"


def test_bars_long_names_are_rotated_and_short_ones_are_not(saved_figures):
    share = (0.5, 0.4, 0.6)
    bars(dict.fromkeys(["noise", "pgd"], share), "", "")
    assert axes_of(saved_figures).get_xticklabels()[0].get_rotation() == 0
    bars(dict.fromkeys(["runs/a-very-long-name-of-an-artifact-without-blanks", "pgd"], share), "", "")
    assert axes_of(saved_figures).get_xticklabels()[0].get_rotation() == 30


def test_lines_each_series_is_sorted_by_step(saved_figures):
    lines({"train": [(2, 0.5), (1, 1.0)], "validation": [(2, 0.7)]}, "loss", "step", "margin")
    first, second = axes_of(saved_figures).get_lines()
    assert list(first.get_xdata()) == [1, 2]
    assert list(first.get_ydata()) == [1.0, 0.5]
    assert list(second.get_ydata()) == [0.7]
    assert axes_of(saved_figures).get_xlabel() == "step"
    assert axes_of(saved_figures).get_ylabel() == "margin"


@pytest.mark.parametrize(
    ("plot", "labels"), [(accuracy_curves, ["label"]), (bars, ["label"]), (lines, ["one", "other"])]
)
def test_plot_without_data_raises(plot, labels):
    with pytest.raises(GapError, match="nothing to plot in 'title'"):
        plot({}, "title", *labels)
    with pytest.raises(GapError, match="no points for pgd"):
        plot({"pgd": []}, "title", *labels)


def test_bars_same_data_gives_the_same_bytes_without_pyplot():
    """Catches: a timestamp in the file, and figures that pyplot keeps in memory."""
    assert bars({"a": (0.5, 0.4, 0.6)}, "t", "y") == bars({"a": (0.5, 0.4, 0.6)}, "t", "y")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
