"""Evaluate attacks, trained or not, on one or several classifiers."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from gap.classifiers.options import DataOptions
from gap.cli import completion
from gap.cli.options import Json, with_options
from gap.core.files import check_writable, write_json
from gap.report.tables import print_table
from gap.training.options import RuntimeOptions

EXAMPLE = (
    "gap evaluate runs/per-image pgd noise --classifier runs/mnist-cnn --data mnist --budget l2:2.4 --json results.json"
)

Attacks = Annotated[
    list[str],
    typer.Argument(
        help="Folders of gap train, or names of `gap attacks`, such as pgd:steps=100.",
        autocompletion=completion.attacks,
    ),
]


class BenchmarkOptions(RuntimeOptions, DataOptions):
    """Options of both `gap evaluate` and `gap compare`."""

    classifier: Annotated[
        list[str],
        Field(
            min_length=1, description="Classifier to attack; repeatable.", json_schema_extra={"complete": "classifiers"}
        ),
    ]
    budget: Annotated[
        str | None,
        Field(
            description="Largest perturbation of all attacks. Without it, trained attacks use "
            "the budgets of their training, and others that of the first one."
        ),
    ] = None
    images: Annotated[
        int | None, Field(ge=1, description="Number of test images, the same for all tables; all by default.")
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="Images per batch.")] = 250


class EvaluateOptions(BenchmarkOptions):
    """Options of `gap evaluate`."""

    transfer: Annotated[
        bool, Field(description="Make each untrained attack on every classifier and evaluate it on every classifier.")
    ] = False


@with_options(EvaluateOptions)
def evaluate(
    read: Callable[..., EvaluateOptions],
    *,
    attacks: Attacks,
    json: Json = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the table and example images.")] = None,
) -> None:
    """Evaluate attacks, trained or not, on one or several classifiers.

    All metrics are those of 8-bit images of the test split, with 95% intervals. There is a row for each attack and
    classifier.
    """
    from gap.classifiers.task import load_task
    from gap.core.artifact import prepare_output_dir, write_marker
    from gap.evaluation.benchmark import common_budget, evaluate_task, parse_attacks
    from gap.report.pictures import save_image
    from gap.training.runtime import make_accelerator

    options = read()
    entries = parse_attacks(attacks)
    budget = common_budget(entries, options.budget)
    if json:
        check_writable(json)
    if out:
        prepare_output_dir(out)
    accelerator = make_accelerator(options)
    task = load_task(options.classifier, options, accelerator.device)
    result = evaluate_task(
        entries,
        task,
        [budget],
        own_budgets=options.budget is None,
        transfer=options.transfer,
        images=options.images,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    try:
        if json:
            write_json(json, result.to_dict())
        if out:
            write_marker(out)
            write_json(out / "results.json", result.to_dict())
            save_image(result.pictures(), out / "pictures.png")
    finally:
        table = result.table()
        print_table(table.rows, table.columns, table.caption)
