"""Say how hard a classifier is: AutoAttack, and signs of hidden gradients."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any

import typer
from pydantic import Field

from gap.attacks.generator.train import IMAGES
from gap.classifiers.classifier import card_of
from gap.classifiers.task import DataOptions, load_setting, warn_if_chance
from gap.cli.options import Json, with_options
from gap.core.artifact import note_in_card
from gap.core.errors import GapError
from gap.core.files import check_writable, write_json
from gap.core.process import Stopped
from gap.evaluation.adaptive import adaptive_attacks
from gap.evaluation.benchmark import check_entrants, find_entrants, make_attack
from gap.evaluation.robustness import FEWEST
from gap.evaluation.robustness import judge as work
from gap.report.tables import Column, print_table
from gap.threat import Budget
from gap.training.callbacks import Terminal
from gap.training.runtime import MachineOptions, make_accelerator

EXAMPLE = "gap judge runs/hard --data mnist --budget linf:0.3 --images 1000 --json judged.json"


class JudgeOptions(MachineOptions, DataOptions):
    """Options of `gap judge`."""

    classifier: str = Field(description="the classifier to judge", json_schema_extra={"positional": True})
    budget: Annotated[str, Field(description="the perturbations to withstand, linf:8/255 or l2:2.0")]
    architecture: Annotated[
        str | None,
        Field(
            description="the network whose weights the classifier, a file, holds; the same as ARCHITECTURE@FILE for it"
        ),
    ] = None
    twin: Annotated[str | None, Field(description="a classifier trained without hardening, to try transfer from")] = (
        None
    )
    attack: list[str] = Field(
        default_factory=list,
        description="one more attack, repeatable: what gap train left, or one of `gap attacks`, as pgd:restarts=5",
    )
    adaptive: Annotated[
        int | None,
        Field(
            ge=0,
            description="training images that a generator and a universal perturbation learn from, to attack it;"
            f" {IMAGES:,} where not told, none with 0 or --fast",
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
    names = [name, *([options.twin] if options.twin else [])]
    setting = load_setting(names, options, accelerator.device)
    classifier, twin = setting.classifiers[0], setting.classifiers[1] if options.twin else None
    budget.check(classifier.facts.channels, *classifier.facts.size)
    warn_if_chance(classifier, setting.data.trial_split, accelerator.device, setting.data.name)
    entrants = find_entrants(options.attack)
    check_entrants(entrants, replace(setting, classifiers=[classifier]))
    others, adaptive = (
        [
            make_attack(entrant, budget, classifier, setting, options.seed)
            for entrant in entrants
            if entrant.learns_against(classifier) == learns
        ]
        for learns in (False, True)
    )
    images = options.adaptive if options.adaptive is not None else 0 if options.fast else IMAGES
    made = adaptive_attacks(classifier, setting, budget, images, options, Terminal) if images else ()
    try:
        found = work(
            classifier,
            setting.data.test,
            budget,
            images=options.images,
            fast=options.fast,
            twin=twin,
            others=others,
            adaptive=chain(adaptive, made),
            batch_size=options.batch_size,
            seed=options.seed,
            data=setting.data.name,
            tell=lambda name, accuracy: typer.echo(f"{name}: {accuracy:.2%} left", err=True),
        )
    except Stopped as stopped:
        typer.echo("gap: stopped while an attacker learned; nothing is judged", err=True)
        raise typer.Exit(stopped.code) from None
    try:
        if json:
            write_json(json, found)
        if folder := card_of(classifier):
            suite = "fast" if options.fast else "standard"
            note_in_card(folder, f"judged at {budget}, {suite}, {found['images']} images of {setting.data.name}", found)
    finally:
        _show(found)
    if strict and found["verdict"] != "holds":
        raise typer.Exit(1)


def _show(found: dict[str, Any]) -> None:
    attacks = [{"attack": name, "left": f"{value:.2%}"} for name, value in found["attacks"].items()]
    print_table(attacks, [Column("attack", "attack"), Column("left", "accuracy left")], "attacks")
    rows = [check | {"passed": "yes" if check["passed"] else "NO"} for check in found["gate"]]
    print_table(
        rows, [Column("check", "check"), Column("passed", "passed"), Column("evidence", "what was seen")], "gate"
    )
    for left_out in found["unchecked"]:
        typer.echo(f"not looked for: {left_out}")
    low, high = found["interval"]
    why = {
        "holds": "no sign that the figure is too high",
        "masked": "a check failed, so the figure is not to be believed",
        "inconclusive": f"right on {found['right']} images, and fewer than {FEWEST} tell nothing; use more --images",
    }[found["verdict"]]
    typer.echo(
        f"{found['classifier']} at {found['budget']}, {found['images']} images of {found['data']}:"
        f" clean {found['clean_accuracy']:.2%}, robust {found['robust_accuracy']:.2%} ({low:.2%} to {high:.2%});"
        f" verdict: {found['verdict']} ({why})"
    )
