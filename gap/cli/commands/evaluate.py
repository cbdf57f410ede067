"""Measure attacks, trained or not, on one or many classifiers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from pydantic import Field

from gap.classifiers.task import DataOptions, load_task, warn_if_at_chance
from gap.cli.options import Json, with_options
from gap.cli.results import columns_for, for_display
from gap.core.artifact import prepare_output_dir, write_marker
from gap.core.files import check_writable, write_json
from gap.evaluation.benchmark import common_budget, parse_attacks, run_benchmark
from gap.evaluation.evaluate import Evaluation
from gap.report.pictures import ContactRow, contact_sheet, save_image
from gap.report.tables import print_table
from gap.training.runtime import RuntimeOptions, make_accelerator

EXAMPLE = (
    "gap evaluate runs/per-image pgd noise --classifier runs/mnist-cnn --data mnist --budget l2:2.4 --json table.json"
)

Attacks = Annotated[
    list[str], typer.Argument(help="folders that gap train left, or names from `gap attacks`, such as pgd:steps=100")
]


class BenchmarkOptions(RuntimeOptions, DataOptions):
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


class EvaluateOptions(BenchmarkOptions):
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
    entries = parse_attacks(attacks)
    budget = common_budget(entries, options.budget)
    if json:
        check_writable(json)
    if out:
        prepare_output_dir(out)
    accelerator = make_accelerator(options)
    task = load_task(options.classifier, options, accelerator.device)
    for classifier in task.classifiers:
        warn_if_at_chance(classifier, task.data.trial_split, accelerator.device, task.data.name)
    found: list[Evaluation] = []
    benchmark = run_benchmark(
        entries,
        task,
        [budget],
        own_budgets=options.budget is None,
        transfer=options.transfer,
        images=options.images,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    for evaluation in benchmark:
        row = evaluation.row
        typer.echo(f"{row['attack']} on {row['classifier']}: {row['accuracy_under_attack']:.2%} left", err=True)
        found.append(evaluation)
    rows = [evaluation.row for evaluation in found]
    table = {"rows": rows, "data": task.data.describe()}
    try:
        if json:
            write_json(json, table)
        if out:
            write_marker(out)
            write_json(out / "table.json", table)
            save_image(_sheet(found), out / "pictures.png")
    finally:
        print_table(for_display(rows), columns_for(rows), f"{task.data.name}, {rows[0]['images']} test images")


def _sheet(evaluations: Sequence[Evaluation]) -> Image.Image:
    """The example pictures of each attack."""
    return contact_sheet(
        [ContactRow(e.row["attack"], e.example.clean, e.example.adversarial, e.example.captions) for e in evaluations]
    )
