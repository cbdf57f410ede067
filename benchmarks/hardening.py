"""What each recipe of hardening costs and how hard it gets, from what `gap harden` and `gap judge` left.

    gap harden mnist-cnn --data mnist --budget linf:0.3 --epochs 4 --no-recover --attack pgd --steps 7 --out runs/pgd-7
    gap judge runs/pgd-7 --data mnist --budget linf:0.3 --images 500 --fast --attack pgd:steps=50,restarts=5
    python benchmarks/hardening.py runs/pgd-7 runs/generator-start-2 ... --out robustness-against-cost.png

Each folder is one run, judged once; runs that differ in nothing but `--seed`, and were judged alike, are one recipe,
told by its median and its range. What is robust, which is what withstands AutoAttack and every PGD, is told with its
interval, of several runs the hull of theirs. Passes are forward-and-backwards of the classifier for each image of an
epoch: those of the attacks, and one to learn from them. Seconds are those of all steps, from steps of every recipe that
are taken here anew, in turns; medians. Recipes that train on the same attack are one curve of the plot.
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
    """A way to harden: what it trains against, what that costs, what `gap judge` found in each run of it."""

    options: HardenOptions
    mix: dict[str, float]
    steps: str
    passes: float
    training_steps: float
    judged: list[dict[str, Any]]

    def told(self, figure: Callable[[dict[str, Any]], float]) -> tuple[float, float, float]:
        """The median of a figure, its least and its most."""
        values = [figure(found) for found in self.judged]
        return statistics.median(values), min(values), max(values)

    @property
    def robust(self) -> tuple[float, float, float]:
        """The median of the runs' robust accuracies, and the least and the most that their intervals reach."""
        lows, highs = zip(*(found["interval"] for found in self.judged), strict=True)
        return statistics.median(found["robust_accuracy"] for found in self.judged), min(lows), max(highs)


def gather(folders: list[Path]) -> list[Recipe]:
    """The recipes of these runs, the cheapest first."""
    recipes: dict[str, Recipe] = {}
    seen = set()
    for recipe in map(read, folders):
        told = [recipe.judged[0][key] for key in ("budget", "data", "images", "autoattack")]
        same = f"{recipe.options.model_dump_json(exclude={'seed'})} {told}"
        if (same, recipe.options.seed) in seen:
            raise SystemExit(f"{' and '.join(recipe.mix)} with seed {recipe.options.seed} is there twice")
        seen.add((same, recipe.options.seed))
        if recipes.setdefault(same, recipe) is not recipe:
            recipes[same].judged += recipe.judged
    return sorted(recipes.values(), key=lambda recipe: (recipe.passes, list(recipe.mix)))


def read(folder: Path) -> Recipe:
    card = open_artifact(folder, "classifier").card
    judged = card.get("robustness_evaluations", [])
    if len(judged) != 1:
        raise SystemExit(f"{folder} was judged {len(judged)} times; it takes one, by gap judge")
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
        judged=judged,
    )


def strongest_pgd(judged: dict[str, Any]) -> float:
    """What the strongest of the PGDs that a judgment was given leaves."""
    attacks = judged["attacks"].items()
    return min(value for name, value in attacks if name.startswith("pgd") and " on " not in name)


def written(median: float, low: float, high: float) -> str:
    return f"{median:.1%}" if low == high else f"{median:.1%} ({low:.1%} to {high:.1%})"


def passes(attack: str, steps: int) -> int:
    """What an attack costs beside the pass that the classifier learns by."""
    return steps + {"generator-gradient": 1, "trades": 1, "trades-start": 1}.get(parse_inner_attack(attack).kind, 0)


def time_steps(recipes: list[Recipe], data_root: Path | None, turn: int, rounds: int) -> list[float]:
    """Seconds of one training step of each recipe, the median over the rounds."""
    alike = {(each.options.classifier, each.options.data, each.options.batch_size) for each in recipes}
    if len(alike) > 1:
        raise SystemExit("recipes are compared on one classifier, one data set and one batch size")
    first = recipes[0].options.model_copy(update={"data_root": data_root})
    machine = make_accelerator(first)
    split = load_task([first.classifier], first).data.train

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from split.batches(torch.randperm(len(split)).split(first.batch_size), torch.device("cpu"))

    given, steps = batches(), [make_step(recipe.options) for recipe in recipes]
    seconds: list[list[float]] = [[] for _ in steps]
    for round_ in range(rounds + 1):
        for step, taken in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            for _ in range(turn):
                with machine.autocast():
                    step(*next(given))
            if round_:  # the first one warms up
                taken.append((time.perf_counter() - started) / turn)
    return [statistics.median(taken) for taken in seconds]


def make_step(options: HardenOptions) -> Step:
    """A step of that hardening, of a classifier with fresh weights."""
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
    parser.add_argument("--out", type=Path, default=None, help="where to draw accuracy against seconds, a PNG")
    parser.add_argument("--data-root", type=Path, default=None, help="where the data lives")
    parser.add_argument("--turn", type=int, default=12, help="training steps in a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each")
    arguments = parser.parse_args()
    recipes = gather(arguments.folders)
    print("| trained against | steps | epochs | seeds | passes | seconds | clean | PGD | robust | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    curves = defaultdict(list)
    speeds = time_steps(recipes, arguments.data_root, arguments.turn, arguments.rounds)
    for each, speed in zip(recipes, speeds, strict=True):
        seconds = each.training_steps * speed
        figures = each.told(lambda found: found["clean_accuracy"]), each.told(strongest_pgd), each.robust
        print(
            f"| {' and '.join(each.mix)} | {each.steps} | {each.options.epochs:g} | {len(each.judged)}"
            f" | {each.passes:g} | {seconds:.0f} | {' | '.join(written(*figure) for figure in figures)}"
            f" | {', '.join(sorted({found['verdict'] for found in each.judged}))} |"
        )
        kinds = " and ".join(parse_inner_attack(name).kind for name in each.mix)
        curves[kinds].append((seconds, *each.robust))
    if arguments.out:
        budget = recipes[0].judged[0]["budget"]
        plot = accuracy_curves(curves, f"Robust accuracy within {budget}", "seconds of training")
        arguments.out.write_bytes(plot)


if __name__ == "__main__":
    main()
