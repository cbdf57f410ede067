"""What each recipe of hardening costs and how hard it gets, from what `gap harden` and `gap judge` left.

    gap harden mnist-cnn --data mnist --budget linf:0.3 --epochs 4 --no-watch --attack pgd --steps 7 --out runs/pgd-7
    gap judge runs/pgd-7 --data mnist --budget linf:0.3 --images 500 --fast --attack pgd:steps=50,restarts=5
    python benchmarks/hardening.py runs/pgd-7 runs/generator-start-2 ... --out robustness-against-cost.png

Each folder is one recipe, judged once. Passes are forward-and-backwards of the classifier for each image of an epoch:
those of the attacks, and one to learn from them. What is robust withstands AutoAttack and every PGD. Seconds are
reckoned from the median speed that training logged, so a pause does not count. Rows that train on the same attack are
one curve of the plot.
"""

import argparse
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gap.artefact import open_artefact
from gap.report.plots import accuracy_curves


@dataclass
class Recipe:
    """One hardened classifier: what it was trained against, what that cost, what `gap judge` found."""

    attack: str
    steps: str
    passes: float
    seconds: float
    epochs: float
    judged: dict[str, Any]

    @property
    def point(self) -> tuple[float, float, float, float]:
        return self.passes, self.judged["robust_accuracy"], *self.judged["interval"]


def read(folder: Path) -> Recipe:
    card = open_artefact(folder, "classifier").card
    judged = [found for name, found in card.items() if name.startswith("judged at")]
    if len(judged) != 1:
        raise SystemExit(f"{folder} was judged at {len(judged)} budgets; it takes one, by gap judge")
    mix, steps, options = card["hardened"]["mix"], card["hardened"]["steps"], card["options"]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speed = statistics.median(line["images_per_second"] for line in logged)
    return Recipe(
        attack=" and ".join(mix),
        steps=", ".join(str(steps[name]) for name in mix),
        passes=1 + (1 - options["clean"]) * sum(share * passes(name, steps[name]) for name, share in mix.items()),
        seconds=options["epochs"] * card["data"]["images"]["train"] / speed,
        epochs=options["epochs"],
        judged=judged[0],
    )


def passes(attack: str, steps: int) -> int:
    """What an attack costs beside the pass that the classifier learns by."""
    return steps + {"generator-gradient": 1, "trades": 1}.get(attack, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="where to draw accuracy against passes, a PNG")
    arguments = parser.parse_args()
    recipes = sorted(map(read, arguments.folders), key=lambda recipe: (recipe.passes, recipe.attack))
    print("| trained against | steps | epochs | passes | seconds | clean | PGD | robust | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    curves = defaultdict(list)
    for each in recipes:
        _, robust, low, high = each.point
        attacks = each.judged["attacks"].items()
        given = [value for name, value in attacks if name.startswith("pgd") and " on " not in name]
        print(
            f"| {each.attack} | {each.steps} | {each.epochs:g} | {each.passes:g} | {each.seconds:.0f}"
            f" | {each.judged['clean_accuracy']:.1%} | {min(given):.1%} | {robust:.1%} ({low:.1%} to {high:.1%})"
            f" | {each.judged['verdict']} |"
        )
        curves[each.attack].append(each.point)
    if arguments.out:
        budget = recipes[0].judged["budget"]
        plot = accuracy_curves(
            curves, f"Robust accuracy within {budget}", "gradient passes of the classifier for each image of an epoch"
        )
        arguments.out.write_bytes(plot)


if __name__ == "__main__":
    main()
