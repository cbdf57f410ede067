"""Draw a picture in the style of others."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gap.cli import completion
from gap.cli.options import with_options
from gap.core.errors import GapError
from gap.imagery.options import StyleTransferOptions, StylizeOptions

if TYPE_CHECKING:
    from gap.cli.drawing import DrawingProgress
    from gap.imagery.feed_forward.stylizer import FeedForwardStylizer
    from gap.imagery.grid import Trial
    from gap.imagery.style_transfer import StyleTransferResult

EXAMPLE = "gap stylize photo.jpg painting.jpg --size 256 --out stylized.png"

# What goes with `--fast`.
IN_ONE_PASS = ("content", "styles", "fast", "backbone", "weights", "size", "input", "mean", "std", "device", "out")

# Shared with `gap texture`.
Out = Annotated[
    Path, typer.Option("--out", help="File for the drawing, .png; it is updated while the drawing goes on.")
]
Log = Annotated[
    Path | None, typer.Option("--log", help="Folder for TensorBoard: the objective, and the drawing as it changes.")
]


@with_options(StylizeOptions)
def stylize(
    read: Callable[..., StylizeOptions],
    *,
    context: typer.Context,
    content: Annotated[Path, typer.Argument(help="Content image.")],
    styles: Annotated[list[Path], typer.Argument(help="One or several style images.")],
    fast: Annotated[
        Path | None,
        typer.Option(
            "--fast",
            help="Draw in one forward pass with a folder of gap train-stylizer.",
            autocompletion=completion.stylizers,
        ),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option("--mask", help="Gray image that is white where the style goes; one for each style."),
    ] = None,
    grid_search: Annotated[
        bool,
        typer.Option(
            "--grid-search", help="Draw nine combinations of style weight and layers; keep the best, and a grid of all."
        ),
    ] = False,
    log: Log = None,
    out: Out = Path("stylized.png"),
) -> None:
    """Draw a picture in the style of others.

    After Gatys et al.: the picture comes to have the Gram matrices that the styles have in some layers of the backbone,
    and the content's own output in another. Large pictures are drawn small first.
    """
    from gap.cli.drawing import check_output, find_device, load_backbone, run_drawing
    from gap.cli.grid_search import save_grid_search
    from gap.imagery.backbone import default_layers
    from gap.imagery.comparison.methods import PerceptualMetric, check_metric_network
    from gap.imagery.drawings import sized_image
    from gap.imagery.drawings import stylize as draw
    from gap.imagery.feed_forward.stylizer import load_stylizer
    from gap.imagery.grid import search
    from gap.imagery.style_transfer import normalize_weights

    options = read()
    if fast:
        _refuse(context, "--fast", lambda name: name in IN_ONE_PASS)
    if grid_search:
        _refuse(context, "--grid-search", lambda name: name not in ("style_weight", "log", "mask"))
    check_output(out, [content, *styles, *(mask or []), Path(options.init)])
    device = find_device(options)
    shares = normalize_weights(options.weights, len(styles))
    given = options.input, options.mean, options.std
    if fast:
        named = "backbone" in options.model_fields_set
        own = load_backbone(options.backbone, device, *given) if named else None
        return _in_one_pass(load_stylizer(fast, own, device), content, styles, shares, options.size, out)
    backbone = load_backbone(options.backbone, device, *given)
    beside = load_backbone(options.content_backbone, device, options.input) if options.content_backbone else None

    chosen = {name: getattr(options, name) for name in StyleTransferOptions.model_fields}

    def work(progress: "DrawingProgress", **changed: object) -> "StyleTransferResult":
        return draw(
            content,
            styles,
            backbone=backbone,
            content_backbone=beside,
            weights=shares,
            masks=mask,
            init=options.init,
            size=options.size,
            device=device,
            progress=False,
            callback=progress,
            **chosen | changed,
        )

    if not grid_search:
        return run_drawing(out, work, log)
    reader = load_backbone(options.metric_network, device)
    check_metric_network(reader, backbone)
    picture = sized_image(content, backbone.spec.channels, options.size).to(device)
    paintings = [sized_image(style, backbone.spec.channels).to(device) for style in styles]
    metric = PerceptualMetric(reader, picture, paintings, shares)
    layers = options.layers or default_layers(backbone)

    def trials(progress: "DrawingProgress") -> "Iterator[Trial]":
        return search(lambda names, weight: work(progress, layers=names, style_weight=weight).image, metric, layers)

    save_grid_search(trials, options.metric_network, out)


def _refuse(context: typer.Context, flag: str, fits: Callable[[str], bool]) -> None:
    """Raise GapError where an option was given that does not go with a flag."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and not fits(name):
            raise GapError(f"{flag} does not go with --{name.replace('_', '-')}; leave one of them out")


def _in_one_pass(
    stylizer: "FeedForwardStylizer",
    content: Path,
    styles: Sequence[Path],
    shares: Sequence[float],
    size: int,
    out: Path,
) -> None:
    """Draw with a trained stylizer; it gets styles as large as the content, as in its training."""
    from gap.imagery.drawings import sized_image
    from gap.report.pictures import save_image

    picture, *paintings = (
        sized_image(path, stylizer.channels, size).to(stylizer.device) for path in (content, *styles)
    )
    started = time.monotonic()
    save_image(stylizer(picture, paintings, shares), out)
    typer.echo(f"{time.monotonic() - started:.2f} seconds\n{out}")
