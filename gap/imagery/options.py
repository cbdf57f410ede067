"""Options of the drawing commands: style losses, optimization and the use of the backbone."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from gap.classifiers.options import InputOptions
from gap.core.options import Options, split_names
from gap.training.options import Precision, RuntimeOptions, Seed

# The default backbone.
BACKBONE = "drawing-hardened"
# The default metric network, which must differ from the backbone.
METRIC_NETWORK = "drawing-standard"
# The weight of style relative to content. Both losses are relative to their target images.
STYLE_WEIGHT = 30.0
# The weight of total variation, which is large enough to remove the grain that strides cause.
TV_WEIGHT = 10.0
# The weight of the style's colors relative to that of its layers together.
COLOR_WEIGHT = 1.0
# The style weights of a comparison. Above the last one, drawings of standard backbones hardly change.
SEARCH_WEIGHTS = (0.03, 0.3, 3.0, 30.0, 300.0, 3000.0)
# The keys of `gap.imagery.losses.STYLE_LOSSES`.
StyleLossName = Literal["gram", "moments", "sliced"]
# `none`: steps of constant norm in a ball (Santurkar et al., 2019); `natural`: a Fourier canvas with decorrelated
# colors, and random transforms (Olah et al., 2017).
Prior = Literal["none", "natural"]
Init = Literal["content", "noise"]
DrawingPrecision = Annotated[
    Precision, Field(description="Precision: auto, fp32 or bf16; auto takes bf16 where the hardware has it.")
]
Optimizer = Literal["lbfgs", "adam"]
Pooling = Literal["max", "average"]
Padding = Literal["zeros", "reflect", "replicate"]
Strides = Literal["own", "smooth"]


def _check_layers(layers: list[str] | None) -> list[str] | None:
    if layers is not None and not layers:
        raise ValueError("style is read from one layer or more; leave the option out for the usual ones")
    return layers


class LayerOptions(Options):
    """The layers of the backbone, and changes of its operations for drawing."""

    group = "Backbone"
    layers: Annotated[
        list[str] | None,
        BeforeValidator(split_names),
        AfterValidator(_check_layers),
        Field(
            description="Style layers, as a,b,c; gap inspect lists them. By default those usual for the backbone.",
            json_schema_extra={"complete": "layers"},
        ),
    ] = None
    pooling: Annotated[
        Pooling,
        Field(description="Pooling of the backbone: average replaces max pooling, for smoother drawings."),
    ] = "max"
    padding: Annotated[
        Padding,
        Field(description="Padding of convolutions: zeros cause artifacts at borders, reflect and replicate do not."),
    ] = "zeros"
    strides: Annotated[
        Strides,
        Field(description="Strides of convolutions: smooth averages over the pixels that they skip."),
    ] = "own"
    smooth_activations: Annotated[
        bool, Field(description="Smooth the peaks of each layer's output by a softmax (Wang et al., 2021).")
    ] = False


class OptimizationOptions(Options):
    """The optimization of a drawing."""

    group = "Optimization"
    evaluations: Annotated[
        int, Field(ge=1, description="Total forward and backward passes of the backbone, over all sizes.")
    ] = 300
    optimizer: Annotated[Optimizer, Field(description="Optimizer: lbfgs or adam.")] = "lbfgs"
    lr: Annotated[float | None, Field(gt=0, description="Learning rate; by default the optimizer's usual one.")] = None
    tolerance: Annotated[
        float,
        Field(
            ge=0,
            description="Stop when 20 evaluations improve the objective by less than this fraction; 0 is never.",
        ),
    ] = 0.0
    min_size: Annotated[
        int,
        Field(
            ge=1,
            description="Shorter side of the smallest picture, in pixels: sizes double from there to the full one.",
        ),
    ] = 256
    precision: DrawingPrecision = "auto"
    seed: Seed = 0


class StyleOptions(OptimizationOptions, LayerOptions):
    """The style loss."""

    group = "Style"
    style_loss: Annotated[
        StyleLossName,
        Field(
            description="Comparison of styles: gram (Gram matrices), moments (means and deviations) or sliced"
            " (sliced Wasserstein distance)."
        ),
    ] = "gram"
    color_weight: Annotated[float, Field(ge=0, description="Weight of the style's colors relative to its layers.")] = (
        COLOR_WEIGHT
    )
    tv_weight: Annotated[float, Field(ge=0, description="Weight of total variation relative to content.")] = TV_WEIGHT


class StyleTransferOptions(StyleOptions):
    """Style transfer."""

    group = "Style"
    style_weight: Annotated[
        float,
        Field(
            ge=0,
            description="Weight of style relative to content; both losses are relative, so that one weight suits any"
            " backbone.",
        ),
    ] = STYLE_WEIGHT
    content_layers: Annotated[
        list[str] | None,
        BeforeValidator(split_names),
        Field(
            description="Content layers, as a,b,c; by default those usual for the backbone.",
            json_schema_extra={"complete": "layers"},
        ),
    ] = None
    keep_colors: Annotated[bool, Field(description="Keep the colors of the content.")] = False


class StylizeOptions(RuntimeOptions, StyleTransferOptions, InputOptions):
    """Options of `gap stylize`."""

    backbone: Annotated[
        str,
        Field(
            description="Backbone: any classifier, whose layers define style and content.",
            json_schema_extra={"complete": "classifiers"},
        ),
    ] = BACKBONE
    content_backbone: Annotated[
        str | None,
        Field(description="Another classifier to compare content by.", json_schema_extra={"complete": "classifiers"}),
    ] = None
    weights: Annotated[
        list[float] | None, Field(description="Weights of several styles, such as 2,1; equal by default.")
    ] = None
    size: Annotated[int, Field(ge=8, le=4096, description="Longer side of the drawing, in pixels.")] = 512
    init: Annotated[str, Field(description="Initial image: content, noise, or an image file.")] = "content"
    metric_network: Annotated[
        str,
        Field(
            description="Classifier that chooses the best of a grid search; it must not be the backbone.",
            json_schema_extra={"complete": "classifiers"},
        ),
    ] = METRIC_NETWORK


class TextureOptions(RuntimeOptions, StyleOptions, InputOptions):
    """Options of `gap texture`."""

    backbone: Annotated[
        str,
        Field(
            description="Backbone: any classifier, whose layers define the style.",
            json_schema_extra={"complete": "classifiers"},
        ),
    ] = BACKBONE
    size: Annotated[int, Field(ge=8, le=4096, description="Side of the drawing, in pixels.")] = 256


class TransformOptions(Options):
    """Random transforms of the images before the network; None is the default of the prior."""

    group = "Random transforms"
    jitter: Annotated[
        int | None, Field(ge=0, description="Largest random shift, in pixels; with the natural prior 8.")
    ] = None
    rotate: Annotated[
        float | None, Field(ge=0, description="Largest random rotation, in degrees; with the natural prior 5.")
    ] = None
    scale: Annotated[
        float | None,
        Field(ge=0, le=0.9, description="Largest random change of scale, as a fraction; with the natural prior 0.1."),
    ] = None
    pad: Annotated[int | None, Field(ge=0, description="Gray padding before the network, in pixels.")] = None
    crop: Annotated[int | None, Field(ge=0, description="Random crop: rows and columns that are cut off.")] = None


class VisualizeOptions(RuntimeOptions, TransformOptions, InputOptions):
    """Options of `gap visualize`."""

    init: Annotated[Path | None, Field(description="Initial image, to which the feature is added.")] = None
    invert: Annotated[
        Path | None,
        Field(description="Image to reconstruct from its activations in the layers, which are named without channels."),
    ] = None
    prior: Annotated[
        Prior,
        Field(
            description="Prior: none takes steps inside a ball; natural uses a Fourier canvas and random transforms,"
            " for standard backbones."
        ),
    ] = "none"
    budget: Annotated[
        str | None,
        Field(
            description="Without a prior: largest distance from the initial image, such as l2:10; by default a quarter"
            " of the largest possible."
        ),
    ] = None
    samples: Annotated[int, Field(ge=1, description="Drawings of each feature, each from other noise.")] = 1
    diversity: Annotated[float, Field(ge=0, description="Weight of diversity among the drawings of a feature.")] = 0.0
    size: Annotated[
        int | None,
        Field(ge=8, le=2048, description="Side of the drawing, in pixels; by default the backbone's input size."),
    ] = None
    steps: Annotated[int, Field(ge=1, description="Steps for each drawing.")] = 128


class TraverseOptions(RuntimeOptions, InputOptions):
    """Options of `gap traverse`."""

    target_class: Annotated[str, Field(description="Target class, by number or by name.", coerce_numbers_to_str=True)]
    compare_with: list[str] = Field(
        default_factory=list,
        description="Another classifier to show side by side; repeatable.",
        json_schema_extra={"complete": "classifiers"},
    )
    budget: Annotated[
        str | None,
        Field(
            description="Largest perturbation, such as l2:5; by default a quarter of the largest distance between two"
            " images."
        ),
    ] = None
    steps: Annotated[int, Field(ge=1, description="Steps, and frames of the video.")] = 60
    fps: Annotated[int, Field(ge=1, le=60, description="Frames per second.")] = 20


class CompareStylesOptions(RuntimeOptions, InputOptions):
    """Options of `gap compare-styles`."""

    backbone: list[str] = Field(
        default=["drawing-standard", BACKBONE],
        description="Backbone to draw with; give two or more.",
        json_schema_extra={"complete": "classifiers"},
    )
    ablation: list[str] = Field(
        default_factory=list,
        description="Ablation of the first backbone: smoothed (activations), shallow (layers) or random (weights);"
        " repeatable.",
    )
    metric_network: Annotated[
        str,
        Field(
            description="Classifier that measures the distances; it must not be one of the backbones.",
            json_schema_extra={"complete": "classifiers"},
        ),
    ] = "efficientnet-lite0"
    style_weights: list[float] = Field(
        default=list(SEARCH_WEIGHTS),
        min_length=1,
        description="Style weights that each backbone tries; use a wide range, so that content distances overlap.",
    )
    size: Annotated[int, Field(ge=8, le=2048, description="Longer side of the drawing, in pixels.")] = 256
    evaluations: Annotated[int, Field(ge=1, description="Forward and backward passes for each drawing.")] = 100
    precision: DrawingPrecision = "auto"
