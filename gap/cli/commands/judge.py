"""Measure robust accuracy by AutoAttack, with checks for gradient masking."""

from collections.abc import Callable
from typing import Annotated

import typer
from pydantic import Field

from gap.attacks.generator.options import DEFAULT_TRAINING_IMAGES
from gap.classifiers.options import DataOptions
from gap.cli.options import Json, with_options
from gap.core.errors import GapError
from gap.core.files import check_writable, write_json
from gap.core.process import TrainingInterrupted
from gap.report.tables import print_table
from gap.training.options import RuntimeOptions

EXAMPLE = "gap judge runs/hard --data mnist --budget linf:0.3 --images 1000 --json judged.json"


class JudgeOptions(RuntimeOptions, DataOptions):
    """Options of `gap judge`."""

    classifier: str = Field(
        description="Classifier whose robustness is measured.",
        json_schema_extra={"positional": True, "complete": "classifiers"},
    )
    budget: Annotated[
        str, Field(description="Largest perturbation, such as linf:8/255 or l2:2.0, for pixels in [0, 1].")
    ]
    architecture: Annotated[
        str | None,
        Field(
            description="Network that the weights in a file belong to; the same as writing ARCHITECTURE@FILE.",
            json_schema_extra={"complete": "classifiers"},
        ),
    ] = None
    surrogate: Annotated[
        str | None,
        Field(
            description="Classifier without adversarial training, for transfer attacks.",
            json_schema_extra={"complete": "classifiers"},
        ),
    ] = None
    attack: list[str] = Field(
        default_factory=list,
        description="One more attack, repeatable: a folder of gap train, or a name from "
        "`gap attacks`, such as pgd:restarts=5.",
        json_schema_extra={"complete": "attacks"},
    )
    adaptive_images: Annotated[
        int | None,
        Field(
            ge=0,
            description="Training images of a generator and a universal perturbation, which are trained against the"
            f" classifier; {DEFAULT_TRAINING_IMAGES:,} by default, none with 0 or --fast.",
        ),
    ] = None
    images: Annotated[int, Field(ge=1, description="Number of test images, which are the first ones.")] = 1000
    fast: Annotated[
        bool,
        Field(
            description="Run only the two white-box attacks of AutoAttack (APGD), a short "
            "black-box search on 200 images, and no trained attacks."
        ),
    ] = False
    batch_size: Annotated[int, Field(ge=1, description="Images per batch.")] = 250


@with_options(JudgeOptions)
def judge(
    read: Callable[..., JudgeOptions],
    *,
    json: Json = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with status 1 unless the verdict is holds, whatever the accuracy."),
    ] = False,
) -> None:
    """Measure robust accuracy by AutoAttack, with checks for gradient masking.

    Robust images are those that are classified correctly under AutoAttack, PGD of 50 steps and all given or trained
    attacks. The verdict is holds, masked (a check failed, so the accuracy is not reliable) or inconclusive (too few
    images are classified correctly). For a folder that gap wrote, the report is also added to its card.
    """
    from gap.classifiers.task import load_task
    from gap.evaluation.judge import judge_task
    from gap.threat import Budget
    from gap.training.runtime import make_accelerator

    options = read()
    budget = Budget.parse(options.budget)
    if json:
        check_writable(json)
    accelerator = make_accelerator(options)
    if accelerator.num_processes > 1:
        raise GapError("gap judge works in one process; start it without torchrun or accelerate")
    name = f"{options.architecture}@{options.classifier}" if options.architecture else options.classifier
    names = [name, *([options.surrogate] if options.surrogate else [])]
    task = load_task(names, options, accelerator.device)
    try:
        report = judge_task(
            task,
            budget,
            options,
            attacks=options.attack,
            adaptive_images=options.adaptive_images,
            images=options.images,
            fast=options.fast,
            batch_size=options.batch_size,
        )
    except TrainingInterrupted as interruption:
        typer.echo("gap: stopped while an attack learned; there is no report", err=True)
        raise typer.Exit(interruption.code) from None
    try:
        if json:
            write_json(json, report.to_dict())
    finally:
        for table in report.tables():
            print_table(table.rows, table.columns, table.caption)
        for text in report.not_evaluated:
            typer.echo(f"not evaluated: {text}")
        typer.echo(report.summary)
    if strict and report.verdict != "holds":
        raise typer.Exit(1)
