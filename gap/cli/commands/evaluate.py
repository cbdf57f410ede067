"""Measure attacks, trained or not, on one or many classifiers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from pydantic import Field

from gap.classifiers.task import DataOptions, load_setting, warn_if_chance
from gap.cli.options import Json, with_options
from gap.cli.results import columns_for, for_display
from gap.core.artifact import claim_output, mark
from gap.core.files import check_writable, write_json
from gap.evaluation.benchmark import common_budget, find_entrants, run_lineup
from gap.evaluation.evaluate import Evaluation
from gap.report.pictures import SheetRow, contact_sheet, save_image
from gap.report.tables import print_table
from gap.training.runtime import MachineOptions, make_accelerator

EXAMPLE = (
    "gap evaluate runs/per-image pgd noise --classifier runs/mnist-cnn --data mnist --budget l2:2.4 --json table.json"
)

Attacks = Annotated[
    list[str], typer.Argument(help="folders that gap train left, or names from `gap attacks`, such as pgd:steps=100")
]


class LineupOptions(MachineOptions, DataOptions):
    """What `gap evaluate` and `gap compare` share."""

    classifier: Annotated[list[str], Field(min_length=1, description="the classifiers to attack")]
    budget: Annotated[
        str | None,
        Field(description="for all attacks; without it trained ones keep their own, and the others take the first's"),
    ] = None
    images: Annotated[
        int | None, Field(ge=1, description="how many test images, drawn once for all tables; all by default")
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="images a batch")] = 250


class EvaluateOptions(LineupOptions):
    """Options of `gap evaluate`."""

    transfer: Annotated[
        bool, Field(description="make each untrained attack on every classifier and judge it on every one")
    ] = False


@with_options(EvaluateOptions)
def evaluate(
    read: Callable[..., EvaluateOptions],
    *,
    attacks: Attacks,
    json: Json = None,
    out: Annotated[Path | None, typer.Option("--out", help="a folder for the table and pictures")] = None,
) -> None:
    """Measure attacks, trained or not, on one or many classifiers.

    Everything is measured on 8-bit pictures of the test split. Shares stand with their 95% intervals; with several
    classifiers there is a row for each.
    """
    options = read()
    entrants = find_entrants(attacks)
    budget = common_budget(entrants, options.budget)
    if json:
        check_writable(json)
    if out:
        claim_output(out)
    accelerator = make_accelerator(options)
    setting = load_setting(options.classifier, options, accelerator.device)
    for classifier in setting.classifiers:
        warn_if_chance(classifier, setting.data.trial_split, accelerator.device, setting.data.name)
    found: list[Evaluation] = []
    lineup = run_lineup(
        entrants,
        setting,
        [budget],
        own_budgets=options.budget is None,
        transfer=options.transfer,
        images=options.images,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    for evaluation in lineup:
        row = evaluation.row
        typer.echo(f"{row['attack']} on {row['classifier']}: {row['accuracy_under_attack']:.2%} left", err=True)
        found.append(evaluation)
    rows = [evaluation.row for evaluation in found]
    table = {"rows": rows, "data": setting.data.describe()}
    try:
        if json:
            write_json(json, table)
        if out:
            mark(out)
            write_json(out / "table.json", table)
            save_image(_sheet(found), out / "pictures.png")
    finally:
        print_table(for_display(rows), columns_for(rows), f"{setting.data.name}, {rows[0]['images']} test images")


def _sheet(evaluations: Sequence[Evaluation]) -> Image.Image:
    """The example pictures of each attack."""
    return contact_sheet(
        [SheetRow(e.row["attack"], e.example.clean, e.example.adversarial, e.example.captions) for e in evaluations]
    )
