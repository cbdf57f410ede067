"""Say how hard a classifier is: AutoAttack, and signs of hidden gradients."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from gap.attacks.generator.train import DEFAULT_TRAINING_IMAGES
from gap.classifiers.classifier import artifact_dir_of
from gap.classifiers.task import DataOptions, load_task, warn_if_at_chance
from gap.cli.options import Json, with_options
from gap.core.artifact import open_artifact, update_card
from gap.core.errors import GapError
from gap.core.files import check_writable, write_json
from gap.core.process import TrainingInterrupted
from gap.evaluation.adaptive import adaptive_attacks
from gap.evaluation.benchmark import check_entries, make_attack, parse_attacks
from gap.evaluation.robustness import FEWEST
from gap.evaluation.robustness import judge as work
from gap.report.tables import Column, print_table
from gap.threat import Budget
from gap.training.callbacks import ProgressBar
from gap.training.runtime import RuntimeOptions, make_accelerator

EXAMPLE = "gap judge runs/hard --data mnist --budget linf:0.3 --images 1000 --json judged.json"


class JudgeOptions(RuntimeOptions, DataOptions):
    """Options of `gap judge`."""

    classifier: str = Field(description="the classifier to judge", json_schema_extra={"positional": True})
    budget: Annotated[str, Field(description="the perturbations to withstand, linf:8/255 or l2:2.0")]
    architecture: Annotated[
        str | None,
        Field(
            description="the network whose weights the classifier, a file, holds; the same as ARCHITECTURE@FILE for it"
        ),
    ] = None
    surrogate: Annotated[
        str | None, Field(description="a classifier trained without hardening, to try transfer from")
    ] = None
    attack: list[str] = Field(
        default_factory=list,
        description="one more attack, repeatable: what gap train left, or one of `gap attacks`, as pgd:restarts=5",
    )
    adaptive: Annotated[
        int | None,
        Field(
            ge=0,
            description="training images that a generator and a universal perturbation learn from, to attack it;"
            f" {DEFAULT_TRAINING_IMAGES:,} where not told, none with 0 or --fast",
        ),
    ] = None
    images: Annotated[int, Field(ge=1, description="how many test images, from the first on")] = 1000
    fast: Annotated[
        bool,
        Field(
            description="of AutoAttack the two white-box attacks (APGD) only, a short search of 200 images, no learning"
        ),
    ] = False
    batch_size: Annotated[int, Field(ge=1, description="images a batch")] = 250


@with_options(JudgeOptions)
def judge(
    read: Callable[..., JudgeOptions],
    *,
    json: Json = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="exit with status 1 unless the verdict is holds, whatever the accuracy"),
    ] = False,
) -> None:
    """Say how hard a classifier is: AutoAttack, and signs of hidden gradients.

    Robust are the images that withstand all of AutoAttack, PGD of 50 steps and every attack that is given or learns.
    The verdict is holds, masked (a check failed: its accuracy is not to be believed) or inconclusive (it is right on
    too few images to tell). It is also noted in the card of a folder that gap left.
    """
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
    classifier, surrogate = task.classifiers[0], task.classifiers[1] if options.surrogate else None
    budget.check(classifier.spec.channels, *classifier.spec.size)
    warn_if_at_chance(classifier, task.data.trial_split, accelerator.device, task.data.name)
    entries = parse_attacks(options.attack)
    check_entries(entries, replace(task, classifiers=[classifier]))
    others, adaptive = (
        [
            make_attack(entry, budget, classifier, task, options.seed)
            for entry in entries
            if entry.is_adaptive_to(classifier) == learns
        ]
        for learns in (False, True)
    )
    images = options.adaptive if options.adaptive is not None else 0 if options.fast else DEFAULT_TRAINING_IMAGES
    made = adaptive_attacks(classifier, task, budget, images, options, ProgressBar) if images else ()
    try:
        found = work(
            classifier,
            task.data.test,
            budget,
            images=options.images,
            fast=options.fast,
            surrogate=surrogate,
            others=others,
            adaptive=chain(adaptive, made),
            batch_size=options.batch_size,
            seed=options.seed,
            data=task.data.name,
            tell=lambda name, accuracy: typer.echo(f"{name}: {accuracy:.2%} left", err=True),
        )
    except TrainingInterrupted as stopped:
        typer.echo("gap: stopped while an attacker learned; nothing is judged", err=True)
        raise typer.Exit(stopped.code) from None
    try:
        if json:
            write_json(json, found)
        if folder := artifact_dir_of(classifier):
            _note(folder, found)
    finally:
        _show(found)
    if strict and found["verdict"] != "holds":
        raise typer.Exit(1)


def _note(folder: Path, found: dict[str, Any]) -> None:
    """Keep what was found in a card, in place of what an earlier look of the same kind found."""
    earlier = open_artifact(folder).card.get("robustness_evaluations")
    kept = [each for each in earlier if _kind(each) != _kind(found)] if isinstance(earlier, list) else []
    update_card(folder, "robustness_evaluations", [*kept, found])


def _kind(found: Any) -> list[Any] | None:
    return [found.get(key) for key in ("budget", "autoattack", "images", "data")] if isinstance(found, dict) else None


def _show(found: dict[str, Any]) -> None:
    attacks = [{"attack": name, "left": f"{value:.2%}"} for name, value in found["attacks"].items()]
    print_table(attacks, [Column("attack", "attack"), Column("left", "accuracy left")], "attacks")
    rows = [check | {"passed": "yes" if check["passed"] else "NO"} for check in found["checks"]]
    print_table(
        rows, [Column("name", "check"), Column("passed", "passed"), Column("details", "what was seen")], "checks"
    )
    for left_out in found["not_evaluated"]:
        typer.echo(f"not looked for: {left_out}")
    low, high = found["interval"]
    why = {
        "holds": "no sign that the figure is too high",
        "masked": "a check failed, so the figure is not to be believed",
        "inconclusive": f"right on {found['num_correct']} images, and fewer than {FEWEST} tell nothing;"
        " use more --images",
    }[found["verdict"]]
    typer.echo(
        f"{found['classifier']} at {found['budget']}, {found['images']} images of {found['data']}:"
        f" clean {found['clean_accuracy']:.2%}, robust {found['robust_accuracy']:.2%} ({low:.2%} to {high:.2%});"
        f" verdict: {found['verdict']} ({why})"
    )
