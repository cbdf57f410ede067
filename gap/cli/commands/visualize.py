"""Draw what excites a backbone: classes, channels, and what a layer keeps of a picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gap.cli import completion
from gap.cli.options import Device, Input, Mean, Std
from gap.core.errors import GapError

if TYPE_CHECKING:
    from torch import Tensor

    from gap.imagery.feature_visualization import Feature

EXAMPLE = "gap visualize runs/hard logit:3 logit:0-9 --out sheet.png"


def visualize(
    backbone: Annotated[
        str,
        typer.Argument(help="Any classifier; a hardened one needs no prior.", autocompletion=completion.classifiers),
    ],
    features: Annotated[
        list[str],
        typer.Argument(
            help="LAYER:CHANNEL, as layer2:0-15, layer3:4,7 or logit:3 or logit:cat for a class; layer2:4@center is the"
            " neuron in the middle",
            autocompletion=completion.features,
        ),
    ],
    init: Annotated[Path | None, typer.Option("--init", help="Initial image, to which the feature is added.")] = None,
    of: Annotated[
        Path | None,
        typer.Option(
            "--invert",
            help="Image to reconstruct from its activations in the layers, which are named without channels.",
        ),
    ] = None,
    prior: Annotated[
        Literal["none", "natural"],
        typer.Option(
            "--prior",
            help="Prior: none takes steps inside a ball; natural uses a Fourier canvas "
            "and random transforms, for standard backbones.",
        ),
    ] = "none",
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="Without a prior: largest distance from the initial image, such as "
            "l2:10; by default a quarter of the largest possible.",
        ),
    ] = None,
    each: Annotated[int, typer.Option("--samples", min=1, help="Drawings of each feature, each from other noise.")] = 1,
    diversity: Annotated[
        float, typer.Option("--diversity", min=0, help="Weight of diversity among the drawings of a feature.")
    ] = 0.0,
    jitter: Annotated[
        int | None, typer.Option("--jitter", min=0, help="Largest random shift, in pixels; with the natural prior 8.")
    ] = None,
    rotate: Annotated[
        float | None,
        typer.Option("--rotate", min=0, help="Largest random rotation, in degrees; with the natural prior 5."),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale", min=0, max=0.9, help="Largest random change of scale, as a fraction; with the natural prior 0.1."
        ),
    ] = None,
    pad: Annotated[int | None, typer.Option("--pad", min=0, help="Gray padding before the network, in pixels.")] = None,
    crop: Annotated[
        int | None, typer.Option("--crop", min=0, help="Random crop: rows and columns that are cut off.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size", min=8, max=2048, help="Side of the drawing, in pixels; by default the backbone's input size."
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps for each drawing.")] = 128,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random choice.")] = 0,
    input: Input = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="File for the grid of drawings, .png.")] = Path("sheet.png"),
) -> None:
    """Draw what excites a backbone: classes, channels, and what a layer keeps of a picture."""
    from gap.cli.drawing import check_output, find_device, load_backbone, load_resized, progress_display
    from gap.imagery.backbone import prepare_backbone
    from gap.imagery.feature_visualization import (
        check_features,
        feature_name,
        invert_features,
        parse_features,
    )
    from gap.imagery.feature_visualization import visualize_features as work
    from gap.imagery.transforms import RandomTransform
    from gap.report.image_grid import CaptionedImage, image_grid
    from gap.report.pictures import save_image, to_image
    from gap.threat import Budget

    check_output(out, [init, of])
    moves = {"jitter": jitter, "rotate": rotate, "scale": scale, "pad": pad, "crop": crop}
    transform: dict[str, Any] = {name: amount for name, amount in moves.items() if amount is not None}
    if of is not None and (init or budget or prior != "none" or transform or each > 1):
        raise GapError(
            "--invert begins at noise and has no prior; leave out --init, --budget, --prior, --samples and what shakes"
        )
    if diversity and each == 1:
        raise GapError("--diversity is among the pictures of one feature; ask for several, as --samples 4")
    still = {} if prior == "natural" else {"jitter": 0, "rotate": 0.0, "scale": 0.0}
    where = find_device(device, seed)
    seer = load_backbone(backbone, where, input, mean, std)
    channels, side = seer.spec.channels, (size, size) if size else None
    longest = size or max(seer.spec.size)
    drawn: list[CaptionedImage] = []

    def keep(pictures: "Tensor") -> None:
        save_image(image_grid([*drawn, *(CaptionedImage(to_image(picture), "so far") for picture in pictures)]), out)

    # What is drawn together, by its captions; all of it is checked before any of it is drawn.
    tasks: list[tuple[list[str], Callable[..., Tensor]]] = []
    if of is not None:
        picture = load_resized(of, channels, longest).to(where)
        drawn.append(CaptionedImage(to_image(picture), of.name))
        for layer in features:
            prepare_backbone(seer, picture[None], [layer])
            tasks.append(([layer], partial(invert_features, seer, picture, layer)))
    else:
        begin = load_resized(init, channels, longest).to(where) if init else None
        excite = partial(
            work,
            seer,
            size=side,
            init=begin,
            prior=prior,
            transforms=RandomTransform(**still | transform) if transform else None,
            budget=Budget.parse(budget) if budget else None,
            diversity=diversity,
        )
        for same in (group for text in features for group in _groups(parse_features(text, seer), each)):
            check_features(seer, same, side)
            tasks.append(([feature_name(one, seer) for one in same], partial(excite, same)))
    with progress_display(keep) as stand:
        for names, task in tasks:
            made = task(steps=steps, seed=seed, tell=stand)
            pictures = made.reshape(len(names), *made.shape[-3:])
            drawn += [CaptionedImage(to_image(one), name) for one, name in zip(pictures, names, strict=True)]
    save_image(image_grid(drawn), out)
    typer.echo(f"{len(drawn)} pictures\n{out}")


def _groups(features: "list[Feature]", each: int) -> "list[list[Feature]]":
    """What is drawn together: all, or each feature with itself."""
    return [features] if each == 1 else [[feature] * each for feature in features]
