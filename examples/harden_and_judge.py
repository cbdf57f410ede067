"""Shows how to harden a classifier against PGD and a jointly trained generator, and how to judge it."""

import argparse

import torch

import gap

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--train-images", type=int, default=2500)
parser.add_argument("--test-images", type=int, default=60)
arguments = parser.parse_args()

digits = gap.load_data("mnist-5k")
train = next(digits.train.batches([torch.arange(arguments.train_images)]))  # images in [0, 1] and labels
test = next(digits.test.batches([torch.arange(arguments.test_images)]))

standard = gap.pretrain("mnist-cnn", train, epochs=arguments.epochs)
hardened = gap.harden(
    standard.classifier, train, "linf:0.1", attacks=["generator-start=0.5", "pgd=0.5"], epochs=arguments.epochs
)
hardened.save("runs/hardened")

for name, classifier in (("standard", standard.classifier), ("hardened", hardened.classifier)):
    row = gap.evaluate("pgd", classifier, test, "linf:0.1").rows[0]
    print(f"{name}: clean {row['clean_accuracy']:.1%}, under PGD {row['accuracy_under_attack']:.1%}")

# `fast` runs the two gradient attacks of AutoAttack; leave it out for a figure to publish, and take more images.
report = gap.judge(gap.load_classifier("runs/hardened"), test, "linf:0.1", images=arguments.test_images, fast=True)
low, high = report.interval
print(f"robust accuracy {report.robust_accuracy:.1%} ({low:.1%} to {high:.1%})")
print(f"verdict: {report.verdict} ({report.reason})")
