"""Draw the content of an image in the style of others."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gap.cli import completion
from gap.cli.options import is_given, with_options
from gap.core.errors import GapError
from gap.imagery.options import StyleTransferOptions, StylizeOptions

if TYPE_CHECKING:
    from gap.cli.drawing import DrawingProgress
    from gap.imagery.feed_forward.stylizer import FeedForwardStylizer
    from gap.imagery.grid import Trial
    from gap.imagery.style_transfer import StyleTransferResult

EXAMPLE = "gap stylize photo.jpg painting.jpg --size 256 --out stylized.png"

# The options that are allowed with `--stylizer`.
STYLIZER_OPTIONS = {
    *("content", "styles", "stylizer", "out", "backbone", "weights", "size"),
    *("input", "mean", "std", "device"),
}

# Shared with `gap texture`.
Out = Annotated[Path, typer.Option("--out", help="File for the drawing, .png; it is updated during the optimization.")]
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
    stylizer: Annotated[
        Path | None,
        typer.Option(
            "--stylizer",
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
            "--grid-search", help="Draw nine combinations of style weight and layers; save the best, and a grid of all."
        ),
    ] = False,
    log: Log = None,
    out: Out = Path("stylized.png"),
) -> None:
    """Draw the content of an image in the style of others.

    After Gatys et al., 2016: the drawing is optimized to have the Gram matrices of the styles in some layers of the
    backbone, and the activations of the content in another layer. Large images are drawn in a small size first.
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
    if stylizer:
        _reject_options(context, "--stylizer", lambda name: name in STYLIZER_OPTIONS)
    if grid_search:
        _reject_options(context, "--grid-search", lambda name: name not in ("style_weight", "log", "mask"))
    check_output(out, [content, *styles, *(mask or []), Path(options.init)])
    device = find_device(options)
    style_weights = normalize_weights(options.weights, len(styles))
    input_options = options.input, options.mean, options.std
    if stylizer:
        has_backbone = "backbone" in options.model_fields_set
        given_backbone = load_backbone(options.backbone, device, *input_options) if has_backbone else None
        return _draw_with_stylizer(
            load_stylizer(stylizer, given_backbone, device), content, styles, style_weights, options.size, out
        )
    backbone = load_backbone(options.backbone, device, *input_options)
    content_network = (
        load_backbone(options.content_backbone, device, options.input) if options.content_backbone else None
    )

    transfer_options = {name: getattr(options, name) for name in StyleTransferOptions.model_fields}

    def draw_image(progress: "DrawingProgress", **overrides: object) -> "StyleTransferResult":
        return draw(
            content,
            styles,
            backbone=backbone,
            content_backbone=content_network,
            weights=style_weights,
            masks=mask,
            init=options.init,
            size=options.size,
            device=device,
            progress=False,
            callback=progress,
            **transfer_options | overrides,
        )

    if not grid_search:
        return run_drawing(out, draw_image, log)
    metric_network = load_backbone(options.metric_network, device)
    check_metric_network(metric_network, backbone)
    content_image = sized_image(content, backbone.spec.channels, options.size).to(device)
    style_images = [sized_image(style, backbone.spec.channels).to(device) for style in styles]
    metric = PerceptualMetric(metric_network, content_image, style_images, style_weights)
    layers = options.layers or default_layers(backbone)

    def run_search(progress: "DrawingProgress") -> "Iterator[Trial]":
        return search(
            lambda names, weight: draw_image(progress, layers=names, style_weight=weight).image, metric, layers
        )

    save_grid_search(run_search, options.metric_network, out)


def _reject_options(context: typer.Context, flag: str, is_allowed: Callable[[str], bool]) -> None:
    """Raise GapError where an option was given that is not allowed with a flag."""
    for name in context.params:
        if is_given(context, name) and not is_allowed(name):
            raise GapError(f"{flag} does not go with --{name.replace('_', '-')}; leave one of them out")


def _draw_with_stylizer(
    stylizer: "FeedForwardStylizer",
    content: Path,
    styles: Sequence[Path],
    style_weights: Sequence[float],
    size: int,
    out: Path,
) -> None:
    """Draw with a trained stylizer. Styles are resized to the size of the content, as in its training."""
    from gap.imagery.drawings import sized_image
    from gap.report.pictures import save_image

    content_image, *style_images = (
        sized_image(path, stylizer.channels, size).to(stylizer.device) for path in (content, *styles)
    )
    start = time.monotonic()
    save_image(stylizer(content_image, style_images, style_weights), out)
    typer.echo(f"{time.monotonic() - start:.2f} seconds\n{out}")
