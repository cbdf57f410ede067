"""Results of evaluations: rows of metrics, with tables and plots."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gap.evaluation.evaluate import Evaluation
from gap.report.pictures import ContactRow, contact_sheet, to_png_bytes
from gap.report.tables import Column, Table, csv_table, html_table, latex_table, markdown_table, text_table
from gap.threat import L2, LINF, NORMS, Budget, Norm

SOURCE = Column("source", "made on")
UNROUNDED = Column("accuracy_before_rounding", "before 8 bits", ".2%")
PREPOSITIONS = {"source": " made on ", "budget": " at "}
TARGET = Column("target_success_rate", "target reached", ".2%")


@dataclass(frozen=True)
class EvaluationResult:
    """The results of attacks: one evaluation for each attack, budget and classifier.

    It is printed as a table. As the last value of a notebook cell, it is shown as a table with images.
    """

    evaluations: Sequence[Evaluation]
    data: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The metrics of each evaluation as plain values: rates in [0, 1], norms in pixels of [0, 1], seconds."""
        return [evaluation.row for evaluation in self.evaluations]

    @property
    def title(self) -> str:
        """The name of the data and the number of images."""
        return f"{self.data['name']}, {self.rows[0]['images']} test images"

    def to_dict(self) -> dict[str, Any]:
        """All values except the images, as plain values for JSON."""
        return {"rows": self.rows, "data": self.data}

    def table(self) -> Table:
        """The rows and columns that are shown, with the title as caption."""
        return Table(for_display(self.rows), columns_for(self.rows), self.title)

    def at(self, budget: Budget) -> "EvaluationResult":
        """The evaluations at one budget."""
        return EvaluationResult([e for e in self.evaluations if e.row["budget"] == str(budget)], self.data)

    def to_text(self) -> str:
        """The table as plain text."""
        table = self.table()
        return f"{table.caption}\n{text_table(table.rows, table.columns)}"

    def to_markdown(self) -> str:
        """The table in Markdown."""
        table = self.table()
        return markdown_table(table.rows, table.columns)

    def to_latex(self) -> str:
        """The table in LaTeX, for the booktabs package."""
        table = self.table()
        return latex_table(table.rows, table.columns, caption=table.caption)

    def to_csv(self, path: str | Path) -> None:
        """Save all rows, unrounded, as CSV."""
        csv_table(self.rows, Path(path))

    def pictures(self) -> Image.Image:
        """A contact sheet of some images of each attack: clean, perturbation and adversarial."""
        names = _add_differences(self.rows, curve_names(self.rows), ["budget"])
        return contact_sheet(
            [
                ContactRow(name, example.clean, example.adversarial, example.captions)
                for name, evaluation in zip(names, self.evaluations, strict=True)
                for example in [evaluation.example]
            ]
        )

    def curves(self) -> dict[str, list[tuple[float, float, float, float]]]:
        """Curves of accuracy against epsilon by name; a point is (epsilon, accuracy, low, high)."""
        return curves_of(self.rows)

    def curves_png(self, title: str | None = None) -> bytes:
        """The PNG file of the curves of rows whose budgets are of one norm."""
        from gap.report.plots import accuracy_curves  # imported here because it imports matplotlib

        norm = Budget.parse(self.rows[0]["budget"]).norm
        return accuracy_curves(self.curves(), title or self.title, f"{norm} threshold, pixels in [0, 1]")

    def plot(self) -> Image.Image:
        """Curves of accuracy against epsilon if there are several budgets of one norm, else a bar for each attack."""
        from gap.report.plots import grouped_bars  # imported here because it imports matplotlib

        budgets = {row["budget"] for row in self.rows if row["budget"]}
        norms = {Budget.parse(budget).norm for budget in budgets}
        if len(budgets) > 1 and len(norms) == 1 and all(row["budget"] for row in self.rows):
            png = self.curves_png()
        else:
            png = grouped_bars(_bars_of(self.rows), self.title, "accuracy under attack")
        return Image.open(io.BytesIO(png))

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows."""
        png = base64.b64encode(to_png_bytes(self.pictures())).decode()
        table = self.table()
        return f'{html_table(table.rows, table.columns, table.caption)}<img src="data:image/png;base64,{png}">'


def _bars_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """The accuracy under attack and its interval, by classifier and attack."""
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    names = _add_differences(rows, [row["attack"] for row in rows], ["source", "budget"])
    for name, row in zip(names, rows, strict=True):
        bar = (row["accuracy_under_attack"], *row["accuracy_under_attack_interval"])
        groups.setdefault(row["classifier"], {})[name] = bar
    return groups


def _add_differences(rows: list[dict[str, Any]], names: list[str], columns: Sequence[str]) -> list[str]:
    """Names of rows. Where rows of the same attack and classifier differ in these columns, their values are added."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["attack"], row["classifier"]), []).append(row)

    def describe_differences(row: dict[str, Any]) -> str:
        group = groups[row["attack"], row["classifier"]]
        differing = (column for column in columns if len({row_of_group[column] for row_of_group in group}) > 1)
        return "".join(f"{PREPOSITIONS[column]}{row[column]}" for column in differing)

    return [name + describe_differences(row) for name, row in zip(names, rows, strict=True)]


def columns_for(rows: list[dict[str, Any]]) -> list[Column]:
    """The columns that are needed for these rows."""
    transfer = any(row["source"] != row["classifier"] for row in rows)
    targeted = any("target_success_rate" in row for row in rows)
    return [
        Column("attack", "attack"),
        *([SOURCE] if transfer else []),
        Column("classifier", "classifier"),
        Column("budget", "budget"),
        Column("images", "images", "d"),
        Column("clean_accuracy", "clean", ".2%"),
        Column("accuracy_under_attack", "under attack", ".2%"),
        *([UNROUNDED] if any(map(_rounding_matters, rows)) else []),
        Column("fooling_rate", "fooling rate", ".2%"),
        Column("attack_success_rate", "success", ".2%"),
        *([TARGET] if targeted else []),
        *(column for norm in _norms_of(rows) for column in _length_columns(norm)),
        Column("ssim", "SSIM", ".3f"),
        Column("milliseconds", "ms/image", ".3f"),
    ]


def _norms_of(rows: list[dict[str, Any]]) -> list[Norm]:
    """The norms that have columns: L2, Linf and those of the budgets."""
    budgets = {Budget.parse(row["budget"]).norm for row in rows if row["budget"]}
    return [norm for norm in NORMS.values() if norm in {L2, LINF, *budgets}]


def _length_columns(norm: Norm) -> list[Column]:
    return [Column(f"{norm.name}_{kind}", f"{norm.title} {kind}", ".3f") for kind in ("mean", "max")]


def _rounding_matters(row: dict[str, Any]) -> bool:
    """Whether the accuracy before rounding to 8 bits is outside of the interval of the accuracy under attack."""
    low, high = row["accuracy_under_attack_interval"]
    return not low <= row["accuracy_before_rounding"] <= high


def for_display(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the time in milliseconds, and without intervals except that of the accuracy under attack."""
    displayed = []
    for row in rows:
        selected = {
            k: v for k, v in row.items() if not k.endswith("_interval") or k.startswith("accuracy_under_attack")
        }
        seconds = row["seconds_per_image"]
        assert isinstance(seconds, float)
        displayed.append(selected | {"milliseconds": seconds * 1000})
    return displayed


def curve_names(rows: list[dict[str, Any]]) -> list[str]:
    """The name of the curve of each row: its attack, with its classifier and source where there are several."""
    has_several_classifiers = len({row["classifier"] for row in rows}) > 1
    names = [f"{row['attack']} on {row['classifier']}" if has_several_classifiers else row["attack"] for row in rows]
    return _add_differences(rows, names, ["source"])


def curves_of(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float, float, float]]]:
    """The curves of accuracy against epsilon, with intervals. The first point is that of the clean images at 0."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for name, row in zip(curve_names(rows), rows, strict=True):
        clean = (0.0, row["clean_accuracy"], *row["clean_accuracy_interval"])
        epsilon = Budget.parse(row["budget"]).epsilon
        point = (epsilon, row["accuracy_under_attack"], *row["accuracy_under_attack_interval"])
        curves.setdefault(name, [clean]).append(point)
    return curves
