"""Train a generator of perturbations against a classifier."""

from collections.abc import Callable

from gap.attacks.generator.train import TrainOptions, train_generator
from gap.cli.options import with_options
from gap.cli.run_training import Out, Overwrite, Resume, run_training

EXAMPLE = "gap train --classifier runs/mnist-cnn --data mnist --budget l2:2.4 --out runs/per-image"


@with_options(TrainOptions)
def train(read: Callable[..., TrainOptions], *, out: Out, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Train a generator of perturbations against a classifier.

    The perturbation is per image under a threshold (--budget), per image and made directly (--unbounded --target-norm),
    or one for all images (--universal --budget). Several classifiers, by repeating --classifier, are attacked together.
    """
    run_training("train", read, train_generator, out, resume, overwrite)
