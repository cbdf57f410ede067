"""How often the result of a class traversal is classified as the target class by another classifier.

    python benchmarks/traversal.py WALKER... --reader CLASSIFIER [--data mnist] [--images 200] [--budget l2:6]

Each of `--images` test images is moved to every class that is not its own. `--reader` is a classifier with another
seed or architecture. The output for each WALKER is the share of final images that the reader classifies as the target,
with its 95% Wilson interval, the share that the walker itself classifies so, and the mean L2 distance.
"""

import argparse
from pathlib import Path

import torch

from gap.classifiers.options import DataOptions
from gap.classifiers.task import load_task
from gap.core.frozen import frozen
from gap.evaluation.interval import wilson
from gap.imagery.traversal import traverse_images
from gap.threat import Budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("walkers", nargs="+")
    parser.add_argument("--reader", required=True)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--budget", default="l2:6")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    options = DataOptions.read({"data": arguments.data, "data_root": arguments.data_root})
    task = load_task([*arguments.walkers, arguments.reader], options)
    *classifiers, metric_network = task.classifiers
    budget = Budget.parse(arguments.budget)
    images, labels = next(task.data.test.batches([torch.arange(arguments.images)]))
    pairs = [
        (index, target) for index in range(len(images)) for target in range(task.classes) if target != labels[index]
    ]
    initial_images, targets = images[[index for index, _ in pairs]], torch.tensor([target for _, target in pairs])
    for classifier in classifiers:
        final_images = torch.cat(
            [
                traverse_images(classifier, part, part_targets, budget=budget, steps=arguments.steps).images[-1]
                for part, part_targets in zip(initial_images.split(450), targets.split(450), strict=True)
            ]
        )
        with frozen(classifier, metric_network), torch.no_grad():
            reached, reached_itself = (
                (network(final_images).argmax(dim=1) == targets) for network in (metric_network, classifier)
            )
        low, high = wilson(int(reached.sum()), len(reached))
        length = (final_images - initial_images).flatten(1).norm(dim=1).mean()
        print(f"{classifier.name}, {len(reached)} traversals within {budget}: mean L2 {length:.2f}, target predicted")
        print(f"  by {metric_network.name} in {reached.float().mean():.1%} ({low:.1%} to {high:.1%})")
        print(f"  by itself in {reached_itself.float().mean():.1%}", flush=True)


if __name__ == "__main__":
    main()
