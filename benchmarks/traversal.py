"""How often a walk towards a class is read as that class by a classifier that had no part in it.

    python benchmarks/traversal.py WALKER... --reader CLASSIFIER [--data mnist] [--images 200] [--budget l2:6]

Each of so many test images walks to every class that is not its own. The reader is a classifier of another seed or
architecture. Printed for each walker: the share of ends that the reader reads as the class walked to, with its 95%
Wilson interval, the share that the walker itself does, and the mean L2 distance from the start.
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
    *walkers, reader = task.classifiers
    budget = Budget.parse(arguments.budget)
    images, labels = next(task.data.test.batches([torch.arange(arguments.images)]))
    ways = [
        (index, target) for index in range(len(images)) for target in range(task.classes) if target != labels[index]
    ]
    starts, targets = images[[index for index, _ in ways]], torch.tensor([target for _, target in ways])
    for walker in walkers:
        ends = torch.cat(
            [
                traverse_images(walker, part, goals, budget=budget, steps=arguments.steps).pictures[-1]
                for part, goals in zip(starts.split(450), targets.split(450), strict=True)
            ]
        )
        with frozen(walker, reader), torch.no_grad():
            read, own = ((each(ends).argmax(dim=1) == targets) for each in (reader, walker))
        low, high = wilson(int(read.sum()), len(read))
        length = (ends - starts).flatten(1).norm(dim=1).mean()
        print(f"{walker.name}, {len(read)} walks within {budget}: mean L2 {length:.2f}, the class walked to is read")
        print(f"  by {reader.name} in {read.float().mean():.1%} ({low:.1%} to {high:.1%})")
        print(f"  by itself in {own.float().mean():.1%}", flush=True)


if __name__ == "__main__":
    main()
