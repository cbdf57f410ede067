"""Images per second of `gap train`, compared with a plain loop over the same networks.

    python benchmarks/throughput.py --classifier runs/mnist-cnn --data-root DATA [--seconds 15] [--rounds 3]

The plain loop is that of most public code of this field: a DataLoader with workers, float32, contiguous format, a
classifier in eval mode whose weights still collect gradients. `plain-frozen` is the same without these gradients. The
variants alternate, each in its own process. Medians, ratios and peak memory are printed.
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
VARIANTS = ("plain", "plain-frozen", "gap")


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images that are decoded and converted one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.numpy(), labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_tensor(Image.fromarray(self.images[index, 0])), self.labels[index]


def plain_steps(arguments: argparse.Namespace, freeze: bool) -> Generator[int, None, None]:
    """The plain loop; yields the number of images of each step."""
    task = load_task([arguments.classifier], options(arguments))
    classifier: nn.Module = task.classifiers[0].to(memory_format=torch.contiguous_format).eval()
    classifier.requires_grad_(not freeze)
    generator = make_generator(1, **options(arguments).generator.to_dict())
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
    split, budget = task.data.train, Budget.parse(BUDGET)
    loader = DataLoader(ImageDataset(split.images, split.labels), BATCH, shuffle=True, num_workers=2, drop_last=True)
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            margin(classifier(budget.apply(images, generator(images))), None, Criterion(labels)).mean().backward()
            optimizer.step()
            yield len(images)


def gap_steps(arguments: argparse.Namespace) -> Generator[int, None, None]:
    """The training of gap, with its own split and runtime settings; yields the number of images of each step."""
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
    """Images per second after a warmup, and the peak memory of this process and its workers in MiB."""
    set_seed(0)
    variants: dict[str, Callable[[], Generator[int, None, None]]] = {
        "plain": lambda: plain_steps(arguments, freeze=False),
        "plain-frozen": lambda: plain_steps(arguments, freeze=True),
        "gap": lambda: gap_steps(arguments),
    }
    steps = variants[arguments.one]()
    for _ in range(5):
        next(steps)
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < arguments.seconds:
        images += next(steps)
    rate = images / (time.perf_counter() - start)
    steps.close()
    process, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "images_per_second": rate,
        "MiB": process.ru_maxrss / 1024,
        "MiB of the largest worker": workers.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", required=True, help="a folder of gap pretrain, trained on MNIST")
    parser.add_argument("--data-root", type=Path, default=None, help="folder of MNIST")
    parser.add_argument("--seconds", type=float, default=15.0, help="duration of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each variant")
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_one(arguments)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name in VARIANTS:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
            print(name, results[name][-1], flush=True)
    rates = {name: [result["images_per_second"] for result in results[name]] for name in VARIANTS}
    for name in VARIANTS[:-1]:
        ratios = [gap / baseline for gap, baseline in zip(rates["gap"], rates[name], strict=True)]
        print(f"gap / {name}: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    for name in VARIANTS:
        print(f"{name}: median {statistics.median(rates[name]):.0f} images/s")


if __name__ == "__main__":
    main()
