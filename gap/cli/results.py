"""The columns that tables of evaluations show."""

from typing import Any

from gap.report.tables import Column
from gap.threat import L2, LINF, NORMS, Budget, Norm

SOURCE = Column("source", "made on")
UNROUNDED = Column("accuracy_before_rounding", "before 8 bits", ".2%")
TARGET = Column("target_success_rate", "target reached", ".2%")


def columns_for(rows: list[dict[str, Any]]) -> list[Column]:
    """The columns that say something about these rows."""
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
    """The norms whose lengths are shown: L2, Linf and those of the budgets."""
    budgets = {Budget.parse(row["budget"]).norm for row in rows if row["budget"]}
    return [norm for norm in NORMS.values() if norm in {L2, LINF, *budgets}]


def _length_columns(norm: Norm) -> list[Column]:
    return [Column(f"{norm.name}_{kind}", f"{norm.title} {kind}", ".3f") for kind in ("mean", "max")]


def _rounding_matters(row: dict[str, Any]) -> bool:
    """Whether rounding to 8 bits moves the accuracy under attack out of its own interval."""
    low, high = row["accuracy_under_attack_interval"]
    return not low <= row["accuracy_before_rounding"] <= high


def for_display(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows with the time in milliseconds, and without the intervals of all but the accuracy under attack."""
    shown = []
    for row in rows:
        kept = {k: v for k, v in row.items() if not k.endswith("_interval") or k.startswith("accuracy_under_attack")}
        seconds = row["seconds_per_image"]
        assert isinstance(seconds, float)
        shown.append(kept | {"milliseconds": seconds * 1000})
    return shown


def curve_names(rows: list[dict[str, Any]]) -> list[str]:
    """The curve that each row is a point of: its attack's, on its classifier where there are several."""
    several = len({row["classifier"] for row in rows}) > 1
    return [f"{row['attack']} on {row['classifier']}" if several else row["attack"] for row in rows]


def curves_of(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Accuracy against epsilon with its interval, curve by curve, each beginning with the clean images at 0."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for name, row in zip(curve_names(rows), rows, strict=True):
        clean = (0.0, row["clean_accuracy"], *row["clean_accuracy_interval"])
        epsilon = Budget.parse(row["budget"]).epsilon
        point = (epsilon, row["accuracy_under_attack"], *row["accuracy_under_attack_interval"])
        curves.setdefault(name, [clean]).append(point)
    return curves
