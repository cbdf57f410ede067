"""Options of `gap train-stylizer`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from gap.classifiers.options import InputOptions
from gap.imagery.options import BACKBONE, COLOR_WEIGHT, STYLE_WEIGHT, TV_WEIGHT
from gap.training.options import TrainRuntimeOptions

StylizerType = Literal["adaptive", "gram-maps"]


class StylizerOptions(TrainRuntimeOptions, InputOptions):
    """Options of `gap train-stylizer`."""

    content: Annotated[
        str,
        Field(
            description="Content images: a data set by name, or folder:PATH.",
            json_schema_extra={"complete": "datasets"},
        ),
    ]
    style: Annotated[
        str,
        Field(
            description="Style images: folder:PATH; photos work too.",
            json_schema_extra={"complete": "datasets"},
        ),
    ]
    data_root: Annotated[
        Path | None, Field(description="Folder of downloaded data sets; also the variable GAP_DATA.")
    ] = None
    backbone: Annotated[
        str,
        Field(
            description="Classifier whose layers encode the images and are compared by the loss.",
            json_schema_extra={"complete": "classifiers"},
        ),
    ] = BACKBONE
    type: Annotated[
        StylizerType,
        Field(
            description="Stylizer: adaptive (AdaIN) sets each channel's mean and deviation; "
            "gram-maps feeds Gram matrices."
        ),
    ] = "adaptive"
    style_weight: Annotated[
        float, Field(ge=0, description="Weight of style relative to content, as in gap stylize.")
    ] = STYLE_WEIGHT
    color_weight: Annotated[float, Field(ge=0, description="Weight of the style's colors relative to its layers.")] = (
        COLOR_WEIGHT
    )
    tv_weight: Annotated[float, Field(ge=0, description="Weight of total variation.")] = TV_WEIGHT
    size: Annotated[
        int, Field(ge=16, le=512, description="Side of the training images, in pixels; the result draws any size.")
    ] = 128
    epochs: Annotated[float, Field(gt=0, description="Passes over the content images.")] = 20.0
    batch_size: Annotated[int, Field(ge=1, description="Images per step, over all processes.")] = 8
    lr: Annotated[float, Field(gt=0, description="Peak learning rate of AdamW.")] = 1e-3
