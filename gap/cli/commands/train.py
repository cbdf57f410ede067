"""Train a generator of perturbations against a classifier."""

from collections.abc import Callable

from gap.attacks.generator.options import TrainOptions
from gap.cli.options import Out, Overwrite, Resume, with_options

EXAMPLE = "gap train --classifier runs/mnist-cnn --data mnist --budget l2:2.4 --out runs/per-image"


@with_options(TrainOptions)
def train(read: Callable[..., TrainOptions], *, out: Out, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Train a generator of perturbations against a classifier.

    Perturbations are computed for each image within a bound (--budget) or with a mean norm (--unbounded --target-norm),
    or there is one perturbation for all images (--universal --budget). Repeat --classifier to attack an ensemble.
    """
    from gap.attacks.generator.train import train_from_options
    from gap.cli.run_training import run_training

    run_training("train", read, train_from_options, out, resume, overwrite)
