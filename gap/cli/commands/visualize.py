"""Draw images that activate classes or channels of a backbone, or invert its layers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gap.cli import completion
from gap.cli.options import with_options
from gap.core.errors import GapError
from gap.imagery.options import TransformOptions, VisualizeOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gap.imagery.drawings import FeatureSheet

EXAMPLE = "gap visualize runs/hard logit:3 logit:0-9 --out sheet.png"


@with_options(VisualizeOptions)
def visualize(
    read: Callable[..., VisualizeOptions],
    *,
    backbone: Annotated[
        str,
        typer.Argument(help="Any classifier; a hardened one needs no prior.", autocompletion=completion.classifiers),
    ],
    features: Annotated[
        list[str],
        typer.Argument(
            help="LAYER:CHANNEL, as layer2:0-15, layer3:4,7 or logit:3 or logit:cat for a class; layer2:4@center is the"
            " neuron at the center.",
            autocompletion=completion.features,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File for the grid of drawings, .png.")] = Path("sheet.png"),
) -> None:
    """Draw images that activate classes or channels of a backbone, or invert its layers."""
    from gap.cli.drawing import check_output, find_device, load_backbone, progress_display
    from gap.imagery import drawings
    from gap.imagery.backbone import prepare_backbone
    from gap.imagery.feature_visualization import check_features
    from gap.report.image_grid import CaptionedImage, image_grid
    from gap.report.pictures import save_image, to_image

    options = read()
    check_output(out, [options.init, options.invert])
    _check_combination(options)
    device = find_device(options)
    network = load_backbone(backbone, device, options.input, options.mean, options.std)
    drawing_cells: list[CaptionedImage] = []
    drawing_inputs: list[Any]
    common_options: dict[str, Any] = {"steps": options.steps, "seed": options.seed, "device": device, "progress": False}

    # All layers and features are checked before the first drawing.
    if options.invert:
        size = options.size or max(network.spec.size)
        picture = drawings.sized_image(options.invert, network.spec.channels, size).to(device)
        drawing_cells.append(CaptionedImage(to_image(picture), options.invert.name))
        drawing_inputs = features
        for layer in features:
            prepare_backbone(network, picture[None], [layer])
        draw: Callable[..., FeatureSheet] = partial(drawings.invert, network, picture, size=size, **common_options)
    else:
        groups = drawings.group_features(network, features, options.samples)
        drawing_inputs = [[group] for group in groups]
        for group in groups:
            check_features(network, group, (options.size, options.size) if options.size else None)
        draw = partial(
            drawings.visualize,
            network,
            size=options.size,
            init=options.init,
            prior=options.prior,
            transforms=_transforms(options),
            budget=options.budget,
            diversity=options.diversity,
            **common_options,
        )

    def save_preview(pictures: "Tensor") -> None:
        save_image(
            image_grid([*drawing_cells, *(CaptionedImage(to_image(picture), "so far") for picture in pictures)]), out
        )

    with progress_display(save_preview) as progress:
        for drawing_input in drawing_inputs:
            drawing_cells += draw(drawing_input, callback=progress).captioned()
    save_image(image_grid(drawing_cells), out)
    typer.echo(f"{len(drawing_cells)} pictures\n{out}")


def _check_combination(options: VisualizeOptions) -> None:
    """Raise GapError for options that exclude each other."""
    excluded = options.init, options.budget, _amounts(options)
    if options.invert and (any(excluded) or options.prior != "none" or options.samples > 1):
        raise GapError(
            "`invert` begins at noise and has no prior; leave out `init`, `budget`, `prior`, `samples` and random"
            " transforms"
        )


def _amounts(options: TransformOptions) -> dict[str, Any]:
    """The amounts of random transforms that were given."""
    return {name: value for name in TransformOptions.model_fields if (value := getattr(options, name)) is not None}


def _transforms(options: VisualizeOptions) -> "nn.Module | None":
    """The requested random transforms; None for the defaults of the prior."""
    from gap.imagery.transforms import RandomTransform

    amounts = _amounts(options)
    defaults = {} if options.prior == "natural" else {"jitter": 0, "rotate": 0.0, "scale": 0.0}
    return RandomTransform(**defaults | amounts) if amounts else None
