"""Seconds of PGD, compared with foolbox and torchattacks at an equal number of gradients.

    python benchmarks/pgd.py [--classifier mnist-cnn] [--data mnist-5k] [--budget linf:0.1] [--steps 10] [--rounds 7]

`gap` is the textbook form, in which every image takes every step. `gap, early stop` is the default, in which images are
finished once they are misclassified, and the result is the best iterate. All attack the same network in eval mode with
frozen weights, on the same images, in float32. The variants alternate; medians and ratios are printed.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import foolbox
import torch
from torch import Tensor, nn

from gap.attacks.gradient import PGD
from gap.classifiers.options import DataOptions
from gap.classifiers.task import load_task
from gap.core.frozen import frozen
from gap.threat import Budget

Attack = Callable[[Tensor, Tensor], Tensor]


def with_foolbox(classifier: nn.Module, budget: Budget, steps: int) -> Attack:
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[budget.norm.name]
    attack = kind(steps=steps, rel_stepsize=2.5 / steps, random_start=True)
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    return lambda images, labels: attack.run(model, images, labels, epsilon=budget.epsilon)


def with_torchattacks(classifier: nn.Module, budget: Budget, steps: int) -> Attack:
    import torchattacks

    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[budget.norm.name]
    size = 2.5 * budget.epsilon / steps
    attack: Attack = kind(classifier, eps=budget.epsilon, alpha=size, steps=steps, random_start=True)
    return attack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", default="mnist-cnn")
    parser.add_argument("--data", default="mnist-5k")
    parser.add_argument("--budget", default="linf:0.1")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    task = load_task([arguments.classifier], DataOptions(data=arguments.data))
    classifier, budget = task.classifiers[0], Budget.parse(arguments.budget)
    images, labels = next(iter(task.data.test.batches([torch.arange(arguments.images)])))
    size = 2.5 * budget.epsilon / arguments.steps
    textbook = PGD(budget, steps=arguments.steps, step_size=size, step_schedule="constant", early_stop=False)
    default = PGD(budget, steps=arguments.steps, step_size=size)
    variants: dict[str, Attack] = {
        "gap": lambda images, labels: textbook(classifier, images, labels),
        "gap, early stop": lambda images, labels: default(classifier, images, labels),
        "foolbox": with_foolbox(classifier, budget, arguments.steps),
    }
    if importlib.util.find_spec("torchattacks"):
        variants["torchattacks"] = with_torchattacks(classifier, budget, arguments.steps)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    accuracy: dict[str, float] = {}
    with frozen(classifier):
        for turn in range(arguments.rounds + 1):
            for name, attack in variants.items():
                start = time.perf_counter()
                adversarial = attack(images.clone(), labels)
                if turn:  # the first round is a warmup
                    seconds[name].append(time.perf_counter() - start)
                accuracy[name] = (classifier(adversarial).argmax(dim=1) == labels).float().mean().item()
    for name, timings in seconds.items():
        ratios = [peer / gap for peer, gap in zip(timings, seconds["gap"], strict=True)]
        print(
            f"{name:16} {statistics.median(timings) * 1000:7.1f} ms, {statistics.median(ratios):.2f} times gap's"
            f" ({min(ratios):.2f} to {max(ratios):.2f}), accuracy {accuracy[name]:.1%}"
        )


if __name__ == "__main__":
    main()
