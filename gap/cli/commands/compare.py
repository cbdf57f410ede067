"""Compare attacks over several budgets: a table, a plot and a page."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from gap.cli.commands.evaluate import Attacks, BenchmarkOptions
from gap.cli.options import with_options
from gap.core.errors import GapError
from gap.core.files import write_bytes, write_json
from gap.report.tables import Table, print_table

EXAMPLE = (
    "gap compare runs/per-image pgd noise --classifier runs/mnist-cnn --data mnist --epsilons 0.6,1.2,2.4 --out out/"
)


class CompareOptions(BenchmarkOptions):
    """Options of `gap compare`."""

    budget: Annotated[
        str | None,
        Field(description="Norm and largest threshold; by default the budget of the first trained attack."),
    ] = None
    epsilons: Annotated[
        list[float] | None,
        Field(description="Thresholds in the budget's norm; by default 1/4, 1/2, 3/4 and all of it."),
    ] = None
    images: Annotated[int | None, Field(ge=1, description="Number of test images, the same for all tables.")] = 1000


@with_options(CompareOptions)
def compare(
    read: Callable[..., CompareOptions],
    *,
    attacks: Attacks,
    out: Annotated[Path, typer.Option("--out", help="Folder for the table, the plot and the page.")],
) -> None:
    """Compare attacks over several budgets: a table, a plot and a page."""
    from gap.classifiers.task import load_task
    from gap.core.artifact import prepare_output_dir, write_marker
    from gap.evaluation.benchmark import common_budget, evaluate_task, parse_attacks
    from gap.report.page import Figure, Section, write_page
    from gap.report.pictures import to_png_bytes
    from gap.threat import Budget
    from gap.training.runtime import make_accelerator

    options = read()
    entries = parse_attacks(attacks)
    largest_budget = common_budget(entries, options.budget)
    if largest_budget is None:
        raise GapError("there is no budget to compare at; give --budget, for example l2:2.4")
    epsilons = options.epsilons or [largest_budget.epsilon * share for share in (0.25, 0.5, 0.75, 1.0)]
    budgets = [Budget(largest_budget.norm, epsilon) for epsilon in sorted(epsilons)]
    prepare_output_dir(out)
    accelerator = make_accelerator(options)
    task = load_task(options.classifier, options, accelerator.device)
    result = evaluate_task(
        entries, task, budgets, images=options.images, batch_size=options.batch_size, seed=options.seed
    )
    plot, table = result.curves_png(), result.table()
    try:
        write_marker(out)
        write_json(out / "results.json", result.to_dict())
        write_bytes(out / "accuracy-against-epsilon.png", plot)
    finally:
        print_table(table.rows, table.columns, table.caption)
    section = Section(
        "Accuracy against epsilon",
        "The accuracy under attack at each epsilon, with 95% intervals, on 8-bit images.",
        [
            Figure(
                plot,
                "Accuracy under attack against epsilon",
                f"accuracy against epsilon for {', '.join(result.curves())}",
            ),
            Figure(
                to_png_bytes(result.at(budgets[-1]).pictures()),
                f"Pictures at {budgets[-1]}",
                "clean, perturbation and perturbed",
            ),
        ],
        Table(table.rows, table.columns),
    )
    typer.echo(write_page(out / "index.html", "Attacks compared", result.title, [section]))
