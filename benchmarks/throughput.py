"""Images a second of `gap train` beside a straightforward loop over the same networks, in one run.

    python benchmarks/throughput.py --classifier runs/mnist-cnn --data-root DATA [--seconds 15] [--rounds 3]

The straightforward loop is what most public code of this field does: pictures through a DataLoader with workers,
float32, contiguous, a classifier in eval mode whose weights still collect gradients; `plain-frozen` is the same with
those gradients off. Each takes its turn in a process of its own; medians, ratios and peak memory are printed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from accelerate.utils import set_seed
from gap.models.generators import make_generator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from gap.attacks.generator.options import TrainOptions
from gap.attacks.generator.train import make_training
from gap.attacks.losses import Criterion, margin
from gap.classifiers.task import load_task
from gap.core.frozen import frozen
from gap.threat import Budget
from gap.training.runtime import make_accelerator

BATCH, BUDGET = 128, "l2:2.4"
CONTESTANTS = ("plain", "plain-frozen", "gap")


class Pictures(Dataset[tuple[Tensor, int]]):
    """Single pictures, decoded and converted one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.numpy(), labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_tensor(Image.fromarray(self.images[index, 0])), self.labels[index]


def plain_steps(arguments: argparse.Namespace, freeze: bool) -> Generator[int, None, None]:
    """The straightforward loop; yields the images of each step."""
    task = load_task([arguments.classifier], options(arguments))
    classifier: nn.Module = task.classifiers[0].to(memory_format=torch.contiguous_format).eval()
    classifier.requires_grad_(not freeze)
    generator = make_generator(1, **options(arguments).generator.to_dict())
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
    split, budget = task.data.train, Budget.parse(BUDGET)
    loader = DataLoader(Pictures(split.images, split.labels), BATCH, shuffle=True, num_workers=2, drop_last=True)
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            margin(classifier(budget.apply(images, generator(images))), None, Criterion(labels)).mean().backward()
            optimizer.step()
            yield len(images)


def gap_steps(arguments: argparse.Namespace) -> Generator[int, None, None]:
    """The product's own training, split and machine settings."""
    accelerator = make_accelerator(options(arguments))
    task = load_task([arguments.classifier], options(arguments), accelerator.device)
    split = task.data.train
    with frozen(*task.classifiers):
        training = make_training(options(arguments), task, steps=1)
        while True:
            for images, labels in split.batches(torch.randperm(len(split)).split(BATCH), accelerator.device):
                with accelerator.autocast():
                    training.training_step(images, labels, accelerator.backward)
                yield len(images)


def options(arguments: argparse.Namespace) -> TrainOptions:
    """The options of `gap train` for this network and data."""
    return TrainOptions.read(
        {"classifier": [arguments.classifier], "data": "mnist", "data_root": arguments.data_root, "budget": BUDGET}
    )


def measure_one(arguments: argparse.Namespace) -> dict[str, float]:
    """Images a second after a warm-up, and the peak memory of this process and its workers in MiB."""
    set_seed(0)
    contestants: dict[str, Callable[[], Generator[int, None, None]]] = {
        "plain": lambda: plain_steps(arguments, freeze=False),
        "plain-frozen": lambda: plain_steps(arguments, freeze=True),
        "gap": lambda: gap_steps(arguments),
    }
    steps = contestants[arguments.one]()
    for _ in range(5):
        next(steps)
    images, started = 0, time.perf_counter()
    while time.perf_counter() - started < arguments.seconds:
        images += next(steps)
    rate = images / (time.perf_counter() - started)
    steps.close()
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "images_per_second": rate,
        "MiB": own.ru_maxrss / 1024,
        "MiB of the largest worker": workers.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", required=True, help="a folder that gap pretrain left, on MNIST")
    parser.add_argument("--data-root", type=Path, default=None, help="where MNIST lives")
    parser.add_argument("--seconds", type=float, default=15.0, help="measured for each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_one(arguments)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(arguments.rounds):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(output.splitlines()[-1]))
            print(name, found[name][-1], flush=True)
    rates = {name: [each["images_per_second"] for each in found[name]] for name in CONTESTANTS}
    for name in CONTESTANTS[:-1]:
        ratios = [ours / theirs for ours, theirs in zip(rates["gap"], rates[name], strict=True)]
        print(f"gap / {name}: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    for name in CONTESTANTS:
        print(f"{name}: median {statistics.median(rates[name]):.0f} images/s")


if __name__ == "__main__":
    main()
