"""Draw a picture in the style of others."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gap.cli.easel import Device, check_out, draw, find_device, load_backbone, open_sized, split_names
from gap.cli.options import Input, Mean, Std, parse_numbers
from gap.data.pictures import open_picture
from gap.errors import GapError
from gap.imagery.stylize import SMOOTHNESS, STYLE_WEIGHT, Manner
from gap.imagery.stylize import stylize as work

EXAMPLE = "gap stylize photo.jpg painting.jpg --size 256 --out stylized.png"

# Shared with `gap texture`.
Backbone = Annotated[str, typer.Option("--backbone", help="any classifier: what is seen of style, and of content")]
Layers = Annotated[
    list[str] | None, typer.Option("--layers", help="of style, as a,b,c (gap inspect lists them); by default the usual")
]
Out = Annotated[Path, typer.Option("--out", help="the picture, .png; while it is drawn, as it is so far")]
Evaluations = Annotated[
    int, typer.Option("--evaluations", min=1, help="of the backbone, there and back, over all sizes together")
]
Optimiser = Annotated[Literal["lbfgs", "adam"], typer.Option("--optimiser", help="lbfgs or adam")]
StyleMeasure = Annotated[
    Literal["gram", "moments", "sliced"], typer.Option("--style", help="how styles are compared: by Gram matrices, ...")
]
Pooling = Annotated[
    Literal["max", "average"], typer.Option("--pooling", help="average swaps max pooling for smoother pictures")
]
Padding = Annotated[
    Literal["zeros", "reflect", "replicate"], typer.Option("--padding", help="of convolutions; zeros ring at borders")
]
Smoothness = Annotated[
    float, typer.Option("--smoothness", min=0, help="how much neighbouring pixels are to be alike, beside the content")
]
Seed = Annotated[int, typer.Option("--seed", help="of every random choice")]


def stylize(
    content: Annotated[Path, typer.Argument(help="the picture whose content is kept")],
    styles: Annotated[list[Path], typer.Argument(help="one or several pictures whose style is taken")],
    backbone: Backbone = "drawing-hardened",
    content_backbone: Annotated[
        str | None, typer.Option("--content-backbone", help="another classifier, to see content with")
    ] = None,
    layers: Layers = None,
    content_layers: Annotated[
        list[str] | None, typer.Option("--content-layers", help="of content; by default the last but one of the usual")
    ] = None,
    style_weight: Annotated[
        float, typer.Option("--style-weight", min=0, help="beside content; both are shares, so it suits any backbone")
    ] = STYLE_WEIGHT,
    smoothness: Smoothness = SMOOTHNESS,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="of several styles, as 2,1; by default even")
    ] = None,
    mask: Annotated[
        list[Path] | None, typer.Option("--mask", help="a grey picture: white where the style goes; one for each style")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=8, max=4096, help="pixels of the longer side")] = 512,
    start: Annotated[Literal["content", "noise"], typer.Option("--start", help="where the drawing begins")] = "content",
    keep_colours: Annotated[bool, typer.Option("--keep-colours", help="take only light from the styles")] = False,
    style: StyleMeasure = "gram",
    evaluations: Evaluations = 300,
    optimiser: Optimiser = "lbfgs",
    lr: Annotated[float | None, typer.Option("--lr", help="step of the optimiser; by default its usual one")] = None,
    pooling: Pooling = "max",
    padding: Padding = "zeros",
    seed: Seed = 0,
    input: Input = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    out: Out = Path("stylized.png"),
) -> None:
    """Draw a picture in the style of others.

    After Gatys et al.: the picture comes to have the Gram matrices that the styles have in some layers of the backbone,
    and the content's own output in another. Large pictures are drawn small first.
    """
    check_out(out)
    where = find_device(device, seed)
    seer = load_backbone(backbone, where, input, mean, std)
    channels = seer.facts.channels
    beside = load_backbone(content_backbone, where, input) if content_backbone else None
    if beside and beside.facts.channels != channels:
        raise GapError(f"{seer.name} and {beside.name} differ in channels; take two that look at the same pictures")
    picture = open_sized(content, channels, size).to(where)
    manner = Manner(
        layers=split_names(layers),
        content_layers=split_names(content_layers),
        style_weight=style_weight,
        smoothness=smoothness,
        style=style,
        start=start,
        evaluations=evaluations,
        method=optimiser,
        lr=lr,
        keep_colours=keep_colours,
        pooling=pooling,
        padding=padding,
        seed=seed,
    )
    masks = [open_picture(path, 1, (picture.shape[1], picture.shape[2])).to(where) / 255 for path in mask or []]
    paintings = [open_sized(path, channels).to(where) for path in styles]
    shares = parse_numbers("--weights", weights)
    draw(
        out,
        lambda stand: work(
            picture,
            paintings,
            seer,
            content_backbone=beside,
            weights=shares,
            masks=masks or None,
            manner=manner,
            tell=stand,
        ),
    )
