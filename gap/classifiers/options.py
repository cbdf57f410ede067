"""Options of classifiers and data, and of `gap pretrain`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gap.core.errors import GapError
from gap.core.options import Options
from gap.training.options import AugmentationOptions, TrainRuntimeOptions

# The ways to name a classifier, for help texts and errors.
NAME_SYNTAX = (
    "a name from `gap classifiers`, torchvision:NAME@WEIGHTS, timm:NAME, FILE.py:FACTORY, package.module:FACTORY"
    " or a folder that gap wrote; weights from a file, or your own network's folder, stand behind an @"
)
Labels = Literal["auto", "data", "predicted"]
OWN_LABELS = "a classifier is trained on the data's own labels; leave out `labels`"


class NormalizerOptions(Options):
    """The normalization of the images for classifiers that have none."""

    group = "Classifier input"
    mean: Annotated[
        list[float] | None,
        Field(description="Mean for the input normalization of a classifier that has none, such as 0.49,0.48,0.45."),
    ] = None
    std: Annotated[
        list[float] | None,
        Field(description="Standard deviation for that normalization, of pixels in [0, 1], such as 0.25,0.24,0.26."),
    ] = None


class InputOptions(NormalizerOptions):
    """The input of classifiers that do not define it."""

    group = "Classifier input"
    input: Annotated[
        str | None, Field(description="Input shape CxHxW of a classifier of your own, such as 3x32x32.")
    ] = None


class DataOptions(InputOptions):
    """The data and its labels, and the input of classifiers that do not define it."""

    group = "Data"
    data: Annotated[
        str,
        Field(
            description="Data set by name (see `gap data`), or folder:PATH for your own images.",
            json_schema_extra={"complete": "datasets"},
        ),
    ] = "mnist-5k"
    data_root: Annotated[
        Path | None, Field(description="Folder of downloaded data sets; also the variable GAP_DATA.")
    ] = None
    labels: Annotated[
        Labels,
        Field(
            description="Labels to use: data (its own), predicted (by the classifier), or auto "
            "(its own where it has them)."
        ),
    ] = "auto"


class ClassifierTrainingOptions(TrainRuntimeOptions, AugmentationOptions, DataOptions):
    """Options that all trainings of a classifier share."""

    classifier: str

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if self.labels == "predicted":
            raise GapError(OWN_LABELS)
        return self


class PretrainOptions(ClassifierTrainingOptions):
    """Options of `gap pretrain`."""

    classifier: Annotated[
        str,
        Field(
            description="Classifier to train, from random or from pretrained weights.",
            json_schema_extra={"complete": "classifiers"},
        ),
    ] = "mnist-cnn"
    epochs: Annotated[float, Field(gt=0, description="Passes over the training images.")] = 6.0
    batch_size: Annotated[int, Field(ge=1, description="Images per step, over all processes.")] = 128
    lr: Annotated[float, Field(gt=0, description="Peak learning rate of AdamW.")] = 3e-3
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay of AdamW.")] = 0.01
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="Label smoothing of the cross-entropy.")] = 0.05
    shift: Annotated[int, Field(ge=0, description="Largest random shift, in pixels.")] = 2
