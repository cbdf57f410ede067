"""Train a network that draws any content in any style in one forward pass."""

from collections.abc import Callable

from gap.cli.options import Out, Overwrite, Resume, with_options
from gap.imagery.feed_forward.options import StylizerOptions

EXAMPLE = "gap train-stylizer --content folder:photos --style folder:paintings --out runs/stylizer"


@with_options(StylizerOptions)
def train_stylizer(
    read: Callable[..., StylizerOptions], *, out: Out, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Train a network that draws any content in any style in one forward pass.

    The backbone encodes its inputs and defines the loss, which is that of `gap stylize`. `gap stylize --stylizer
    FOLDER` draws with the trained network.
    """
    from gap.cli.run_training import run_training
    from gap.imagery.feed_forward.train import train_stylizer_from_options as work

    run_training("train-stylizer", read, work, out, resume, overwrite)
