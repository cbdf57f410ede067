"""Draw what excites a backbone: classes, channels, and what a layer keeps of a picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from torch import Tensor

from gap.classifiers.classifier import Classifier
from gap.cli.drawing import Device, check_out, easel, find_class, find_device, load_backbone, open_sized
from gap.cli.options import Input, Mean, Std
from gap.core.errors import GapError
from gap.imagery.backbone import prepared
from gap.imagery.feature_visualization import CENTRE, Feature, check_features, invert
from gap.imagery.feature_visualization import visualize as work
from gap.imagery.transforms import Shaken
from gap.models.feature_extractor import LOGITS
from gap.report.pictures import save_image, to_image
from gap.report.sheets import Captioned, sheet
from gap.threat import Budget

NATURAL = "between looks; with the natural prior"
EXAMPLE = "gap visualize runs/hard logit:3 logit:0-9 --out sheet.png"


def visualize(
    backbone: Annotated[str, typer.Argument(help="any classifier; a hardened one needs no prior")],
    features: Annotated[
        list[str],
        typer.Argument(
            help="LAYER:CHANNEL, as layer2:0-15, layer3:4,7 or logit:3 or logit:cat for a class; layer2:4@centre is the"
            " neuron in the middle"
        ),
    ],
    start: Annotated[Path | None, typer.Option("--start", help="a picture that the feature is added to")] = None,
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
    each: Annotated[int, typer.Option("--each", min=1, help="pictures of each feature, from other noise")] = 1,
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
    pad: Annotated[int | None, typer.Option("--pad", min=0, help="pixels of grey around what is looked at")] = None,
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
    check_out(out, [start, of])
    moves = {"jitter": jitter, "rotate": rotate, "scale": scale, "pad": pad, "crop": crop}
    shaken: dict[str, Any] = {name: amount for name, amount in moves.items() if amount is not None}
    if of is not None and (start or budget or prior != "none" or shaken or each > 1):
        raise GapError(
            "--invert begins at noise and has no prior; leave out --start, --budget, --prior, --each and what shakes"
        )
    if diversity and each == 1:
        raise GapError("--diversity is among the pictures of one feature; ask for several, as --each 4")
    still = {} if prior == "natural" else {"jitter": 0, "rotate": 0.0, "scale": 0.0}
    where = find_device(device, seed)
    seer = load_backbone(backbone, where, input, mean, std)
    channels, side = seer.facts.channels, (size, size) if size else None
    longest = size or max(seer.facts.size)
    drawn: list[Captioned] = []

    def keep(pictures: Tensor) -> None:
        save_image(sheet([*drawn, *(Captioned(to_image(picture), "so far") for picture in pictures)]), out)

    # What is drawn together, by its captions; all of it is checked before any of it is drawn.
    tasks: list[tuple[list[str], Callable[..., Tensor]]] = []
    if of is not None:
        picture = open_sized(of, channels, longest).to(where)
        drawn.append(Captioned(to_image(picture), of.name))
        for layer in features:
            prepared(seer, picture[None], [layer])
            tasks.append(([layer], partial(invert, seer, picture, layer)))
    else:
        begin = open_sized(start, channels, longest).to(where) if start else None
        excite = partial(
            work,
            seer,
            size=side,
            start=begin,
            prior=prior,
            transforms=Shaken(**still | shaken) if shaken else None,
            budget=Budget.parse(budget) if budget else None,
            diversity=diversity,
        )
        for same in (group for text in features for group in _groups(_parse(text, seer), each)):
            check_features(seer, same, side)
            tasks.append(([_name(seer.label(one.channel), one) for one in same], partial(excite, same)))
    with easel(keep) as stand:
        for names, task in tasks:
            made = task(steps=steps, seed=seed, tell=stand)
            pictures = made.reshape(len(names), *made.shape[-3:])
            drawn += [Captioned(to_image(one), name) for one, name in zip(pictures, names, strict=True)]
    save_image(sheet(drawn), out)
    typer.echo(f"{len(drawn)} pictures\n{out}")


def _groups(features: list[Feature], each: int) -> list[list[Feature]]:
    """What is drawn together: all, or each feature with itself."""
    return [features] if each == 1 else [[feature] * each for feature in features]


def _parse(text: str, backbone: Classifier) -> list[Feature]:
    """`layer2:0-3,7` as features, `logit` standing for the logits, whose classes may be named; raises GapError where it
    does not parse."""
    layer, colon, given = text.removesuffix(CENTRE).rpartition(":")
    centre = text.endswith(CENTRE)
    if layer == "logit" and not any(letter.isdecimal() for letter in given):
        return [Feature(LOGITS, find_class(backbone, name)) for name in given.split(",")]
    try:
        if not colon or not layer:
            raise ValueError
        channels = [channel for part in given.split(",") for channel in _span(part)]
    except ValueError as error:
        raise GapError(f"cannot read {text!r}; write LAYER:CHANNEL, as layer2:0-15 or logit:3") from error
    if layer == "logit" and centre:
        raise GapError(f"cannot read {text!r}; classes have no {CENTRE}")
    return [Feature(LOGITS if layer == "logit" else layer, channel, centre) for channel in channels]


def _span(text: str) -> range:
    first, dash, last = text.partition("-")
    span = range(int(first), int(last if dash else first) + 1)
    if not span or span.start < 0 or len(span) > 256:
        raise ValueError
    return span


def _name(class_name: str, feature: Feature) -> str:
    return f"class {class_name}" if feature.layer == LOGITS else str(feature)
