"""Draw what a backbone responds to: classes, channels, and what a layer keeps of a picture."""

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
            " neuron in the middle.",
            autocompletion=completion.features,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File for the grid of drawings, .png.")] = Path("sheet.png"),
) -> None:
    """Draw what a backbone responds to: classes, channels, and what a layer keeps of a picture."""
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
    drawn: list[CaptionedImage] = []
    parts: list[Any]
    shared: dict[str, Any] = {"steps": options.steps, "seed": options.seed, "device": device, "progress": False}

    # All layers and features are checked before the first of them is drawn.
    if options.invert:
        size = options.size or max(network.spec.size)
        picture = drawings.sized_image(options.invert, network.spec.channels, size).to(device)
        drawn.append(CaptionedImage(to_image(picture), options.invert.name))
        parts = features
        for layer in features:
            prepare_backbone(network, picture[None], [layer])
        draw: Callable[..., FeatureSheet] = partial(drawings.invert, network, picture, size=size, **shared)
    else:
        groups = drawings.group_features(network, features, options.samples)
        parts = [[group] for group in groups]
        for group in groups:
            check_features(network, group, (options.size, options.size) if options.size else None)
        longest = options.size or max(network.spec.size)
        draw = partial(
            drawings.visualize,
            network,
            size=options.size,
            init=drawings.sized_image(options.init, network.spec.channels, longest) if options.init else None,
            prior=options.prior,
            transforms=_transforms(options),
            budget=options.budget,
            diversity=options.diversity,
            **shared,
        )

    def keep(pictures: "Tensor") -> None:
        save_image(image_grid([*drawn, *(CaptionedImage(to_image(picture), "so far") for picture in pictures)]), out)

    with progress_display(keep) as progress:
        for part in parts:
            drawn += draw(part, callback=progress).captioned()
    save_image(image_grid(drawn), out)
    typer.echo(f"{len(drawn)} pictures\n{out}")


def _check_combination(options: VisualizeOptions) -> None:
    """Raise GapError for options that do not go together."""
    without = options.init, options.budget, _amounts(options)
    if options.invert and (any(without) or options.prior != "none" or options.samples > 1):
        raise GapError(
            "`invert` begins at noise and has no prior; leave out `init`, `budget`, `prior`, `samples` and random"
            " transforms"
        )


def _amounts(options: TransformOptions) -> dict[str, Any]:
    """The amounts of random transforms that were given."""
    return {name: value for name in TransformOptions.model_fields if (value := getattr(options, name)) is not None}


def _transforms(options: VisualizeOptions) -> "nn.Module | None":
    """The random transforms that were asked for; None is the usual ones of the prior."""
    from gap.imagery.transforms import RandomTransform

    amounts = _amounts(options)
    usual = {} if options.prior == "natural" else {"jitter": 0, "rotate": 0.0, "scale": 0.0}
    return RandomTransform(**usual | amounts) if amounts else None
