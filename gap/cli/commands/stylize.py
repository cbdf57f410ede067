"""Draw a picture in the style of others."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from torch import Tensor

from gap.cli.drawing import Device, Easel, check_out, draw, find_device, load_backbone, open_sized, split_names
from gap.cli.grid_search import keep_best
from gap.cli.options import Input, Mean, Std, parse_numbers
from gap.core.errors import GapError
from gap.data.images import open_picture, save_picture
from gap.imagery.backbone import Padding, Pooling, Strides, default_layers
from gap.imagery.canvas import resized
from gap.imagery.comparison.methods import Judge, check_held_out
from gap.imagery.feed_forward.stylizer import FastStylizer, load_stylizer
from gap.imagery.grid import Trial, search
from gap.imagery.style_transfer import COLOUR_WEIGHT, SMOOTHNESS, STYLE_WEIGHT, Begin, Manner, Measure, shares_of
from gap.imagery.style_transfer import stylize as work
from gap.training.runtime import Precision

EXAMPLE = "gap stylize photo.jpg painting.jpg --size 256 --out stylized.png"

# What goes with `--fast`.
IN_ONE_PASS = ("content", "styles", "fast", "backbone", "weights", "size", "input", "mean", "std", "device", "out")
# By what share a mask's proportions may differ from the content's: sizes are whole numbers.
LENIENCE = 0.02

# Shared with `gap texture`.
BACKBONE = "drawing-hardened"
Backbone = Annotated[
    str | None,
    typer.Option("--backbone", help="any classifier: what is seen of style, and of content", show_default=BACKBONE),
]
Layers = Annotated[
    list[str] | None, typer.Option("--layers", help="of style, as a,b,c (gap inspect lists them); by default the usual")
]
Out = Annotated[Path, typer.Option("--out", help="the picture, .png; while it is drawn, as it is so far")]
Evaluations = Annotated[
    int, typer.Option("--evaluations", min=1, help="of the backbone, there and back, over all sizes together")
]
Optimiser = Annotated[Literal["lbfgs", "adam"], typer.Option("--optimiser", help="lbfgs or adam")]
Tolerance = Annotated[
    float,
    typer.Option("--tolerance", min=0, help="stop where 20 evaluations gain less than this share; 0 is never"),
]
StyleMeasure = Annotated[Measure, typer.Option("--measure", help="how styles are compared: by Gram matrices, ...")]
Pooled = Annotated[Pooling, typer.Option("--pooling", help="average swaps max pooling for smoother pictures")]
Padded = Annotated[Padding, typer.Option("--padding", help="of convolutions; zeros ring at borders")]
Strided = Annotated[Strides, typer.Option("--strides", help="smooth averages where convolutions step over pixels")]
Precise = Annotated[Precision, typer.Option("--precision", help="auto takes bf16 where the hardware has it")]
ColourWeight = Annotated[
    float, typer.Option("--colour-weight", min=0, help="of the style's colours, beside its layers together")
]
Smoothness = Annotated[
    float, typer.Option("--smoothness", min=0, help="how much neighbouring pixels are to be alike, beside the content")
]
Log = Annotated[
    Path | None, typer.Option("--log", help="a folder for TensorBoard: the objective, and pictures on the way")
]
Seed = Annotated[int, typer.Option("--seed", help="of every random choice")]


def stylize(
    context: typer.Context,
    content: Annotated[Path, typer.Argument(help="the picture whose content is kept")],
    styles: Annotated[list[Path], typer.Argument(help="one or several pictures whose style is taken")],
    backbone: Backbone = None,
    fast: Annotated[
        Path | None,
        typer.Option(
            "--fast",
            help="draw in one pass, with what gap train-stylizer left, at --size",
        ),
    ] = None,
    content_backbone: Annotated[
        str | None, typer.Option("--content-backbone", help="another classifier, to see content with")
    ] = None,
    layers: Layers = None,
    content_layers: Annotated[
        list[str] | None, typer.Option("--content-layers", help="of content; by default those usual for the backbone")
    ] = None,
    style_weight: Annotated[
        float, typer.Option("--style-weight", min=0, help="beside content; both are shares, so it suits any backbone")
    ] = STYLE_WEIGHT,
    colour_weight: ColourWeight = COLOUR_WEIGHT,
    smoothness: Smoothness = SMOOTHNESS,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="of several styles, as 2,1; by default even")
    ] = None,
    mask: Annotated[
        list[Path] | None, typer.Option("--mask", help="a grey picture: white where the style goes; one for each style")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=8, max=4096, help="pixels of the longer side")] = 512,
    start: Annotated[
        str, typer.Option("--start", help="where the drawing begins: content, noise, or a picture file")
    ] = "content",
    keep_colours: Annotated[bool, typer.Option("--keep-colours", help="take only light from the styles")] = False,
    measure: StyleMeasure = "gram",
    evaluations: Evaluations = 300,
    optimiser: Optimiser = "lbfgs",
    tolerance: Tolerance = 0.0,
    lr: Annotated[float | None, typer.Option("--lr", help="step of the optimiser; by default its usual one")] = None,
    pooling: Pooled = "max",
    padding: Padded = "zeros",
    strides: Strided = "own",
    precision: Precise = "auto",
    grid: Annotated[
        bool,
        typer.Option(
            "--grid", help="draw nine, of three style weights and sets of layers: the best, and a sheet of all"
        ),
    ] = False,
    judge: Annotated[
        str, typer.Option("--judge", help="the classifier that chooses the best of a grid, and that draws none of it")
    ] = "drawing-standard",
    seed: Seed = 0,
    input: Input = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    log: Log = None,
    out: Out = Path("stylized.png"),
) -> None:
    """Draw a picture in the style of others.

    After Gatys et al.: the picture comes to have the Gram matrices that the styles have in some layers of the backbone,
    and the content's own output in another. Large pictures are drawn small first.
    """
    if fast:
        _refuse(context, "--fast", lambda name: name in IN_ONE_PASS)
    if grid:
        _refuse(context, "--grid", lambda name: name not in ("style_weight", "log", "mask"))
    check_out(out, [content, *styles, *(mask or []), Path(start)])
    where = find_device(device, seed)
    shares = shares_of(parse_numbers("--weights", weights), len(styles))
    if fast:
        own = load_backbone(backbone, where, input, mean, std) if backbone else None
        return _in_one_pass(load_stylizer(fast, own, where), content, styles, shares, size, out)
    seer = load_backbone(backbone or BACKBONE, where, input, mean, std)
    channels = seer.facts.channels
    beside = load_backbone(content_backbone, where, input) if content_backbone else None
    if beside and beside.facts.channels != channels:
        raise GapError(f"{seer.name} and {beside.name} differ in channels; take two that look at the same pictures")
    picture = open_sized(content, channels, size).to(where)
    manner = Manner(
        layers=split_names(layers),
        content_layers=split_names(content_layers),
        style_weight=style_weight,
        colour_weight=colour_weight,
        smoothness=smoothness,
        measure=measure,
        start="noise" if start == "noise" else "content",
        evaluations=evaluations,
        method=optimiser,
        lr=lr,
        tolerance=tolerance,
        keep_colours=keep_colours,
        pooling=pooling,
        padding=padding,
        strides=strides,
        precision=precision,
        seed=seed,
    )
    masks = [_open_mask(path, picture).to(where) for path in mask or []]
    begin = None if start in get_args(Begin) else open_sized(Path(start), channels).to(where)
    paintings = [open_sized(path, channels).to(where) for path in styles]
    ready = partial(
        work, picture, paintings, seer, content_backbone=beside, weights=shares, masks=masks or None, start=begin
    )
    if grid:
        reader = load_backbone(judge, where)
        check_held_out(reader, seer)
        judged = Judge(reader, picture, paintings, shares)
        usual = default_layers(seer)

        def tries(stand: Easel) -> Iterator[Trial]:
            return search(lambda tried: ready(manner=tried, tell=stand).picture, judged, usual, manner)

        return keep_best(tries, judge, out)
    draw(out, lambda stand: ready(manner=manner, tell=stand), log)


def _refuse(context: typer.Context, flag: str, fits: Callable[[str], bool]) -> None:
    """Raise GapError where an option was given that does not go with a flag."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and not fits(name):
            raise GapError(f"{flag} does not go with --{name.replace('_', '-')}; leave one of them out")


def _open_mask(path: Path, content: Tensor) -> Tensor:
    """A mask, 1 x H x W in [0, 1], at the size of the content; raises GapError where it has another shape."""
    mask = open_picture(path, 1) / 255
    height, width = content.shape[1:]
    if abs(mask.shape[1] * width / (mask.shape[2] * height) - 1) > LENIENCE:
        raise GapError(
            f"{path} is {mask.shape[2]} x {mask.shape[1]} pixels, of another shape than the content"
            f" ({width} x {height}); make it as wide and high as that"
        )
    return resized(mask, (height, width))


def _in_one_pass(
    swift: FastStylizer, content: Path, styles: Sequence[Path], shares: Sequence[float], size: int, out: Path
) -> None:
    """Draw with a trained stylizer; styles are looked at as large as the content, which is how it learned them."""
    picture, *paintings = (open_sized(path, swift.channels, size).to(swift.device) for path in (content, *styles))
    started = time.monotonic()
    save_picture(swift(picture, paintings, shares), out)
    typer.echo(f"{time.monotonic() - started:.2f} seconds\n{out}")
