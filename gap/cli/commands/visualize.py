"""Draw what excites a backbone: classes, channels, and what a layer keeps of a picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from torch import Tensor

from gap.classifiers.classifier import Classifier
from gap.cli.drawing import Device, check_output, find_class, find_device, load_backbone, load_resized, progress_display
from gap.cli.options import Input, Mean, Std
from gap.core.errors import GapError
from gap.imagery.backbone import prepare_backbone
from gap.imagery.feature_visualization import NEURON_SUFFIX, Feature, check_features, invert
from gap.imagery.feature_visualization import visualize as work
from gap.imagery.transforms import RandomTransform
from gap.models.feature_extractor import LOGITS
from gap.report.image_grid import CaptionedImage, image_grid
from gap.report.pictures import save_image, to_image
from gap.threat import Budget

NATURAL = "between looks; with the natural prior"
EXAMPLE = "gap visualize runs/hard logit:3 logit:0-9 --out sheet.png"


def visualize(
    backbone: Annotated[str, typer.Argument(help="any classifier; a hardened one needs no prior")],
    features: Annotated[
        list[str],
        typer.Argument(
            help="LAYER:CHANNEL, as layer2:0-15, layer3:4,7 or logit:3 or logit:cat for a class; layer2:4@center is the"
            " neuron in the middle"
        ),
    ],
    init: Annotated[Path | None, typer.Option("--init", help="a picture that the feature is added to")] = None,
    of: Annotated[
        Path | None,
        typer.Option("--invert", help="a picture: draw what layers, named without channels, keep of it"),
    ] = None,
    prior: Annotated[
        Literal["none", "natural"],
        typer.Option("--prior", help="none: steps in a ball; natural: Fourier canvas, shaken, for standard backbones"),
    ] = "none",
    budget: Annotated[
        str | None, typer.Option("--budget", help="how far without a prior, as l2:10; by default a quarter of what is")
    ] = None,
    each: Annotated[int, typer.Option("--samples", min=1, help="pictures of each feature, from other noise")] = 1,
    diversity: Annotated[
        float, typer.Option("--diversity", min=0, help="weight of the pictures of a feature being unlike one another")
    ] = 0.0,
    jitter: Annotated[int | None, typer.Option("--jitter", min=0, help=f"pixels moved, at most, {NATURAL} 8")] = None,
    rotate: Annotated[
        float | None, typer.Option("--rotate", min=0, help=f"degrees turned, at most, {NATURAL} 5")
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", min=0, max=0.9, help=f"share scaled, at most, {NATURAL} 0.1")
    ] = None,
    pad: Annotated[int | None, typer.Option("--pad", min=0, help="pixels of gray around what is looked at")] = None,
    crop: Annotated[int | None, typer.Option("--crop", min=0, help="rows and columns cut off for each look")] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=8, max=2048, help="pixels of each side; by default the backbone's own")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="steps of each picture")] = 128,
    seed: Annotated[int, typer.Option("--seed", help="of every random choice")] = 0,
    input: Input = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="the sheet, .png")] = Path("sheet.png"),
) -> None:
    """Draw what excites a backbone: classes, channels, and what a layer keeps of a picture."""
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

    def keep(pictures: Tensor) -> None:
        save_image(image_grid([*drawn, *(CaptionedImage(to_image(picture), "so far") for picture in pictures)]), out)

    # What is drawn together, by its captions; all of it is checked before any of it is drawn.
    tasks: list[tuple[list[str], Callable[..., Tensor]]] = []
    if of is not None:
        picture = load_resized(of, channels, longest).to(where)
        drawn.append(CaptionedImage(to_image(picture), of.name))
        for layer in features:
            prepare_backbone(seer, picture[None], [layer])
            tasks.append(([layer], partial(invert, seer, picture, layer)))
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
        for same in (group for text in features for group in _groups(_parse(text, seer), each)):
            check_features(seer, same, side)
            tasks.append(([_name(seer.label(one.channel), one) for one in same], partial(excite, same)))
    with progress_display(keep) as stand:
        for names, task in tasks:
            made = task(steps=steps, seed=seed, tell=stand)
            pictures = made.reshape(len(names), *made.shape[-3:])
            drawn += [CaptionedImage(to_image(one), name) for one, name in zip(pictures, names, strict=True)]
    save_image(image_grid(drawn), out)
    typer.echo(f"{len(drawn)} pictures\n{out}")


def _groups(features: list[Feature], each: int) -> list[list[Feature]]:
    """What is drawn together: all, or each feature with itself."""
    return [features] if each == 1 else [[feature] * each for feature in features]


def _parse(text: str, backbone: Classifier) -> list[Feature]:
    """`layer2:0-3,7` as features, `logit` standing for the logits, whose classes may be named; raises GapError where it
    does not parse."""
    layer, colon, given = text.removesuffix(NEURON_SUFFIX).rpartition(":")
    neuron = text.endswith(NEURON_SUFFIX)
    if layer == "logit" and not any(letter.isdecimal() for letter in given):
        return [Feature(LOGITS, find_class(backbone, name)) for name in given.split(",")]
    try:
        if not colon or not layer:
            raise ValueError
        channels = [channel for part in given.split(",") for channel in _span(part)]
    except ValueError as error:
        raise GapError(f"cannot read {text!r}; write LAYER:CHANNEL, as layer2:0-15 or logit:3") from error
    if layer == "logit" and neuron:
        raise GapError(f"cannot read {text!r}; classes have no {NEURON_SUFFIX}")
    return [Feature(LOGITS if layer == "logit" else layer, channel, neuron) for channel in channels]


def _span(text: str) -> range:
    first, dash, last = text.partition("-")
    span = range(int(first), int(last if dash else first) + 1)
    if not span or span.start < 0 or len(span) > 256:
        raise ValueError
    return span


def _name(class_name: str, feature: Feature) -> str:
    return f"class {class_name}" if feature.layer == LOGITS else str(feature)
