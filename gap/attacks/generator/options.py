"""Options of `gap train`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gap.attacks.names import LOSS_NAMES
from gap.attacks.options import CONFIDENCE
from gap.classifiers.options import DataOptions
from gap.core.errors import GapError
from gap.core.options import Options
from gap.training.options import TrainRuntimeOptions

# The number of images of a training without `epochs`, which takes two and a half minutes of two cores on MNIST.
DEFAULT_TRAINING_IMAGES = 128_000


class GeneratorOptions(Options):
    """The generator network: a U-Net of segmentation-models-pytorch, or a plain autoencoder."""

    group = "Generator"
    architecture: Annotated[
        Literal["unet", "autoencoder"], Field(description="Network: a U-Net (unet) or a plain autoencoder.")
    ] = "unet"
    encoder: Annotated[
        str, Field(description="Encoder of the U-Net: any of segmentation-models-pytorch, or tu-NAME from timm.")
    ] = "strided-64"
    weights: Annotated[str | None, Field(description="Pretrained weights of the encoder, such as imagenet.")] = None
    decoder: Annotated[
        tuple[int, ...],
        Field(min_length=1, description="Channels of the decoder's stages, from the coarsest to the finest."),
    ] = (64, 64, 32)
    pixel_unshuffle: Annotated[
        int,
        Field(
            ge=1, le=16, description="Space-to-depth factor: blocks of N x N pixels become channels before the network."
        ),
    ] = 2


class TrainOptions(TrainRuntimeOptions, DataOptions):
    """Options of `gap train`: the classifiers, the data, the kind of attack and the training."""

    classifier: Annotated[
        list[str],
        Field(
            min_length=1,
            description="Classifier to attack; repeat it to attack an ensemble.",
            json_schema_extra={"complete": "classifiers"},
        ),
    ]
    budget: Annotated[
        str | None, Field(description="Largest perturbation, such as linf:8/255 or l2:2.4, for pixels in [0, 1].")
    ] = None
    universal: Annotated[bool, Field(description="Learn one perturbation for all images.")] = False
    candidates: Annotated[
        int, Field(ge=1, description="With --universal: number of random inputs to try, of which the best is kept.")
    ] = 8
    unbounded: Annotated[bool, Field(description="The generator outputs the image itself, without a bound.")] = False
    target_norm: Annotated[
        str | None, Field(description="With --unbounded: mean norm of the perturbation to aim at, such as l2:2.7.")
    ] = None
    discriminator: Annotated[
        bool, Field(description="With --unbounded: train a discriminator (GAN) in place of a target norm.")
    ] = False
    criterion: Annotated[str, Field(description="Goal of the attack: untargeted, least-likely or target:CLASS.")] = (
        "untargeted"
    )
    loss: Annotated[
        str,
        Field(description=f"Loss: {', '.join(LOSS_NAMES[:-1])} or {LOSS_NAMES[-1]}."),
    ] = "margin"
    confidence: Annotated[
        float,
        Field(
            ge=0,
            description="Logit margin by which the margin loss wants each image misclassified; "
            "raise it for small data sets.",
        ),
    ] = CONFIDENCE
    generator: GeneratorOptions = GeneratorOptions()
    flip: Annotated[bool, Field(description="Mirror half of the images, left to right.")] = False
    crop: Annotated[
        float, Field(gt=0, le=1, description="Random crop that keeps at least this fraction of each side.")
    ] = 1.0
    epochs: Annotated[
        float | None,
        Field(
            gt=0, description=f"Passes over the training images; by default {DEFAULT_TRAINING_IMAGES:,} images' worth."
        ),
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="Images per step, over all processes.")] = 128
    lr: Annotated[float, Field(gt=0, description="Peak learning rate of AdamW.")] = 4e-3

    @model_validator(mode="after")
    def _consistent(self) -> "TrainOptions":
        # These modules import torch, which the help does not need.
        from gap.attacks.losses import find_loss
        from gap.threat import Budget

        find_loss(self.loss)
        if self.budget is not None:
            Budget.parse(self.budget)
        if self.unbounded:
            if self.universal:
                raise GapError("`unbounded` and `universal` exclude each other")
            if self.budget is not None:
                raise GapError("`unbounded` takes `target_norm`, a mean, not `budget`, a bound")
            if self.discriminator == (self.target_norm is not None):
                raise GapError("`unbounded` takes either `target_norm`, for example l2:2.7, or `discriminator`")
            if self.target_norm is not None:
                Budget.parse(self.target_norm)
        elif self.target_norm is not None or self.discriminator:
            raise GapError("`target_norm` and `discriminator` go with `unbounded`")
        elif self.budget is None:
            raise GapError("a budget is missing; give `budget`, for example linf:8/255 or l2:2.4")
        return self
