"""Options of training that several commands share."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gap.core.options import Options

if TYPE_CHECKING:
    from torch import nn

Seed = Annotated[int, Field(ge=0, description="Seed of every random choice.")]
Precision = Literal["auto", "fp32", "bf16"]


class RuntimeOptions(Options):
    """The device, the seed and determinism."""

    group = "Machine"
    device: Annotated[
        str,
        Field(description="Device: auto, cpu, cuda, cuda:1, mps or xpu; auto takes the first accelerator."),
    ] = "auto"
    seed: Seed = 0
    deterministic: Annotated[bool, Field(description="Use only operations that give the same result every time.")] = (
        False
    )


class TrainRuntimeOptions(RuntimeOptions):
    """RuntimeOptions of trainings, which may use less than float32. Evaluations are always in float32."""

    group = "Machine"
    precision: Annotated[
        Precision,
        Field(description="Precision of training: auto, fp32 or bf16; auto takes bf16 where the hardware has it."),
    ] = "auto"


class AugmentationOptions(Options):
    """The augmentation of the training images of a classifier."""

    group = "Augmentation"
    shift: Annotated[int, Field(ge=0, description="Largest random shift, in pixels.")] = 0
    rotate: Annotated[float, Field(ge=0, le=180, description="Largest random rotation, in degrees.")] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1, description="Largest random change of scale, as a fraction.")] = 0.0
    flip: Annotated[bool, Field(description="Mirror half of the images, left to right.")] = False

    def augmentation(self, size: tuple[int, int]) -> "nn.Module":
        """The augmentation for images of this size (H, W)."""
        from gap.training.augmentation import make_augmentation  # imports torch, which the help does not need

        return make_augmentation(size, shift=self.shift, rotate=self.rotate, scale=self.scale, flip=self.flip)
