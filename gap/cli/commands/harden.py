"""Train a classifier adversarially, against a mixture of attacks."""

from collections.abc import Callable

from gap.cli.options import Out, Overwrite, Resume, with_options
from gap.hardening.options import HardenOptions

EXAMPLE = "gap harden mnist-cnn --data mnist --budget linf:0.3 --attack generator-start --out runs/hard"


@with_options(HardenOptions)
def harden(
    read: Callable[..., HardenOptions], *, out: Out, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Train a classifier adversarially, against a mixture of attacks.

    The mixture is given by repeating --attack, with weights: --attack generator-start=0.3 --attack pgd=0.7. After each
    epoch a short PGD, which is not used in training, attacks validation images. The highest accuracy under it selects
    the weights that are kept.
    """
    from gap.cli.run_training import run_training
    from gap.hardening.train import harden_from_options as work

    run_training("harden", read, work, out, resume, overwrite)
