"""Draw the style of a picture alone, from noise."""

from pathlib import Path
from typing import Annotated

import typer

from gap.cli.commands.stylize import (
    BACKBONE,
    Backbone,
    ColorWeight,
    Evaluations,
    Layers,
    Log,
    Optimizer,
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
from gap.cli.options import Device, Input, Mean, Std
from gap.imagery.options import COLOR_WEIGHT, TV_WEIGHT

EXAMPLE = "gap texture painting.jpg --out texture.png"


def texture(
    style: Annotated[Path, typer.Argument(help="Style image.")],
    backbone: Backbone = None,
    layers: Layers = None,
    color_weight: ColorWeight = COLOR_WEIGHT,
    tv_weight: Smoothness = TV_WEIGHT,
    size: Annotated[int, typer.Option("--size", min=8, max=4096, help="Side of the drawing, in pixels.")] = 256,
    style_loss: StyleMeasure = "gram",
    evaluations: Evaluations = 300,
    optimizer: Optimizer = "lbfgs",
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
    from gap.cli.drawing import check_output, find_device, load_backbone, load_resized, run_drawing, split_names
    from gap.imagery.style_transfer import StyleTransferConfig
    from gap.imagery.style_transfer import synthesize_texture as work

    check_output(out, [style])
    where = find_device(device, seed)
    seer = load_backbone(backbone or BACKBONE, where, input, mean, std)
    config = StyleTransferConfig(
        layers=split_names(layers),
        color_weight=color_weight,
        tv_weight=tv_weight,
        style_loss=style_loss,
        evaluations=evaluations,
        method=optimizer,
        tolerance=tolerance,
        pooling=pooling,
        padding=padding,
        strides=strides,
        precision=precision,
        seed=seed,
    )
    painting = load_resized(style, seer.spec.channels).to(where)
    run_drawing(out, lambda stand: work(painting, (size, size), seer, config=config, tell=stand), log)
