"""Draw a picture in the style of others."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from gap.cli import completion
from gap.cli.completion import BACKBONE
from gap.cli.options import Device, Input, Mean, Std, parse_numbers
from gap.core.errors import GapError
from gap.imagery.options import COLOR_WEIGHT, STYLE_WEIGHT, TV_WEIGHT, Init, Padding, Pooling, Strides, StyleLossName
from gap.training.options import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from gap.cli.drawing import DrawingProgress
    from gap.imagery.feed_forward.stylizer import FeedForwardStylizer

EXAMPLE = "gap stylize photo.jpg painting.jpg --size 256 --out stylized.png"

# What goes with `--fast`.
IN_ONE_PASS = ("content", "styles", "fast", "backbone", "weights", "size", "input", "mean", "std", "device", "out")
# By what share a mask's proportions may differ from the content's: sizes are whole numbers.
LENIENCE = 0.02

# Shared with `gap texture`.
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="Backbone: any classifier, whose layers define style and content.",
        show_default=BACKBONE,
        autocompletion=completion.classifiers,
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        help="Style layers, as a,b,c; gap inspect lists them. By default those usual for the backbone.",
        autocompletion=completion.layers,
    ),
]
Out = Annotated[
    Path, typer.Option("--out", help="File for the drawing, .png; it is updated while the drawing goes on.")
]
Evaluations = Annotated[
    int, typer.Option("--evaluations", min=1, help="Total forward and backward passes of the backbone, over all sizes.")
]
Optimizer = Annotated[Literal["lbfgs", "adam"], typer.Option("--optimizer", help="Optimizer: lbfgs or adam.")]
Tolerance = Annotated[
    float,
    typer.Option(
        "--tolerance",
        min=0,
        help="Stop when 20 evaluations improve the objective by less than this fraction; 0 is never.",
    ),
]
StyleMeasure = Annotated[
    StyleLossName, typer.Option("--style-loss", help="how styles are compared: by Gram matrices, ...")
]
Pooled = Annotated[
    Pooling,
    typer.Option("--pooling", help="Pooling of the backbone: average replaces max pooling, for smoother drawings."),
]
Padded = Annotated[
    Padding,
    typer.Option(
        "--padding", help="Padding of convolutions: zeros cause artifacts at borders, reflect and replicate do not."
    ),
]
Strided = Annotated[
    Strides, typer.Option("--strides", help="Strides of convolutions: smooth averages over the pixels that they skip.")
]
Precise = Annotated[
    Precision,
    typer.Option("--precision", help="Precision: auto, fp32 or bf16; auto takes bf16 where the hardware has it."),
]
ColorWeight = Annotated[
    float, typer.Option("--color-weight", min=0, help="Weight of the style's colors relative to its layers.")
]
Smoothness = Annotated[float, typer.Option("--tv-weight", min=0, help="Weight of total variation relative to content.")]
Log = Annotated[
    Path | None, typer.Option("--log", help="Folder for TensorBoard: the objective, and the drawing as it changes.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]


def stylize(
    context: typer.Context,
    content: Annotated[Path, typer.Argument(help="Content image.")],
    styles: Annotated[list[Path], typer.Argument(help="One or several style images.")],
    backbone: Backbone = None,
    fast: Annotated[
        Path | None,
        typer.Option(
            "--fast",
            help="Draw in one forward pass with a folder of gap train-stylizer.",
            autocompletion=completion.stylizers,
        ),
    ] = None,
    content_backbone: Annotated[
        str | None,
        typer.Option(
            "--content-backbone",
            help="Another classifier to compare content by.",
            autocompletion=completion.classifiers,
        ),
    ] = None,
    layers: Layers = None,
    content_layers: Annotated[
        list[str] | None,
        typer.Option(
            "--content-layers",
            help="Content layers; by default those usual for the backbone.",
            autocompletion=completion.layers,
        ),
    ] = None,
    style_weight: Annotated[
        float,
        typer.Option(
            "--style-weight",
            min=0,
            help="Weight of style relative to content; both losses are relative, so "
            "that one weight suits any backbone.",
        ),
    ] = STYLE_WEIGHT,
    color_weight: ColorWeight = COLOR_WEIGHT,
    tv_weight: Smoothness = TV_WEIGHT,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="Weights of several styles, such as 2,1; equal by default.")
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option("--mask", help="Gray image that is white where the style goes; one for each style."),
    ] = None,
    size: Annotated[int, typer.Option("--size", min=8, max=4096, help="Longer side of the drawing, in pixels.")] = 512,
    init: Annotated[str, typer.Option("--init", help="Initial image: content, noise, or an image file.")] = "content",
    keep_colors: Annotated[bool, typer.Option("--keep-colors", help="Keep the colors of the content.")] = False,
    style_loss: StyleMeasure = "gram",
    evaluations: Evaluations = 300,
    optimizer: Optimizer = "lbfgs",
    tolerance: Tolerance = 0.0,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate; by default the optimizer's usual one.")
    ] = None,
    pooling: Pooled = "max",
    padding: Padded = "zeros",
    strides: Strided = "own",
    precision: Precise = "auto",
    grid_search: Annotated[
        bool,
        typer.Option(
            "--grid-search", help="Draw nine combinations of style weight and layers; keep the best, and a grid of all."
        ),
    ] = False,
    metric_network: Annotated[
        str,
        typer.Option(
            "--metric-network",
            help="Classifier that chooses the best of a grid search; it must not be the backbone.",
            autocompletion=completion.classifiers,
        ),
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
    from gap.cli.drawing import check_output, find_device, load_backbone, load_resized, run_drawing, split_names
    from gap.cli.grid_search import save_grid_search
    from gap.imagery.backbone import default_layers
    from gap.imagery.comparison.methods import PerceptualMetric, check_metric_network
    from gap.imagery.feed_forward.stylizer import load_stylizer
    from gap.imagery.grid import Trial, search
    from gap.imagery.style_transfer import StyleTransferConfig, normalize_weights
    from gap.imagery.style_transfer import transfer_style as work

    if fast:
        _refuse(context, "--fast", lambda name: name in IN_ONE_PASS)
    if grid_search:
        _refuse(context, "--grid-search", lambda name: name not in ("style_weight", "log", "mask"))
    check_output(out, [content, *styles, *(mask or []), Path(init)])
    where = find_device(device, seed)
    shares = normalize_weights(parse_numbers("--weights", weights), len(styles))
    if fast:
        own = load_backbone(backbone, where, input, mean, std) if backbone else None
        return _in_one_pass(load_stylizer(fast, own, where), content, styles, shares, size, out)
    seer = load_backbone(backbone or BACKBONE, where, input, mean, std)
    channels = seer.spec.channels
    beside = load_backbone(content_backbone, where, input) if content_backbone else None
    if beside and beside.spec.channels != channels:
        raise GapError(f"{seer.name} and {beside.name} differ in channels; take two that look at the same pictures")
    picture = load_resized(content, channels, size).to(where)
    config = StyleTransferConfig(
        layers=split_names(layers),
        content_layers=split_names(content_layers),
        style_weight=style_weight,
        color_weight=color_weight,
        tv_weight=tv_weight,
        style_loss=style_loss,
        init="noise" if init == "noise" else "content",
        evaluations=evaluations,
        method=optimizer,
        lr=lr,
        tolerance=tolerance,
        keep_colors=keep_colors,
        pooling=pooling,
        padding=padding,
        strides=strides,
        precision=precision,
        seed=seed,
    )
    masks = [_open_mask(path, picture).to(where) for path in mask or []]
    begin = None if init in get_args(Init) else load_resized(Path(init), channels).to(where)
    paintings = [load_resized(path, channels).to(where) for path in styles]
    ready = partial(
        work, picture, paintings, seer, content_backbone=beside, weights=shares, masks=masks or None, init=begin
    )
    if grid_search:
        reader = load_backbone(metric_network, where)
        check_metric_network(reader, seer)
        judged = PerceptualMetric(reader, picture, paintings, shares)
        usual = default_layers(seer)

        def tries(stand: "DrawingProgress") -> Iterator[Trial]:
            return search(lambda tried: ready(config=tried, tell=stand).image, judged, usual, config)

        return save_grid_search(tries, metric_network, out)
    run_drawing(out, lambda stand: ready(config=config, tell=stand), log)


def _refuse(context: typer.Context, flag: str, fits: Callable[[str], bool]) -> None:
    """Raise GapError where an option was given that does not go with a flag."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and not fits(name):
            raise GapError(f"{flag} does not go with --{name.replace('_', '-')}; leave one of them out")


def _open_mask(path: Path, content: "Tensor") -> "Tensor":
    """A mask, 1 x H x W in [0, 1], at the size of the content; raises GapError where it has another shape."""
    from gap.data.images import load_image
    from gap.imagery.canvas import resize

    mask = load_image(path, 1) / 255
    height, width = content.shape[1:]
    if abs(mask.shape[1] * width / (mask.shape[2] * height) - 1) > LENIENCE:
        raise GapError(
            f"{path} is {mask.shape[2]} x {mask.shape[1]} pixels, of another shape than the content"
            f" ({width} x {height}); make it as wide and high as that"
        )
    return resize(mask, (height, width))


def _in_one_pass(
    swift: "FeedForwardStylizer", content: Path, styles: Sequence[Path], shares: Sequence[float], size: int, out: Path
) -> None:
    """Draw with a trained stylizer; styles are looked at as large as the content, which is how it learned them."""
    from gap.cli.drawing import load_resized
    from gap.data.images import save_picture

    picture, *paintings = (load_resized(path, swift.channels, size).to(swift.device) for path in (content, *styles))
    started = time.monotonic()
    save_picture(swift(picture, paintings, shares), out)
    typer.echo(f"{time.monotonic() - started:.2f} seconds\n{out}")
