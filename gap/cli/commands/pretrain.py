"""Train a classifier with standard training."""

from collections.abc import Callable

from gap.classifiers.options import PretrainOptions
from gap.cli.options import Out, Overwrite, Resume, with_options

EXAMPLE = "gap pretrain --classifier mnist-cnn --data mnist --out runs/mnist-cnn"


@with_options(PretrainOptions)
def pretrain(
    read: Callable[..., PretrainOptions], *, out: Out, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Train a classifier with standard training."""
    from gap.classifiers.pretrain import pretrain_from_options as work
    from gap.cli.run_training import run_training

    run_training("pretrain", read, work, out, resume, overwrite)
