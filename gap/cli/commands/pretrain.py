"""Train a standard classifier, so that there is something to attack."""

from collections.abc import Callable

from gap.classifiers.pretrain import PretrainOptions
from gap.classifiers.pretrain import pretrain as work
from gap.cli.options import with_options
from gap.cli.run_training import Out, Overwrite, Resume, run_training

EXAMPLE = "gap pretrain --classifier mnist-cnn --data mnist --out runs/mnist-cnn"


@with_options(PretrainOptions)
def pretrain(
    read: Callable[..., PretrainOptions], *, out: Out, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Train a standard classifier, so that there is something to attack."""
    run_training("pretrain", read, work, out, resume, overwrite)
