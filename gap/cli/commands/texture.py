"""Draw the style of a picture alone, from noise."""

from pathlib import Path
from typing import Annotated

import typer

from gap.cli.commands.stylize import (
    BACKBONE,
    Backbone,
    ColourWeight,
    Evaluations,
    Layers,
    Log,
    Optimiser,
    Out,
    Padded,
    Pooled,
    Precise,
    Seed,
    Smoothness,
    Strided,
    StyleMeasure,
    Tolerance,
)
from gap.cli.drawing import Device, check_out, draw, find_device, load_backbone, open_sized, split_names
from gap.cli.options import Input, Mean, Std
from gap.imagery.style_transfer import COLOUR_WEIGHT, SMOOTHNESS, Manner
from gap.imagery.style_transfer import texture as work

EXAMPLE = "gap texture painting.jpg --out texture.png"


def texture(
    style: Annotated[Path, typer.Argument(help="the picture whose style is taken")],
    backbone: Backbone = None,
    layers: Layers = None,
    colour_weight: ColourWeight = COLOUR_WEIGHT,
    smoothness: Smoothness = SMOOTHNESS,
    size: Annotated[int, typer.Option("--size", min=8, max=4096, help="pixels of each side")] = 256,
    measure: StyleMeasure = "gram",
    evaluations: Evaluations = 300,
    optimiser: Optimiser = "lbfgs",
    tolerance: Tolerance = 0.0,
    pooling: Pooled = "max",
    padding: Padded = "zeros",
    strides: Strided = "own",
    precision: Precise = "auto",
    seed: Seed = 0,
    input: Input = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    log: Log = None,
    out: Out = Path("texture.png"),
) -> None:
    """Draw the style of a picture alone, from noise."""
    check_out(out, [style])
    where = find_device(device, seed)
    seer = load_backbone(backbone or BACKBONE, where, input, mean, std)
    manner = Manner(
        layers=split_names(layers),
        colour_weight=colour_weight,
        smoothness=smoothness,
        measure=measure,
        evaluations=evaluations,
        method=optimiser,
        tolerance=tolerance,
        pooling=pooling,
        padding=padding,
        strides=strides,
        precision=precision,
        seed=seed,
    )
    painting = open_sized(style, seer.facts.channels).to(where)
    draw(out, lambda stand: work(painting, (size, size), seer, manner=manner, tell=stand), log)
