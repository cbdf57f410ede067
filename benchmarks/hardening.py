"""The cost and the robust accuracy of recipes of hardening, from folders of `gap harden` and `gap judge`.

    gap harden mnist-cnn --data mnist --budget linf:0.3 --epochs 4 --no-recover --attack pgd --steps 7 --out runs/pgd-7
    gap judge runs/pgd-7 --data mnist --budget linf:0.3 --images 500 --fast --attack pgd:steps=50,restarts=5
    python benchmarks/hardening.py runs/pgd-7 runs/generator-start-2 ... --out robustness-against-cost.png

Each folder is one run with one evaluation by `gap judge`. Runs with the same options except `--seed`, and the same
settings of the evaluation, are one recipe, which is summarized by the median and the range. Robust accuracy, under
AutoAttack and every PGD, has its interval; for several runs it is the hull of theirs. Passes are forward and backward
passes of the classifier for each image of an epoch: those of the attacks, and one for the training step. Seconds are
those of all steps, by the median of steps of every recipe that this script runs in turns. Recipes with the same attack
are one curve of the plot.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gap.classifiers.classifier import load_classifier
from gap.classifiers.memory_format import use_channels_last
from gap.classifiers.task import load_task
from gap.core.artifact import open_artifact
from gap.hardening.inner_attacks import parse_inner_attack
from gap.hardening.options import HardenOptions
from gap.hardening.train import make_training
from gap.report.plots import accuracy_curves
from gap.training.runtime import make_accelerator

Step = Callable[[Tensor, Tensor], object]


@dataclass
class Recipe:
    """A recipe of hardening: its training attacks, its cost, and the evaluation of each of its runs."""

    options: HardenOptions
    mix: dict[str, float]
    steps: str
    passes: float
    training_steps: float
    evaluations: list[dict[str, Any]]

    def summary(self, metric: Callable[[dict[str, Any]], float]) -> tuple[float, float, float]:
        """The median, the minimum and the maximum of a metric."""
        values = [metric(evaluation) for evaluation in self.evaluations]
        return statistics.median(values), min(values), max(values)

    @property
    def robust(self) -> tuple[float, float, float]:
        """The median of the robust accuracies of the runs, and the bounds of the hull of their intervals."""
        lows, highs = zip(*(evaluation["interval"] for evaluation in self.evaluations), strict=True)
        return (
            statistics.median(evaluation["robust_accuracy"] for evaluation in self.evaluations),
            min(lows),
            max(highs),
        )


def load_recipes(folders: list[Path]) -> list[Recipe]:
    """The recipes of these runs, in order of cost."""
    recipes: dict[str, Recipe] = {}
    runs = set()
    for recipe in map(load_recipe, folders):
        setting = [recipe.evaluations[0][key] for key in ("budget", "data", "images", "autoattack")]
        key = f"{recipe.options.model_dump_json(exclude={'seed'})} {setting}"
        if (key, recipe.options.seed) in runs:
            raise SystemExit(f"{' and '.join(recipe.mix)} with seed {recipe.options.seed} is there twice")
        runs.add((key, recipe.options.seed))
        if recipes.setdefault(key, recipe) is not recipe:
            recipes[key].evaluations += recipe.evaluations
    return sorted(recipes.values(), key=lambda recipe: (recipe.passes, list(recipe.mix)))


def load_recipe(folder: Path) -> Recipe:
    card = open_artifact(folder, "classifier").card
    evaluations = card.get("robustness_evaluations", [])
    if len(evaluations) != 1:
        raise SystemExit(f"{folder} was judged {len(evaluations)} times; it takes one, by gap judge")
    if card["adversarial_training"]["recoveries"]:
        raise SystemExit(f"{folder} took more steps after a collapse; what it cost is not known: use --no-recover")
    mix, steps = card["adversarial_training"]["attacks"], card["adversarial_training"]["steps"]
    options = HardenOptions.read(card["options"])
    attacks = sum(share * passes(name, steps[name]) for name, share in mix.items())
    return Recipe(
        options=options,
        mix=mix,
        steps=", ".join(str(steps[name]) for name in mix),
        passes=1 + (1 - options.clean_fraction) * attacks,
        training_steps=options.epochs * card["data"]["images"]["train"] / options.batch_size,
        evaluations=evaluations,
    )


def strongest_pgd(evaluation: dict[str, Any]) -> float:
    """The lowest accuracy under any PGD of an evaluation."""
    attacks = evaluation["attacks"].items()
    return min(value for name, value in attacks if name.startswith("pgd") and " on " not in name)


def format_range(median: float, low: float, high: float) -> str:
    return f"{median:.1%}" if low == high else f"{median:.1%} ({low:.1%} to {high:.1%})"


def passes(attack: str, steps: int) -> int:
    """The passes of an attack, without that of the training step."""
    return steps + {"generator-gradient": 1, "trades": 1, "trades-start": 1}.get(parse_inner_attack(attack).kind, 0)


def time_steps(recipes: list[Recipe], data_root: Path | None, turn: int, rounds: int) -> list[float]:
    """Seconds of one training step of each recipe, the median over the rounds."""
    settings = {(recipe.options.classifier, recipe.options.data, recipe.options.batch_size) for recipe in recipes}
    if len(settings) > 1:
        raise SystemExit("recipes are compared on one classifier, one data set and one batch size")
    first = recipes[0].options.model_copy(update={"data_root": data_root})
    machine = make_accelerator(first)
    split = load_task([first.classifier], first).data.train

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from split.batches(torch.randperm(len(split)).split(first.batch_size), torch.device("cpu"))

    batch_iterator, steps = batches(), [make_step(recipe.options) for recipe in recipes]
    seconds: list[list[float]] = [[] for _ in steps]
    for round_index in range(rounds + 1):
        for step, timings in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(turn):
                with machine.autocast():
                    step(*next(batch_iterator))
            if round_index:  # the first round is a warmup
                timings.append((time.perf_counter() - start) / turn)
    return [statistics.median(timings) for timings in seconds]


def make_step(options: HardenOptions) -> Step:
    """A training step with these options, of a classifier with new weights."""
    torch.manual_seed(0)
    classifier = load_classifier(options.classifier)
    use_channels_last(classifier)
    training = make_training(options, classifier, steps=10_000)
    for module in training.modules.values():
        module.network.train()
    return lambda images, labels: training.training_step(images, labels, torch.Tensor.backward)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="file for a plot of accuracy against seconds, .png")
    parser.add_argument("--data-root", type=Path, default=None, help="folder of the data")
    parser.add_argument("--turn", type=int, default=12, help="training steps in a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each recipe")
    arguments = parser.parse_args()
    recipes = load_recipes(arguments.folders)
    print("| trained against | steps | epochs | seeds | passes | seconds | clean | PGD | robust | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    curves = defaultdict(list)
    speeds = time_steps(recipes, arguments.data_root, arguments.turn, arguments.rounds)
    for recipe, speed in zip(recipes, speeds, strict=True):
        seconds = recipe.training_steps * speed
        summaries = (
            recipe.summary(lambda evaluation: evaluation["clean_accuracy"]),
            recipe.summary(strongest_pgd),
            recipe.robust,
        )
        print(
            f"| {' and '.join(recipe.mix)} | {recipe.steps} | {recipe.options.epochs:g} | {len(recipe.evaluations)}"
            f" | {recipe.passes:g} | {seconds:.0f} | {' | '.join(format_range(*summary) for summary in summaries)}"
            f" | {', '.join(sorted({evaluation['verdict'] for evaluation in recipe.evaluations}))} |"
        )
        kinds = " and ".join(parse_inner_attack(name).kind for name in recipe.mix)
        curves[kinds].append((seconds, *recipe.robust))
    if arguments.out:
        budget = recipes[0].evaluations[0]["budget"]
        plot = accuracy_curves(curves, f"Robust accuracy within {budget}", "seconds of training")
        arguments.out.write_bytes(plot)


if __name__ == "__main__":
    main()
