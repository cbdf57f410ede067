"""How well a classifier that had no part in it reads pictures drawn to excite a class, without any prior.

    python benchmarks/features.py BACKBONE... --reader CLASSIFIER [--samples 8] [--budget l2:4]

For each backbone, `--samples` pictures of every class are drawn from noise as `gap visualize` draws them. Printed: the
class score that the reader gives to the class drawn (its logit, less the mean of all logits), the probability, their
95% intervals over the pictures, and how often it reads that class.
"""

import argparse

import torch
from gap.models.feature_extractor import LOGITS
from torch import Tensor

from gap.classifiers.classifier import load_classifier
from gap.core.frozen import frozen
from gap.imagery.feature_visualization import Feature, visualize_features
from gap.threat import Budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--reader", required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--budget", type=Budget.parse)
    arguments = parser.parse_args()
    reader = load_classifier(arguments.reader)
    for name in arguments.backbones:
        backbone = load_classifier(name)
        features = [Feature(LOGITS, index) for index in range(backbone.spec.classes)]
        seeds = range(arguments.samples)
        drawn = torch.cat(
            [
                visualize_features(backbone, features, budget=arguments.budget, seed=seed, steps=arguments.steps)
                for seed in seeds
            ]
        )
        classes = torch.arange(backbone.spec.classes).repeat(arguments.samples)
        with frozen(reader, backbone), torch.no_grad():
            logits = reader(drawn)
            own = _of_class(backbone(drawn).softmax(dim=1), classes)
        scores = _of_class(logits - logits.mean(dim=1, keepdim=True), classes)
        shares, right = _of_class(logits.softmax(dim=1), classes), (logits.argmax(dim=1) == classes).float().mean()
        print(f"{name}: {len(drawn)} pictures; {reader.name} gives the class a score of {_told(scores)},")
        print(f"  a probability of {_told(shares)}, and reads it in {right:.1%}")
        print(f"  ({name} itself gives it {own.mean():.3f})", flush=True)


def _of_class(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None]).squeeze(1)


def _told(values: Tensor) -> str:
    return f"{values.mean():.3f} (give or take {1.96 * values.std() / len(values) ** 0.5:.3f})"


if __name__ == "__main__":
    main()
