"""Seconds per step of adversarial training, compared with the same recipe with the PGD of other libraries.

    python benchmarks/step_cost.py --data-root DATA [--classifier mnist-cnn] [--data mnist] [--steps 7] [--rounds 5]

The recipe is PGD from a random start in eval mode, then one AdamW step on the adversarial images. `foolbox` is a test
dependency, `torchattacks` is used if it is installed. All use bfloat16 if the processor supports it, the same memory
format and the same optimizer. The variants alternate in turns of `--turn` steps, and medians and ratios are printed.
`gap generator-start` shows the cost of a jointly trained generator.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import foolbox
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.classifiers.classifier import Classifier, load_classifier
from gap.classifiers.memory_format import use_channels_last
from gap.classifiers.task import load_task
from gap.hardening.options import HardenOptions
from gap.hardening.train import make_training
from gap.threat import Budget
from gap.training.runtime import make_accelerator

Step = Callable[[Tensor, Tensor], object]
Attack = Callable[[Tensor, Tensor], Tensor]


def gap_step(arguments: argparse.Namespace, attack: str) -> Step:
    """A step of the training of `gap harden`, including the average of the weights."""
    options = {
        "classifier": arguments.classifier,
        "budget": arguments.budget,
        "attack": [attack],
        "steps": arguments.steps,
    }
    training = make_training(HardenOptions.read(options), new_classifier(arguments), steps=10_000)
    for module in training.modules.values():
        module.network.train()
    return lambda images, labels: training.training_step(images, labels, torch.Tensor.backward)


def peer_step(arguments: argparse.Namespace, make: Callable[[nn.Module, Budget, int], Attack]) -> Step:
    """A step of a plain loop with the attack of another library."""
    classifier = new_classifier(arguments)
    attack = make(classifier, Budget.parse(arguments.budget), arguments.steps)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        classifier.eval()
        adversarial = attack(images, labels)
        classifier.train()
        optimizer.zero_grad()
        F.cross_entropy(classifier(adversarial), labels).backward()
        optimizer.step()

    return step


def with_foolbox(classifier: nn.Module, budget: Budget, steps: int) -> Attack:
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[budget.norm.name]
    attack = kind(steps=steps, rel_stepsize=1.25 / steps, random_start=True)
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    return lambda images, labels: attack.run(model, images, labels, epsilon=budget.epsilon)


def with_torchattacks(classifier: nn.Module, budget: Budget, steps: int) -> Attack:
    import torchattacks

    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[budget.norm.name]
    attack: Attack = kind(
        classifier, eps=budget.epsilon, alpha=1.25 * budget.epsilon / steps, steps=steps, random_start=True
    )
    return attack


def new_classifier(arguments: argparse.Namespace) -> Classifier:
    torch.manual_seed(0)
    classifier = load_classifier(arguments.classifier)
    use_channels_last(classifier)
    return classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", default="mnist-cnn")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-root", type=Path, default=None, help="folder of the data")
    parser.add_argument("--budget", default="linf:0.3")
    parser.add_argument("--steps", type=int, default=7, help="gradient steps of every attack")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--turn", type=int, default=20, help="training steps in a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant")
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    arguments = parser.parse_args()
    option_names = ("classifier", "budget", "data", "data_root", "precision")
    options = HardenOptions.read({name: getattr(arguments, name) for name in option_names})
    machine = make_accelerator(options)
    variants = {
        "gap": gap_step(arguments, "pgd"),
        "gap generator-start": gap_step(arguments, "generator-start"),
        "foolbox": peer_step(arguments, with_foolbox),
    }
    if importlib.util.find_spec("torchattacks"):
        variants["torchattacks"] = peer_step(arguments, with_torchattacks)
    split = load_task([arguments.classifier], options).data.train

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from split.batches(torch.randperm(len(split)).split(arguments.batch_size), torch.device("cpu"))

    batch_iterator = batches()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(arguments.rounds + 1):
        for name, step in variants.items():
            start = time.perf_counter()
            for _ in range(arguments.turn):
                with machine.autocast():
                    step(*next(batch_iterator))
            if turn:  # the first round is a warmup
                seconds[name].append((time.perf_counter() - start) / arguments.turn)
    print(f"precision: {machine.mixed_precision}")
    for name, timings in seconds.items():
        ratios = [peer / gap for peer, gap in zip(timings, seconds["gap"], strict=True)]
        print(
            f"{name:20} {statistics.median(timings) * 1000:7.1f} ms a step, {statistics.median(ratios):.2f} times gap's"
            f" (from {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
