"""How well a separate classifier classifies images drawn to activate a class, without any prior.

    python benchmarks/features.py BACKBONE... --reader CLASSIFIER [--samples 8] [--budget l2:4]

For each backbone, `--samples` images of every class are drawn from noise as in `gap visualize`. The output is the class
score of `--reader` (its logit minus the mean of all logits), the probability, their 95% intervals over the images, and
the share of images that it classifies as the class.
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
    metric_network = load_classifier(arguments.reader)
    for name in arguments.backbones:
        backbone = load_classifier(name)
        features = [Feature(LOGITS, index) for index in range(backbone.spec.classes)]
        seeds = range(arguments.samples)
        drawings = torch.cat(
            [
                visualize_features(backbone, features, budget=arguments.budget, seed=seed, steps=arguments.steps)
                for seed in seeds
            ]
        )
        classes = torch.arange(backbone.spec.classes).repeat(arguments.samples)
        with frozen(metric_network, backbone), torch.no_grad():
            logits = metric_network(drawings)
            own_probabilities = _of_class(backbone(drawings).softmax(dim=1), classes)
        scores = _of_class(logits - logits.mean(dim=1, keepdim=True), classes)
        probabilities, accuracy = (
            _of_class(logits.softmax(dim=1), classes),
            (logits.argmax(dim=1) == classes).float().mean(),
        )
        print(
            f"{name}: {len(drawings)} images; {metric_network.name} gives the class a score of {_format_mean(scores)},"
        )
        print(f"  a probability of {_format_mean(probabilities)}, and predicts it in {accuracy:.1%}")
        print(f"  ({name} itself gives it {own_probabilities.mean():.3f})", flush=True)


def _of_class(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None]).squeeze(1)


def _format_mean(values: Tensor) -> str:
    return f"{values.mean():.3f} (plus or minus {1.96 * values.std() / len(values) ** 0.5:.3f})"


if __name__ == "__main__":
    main()
