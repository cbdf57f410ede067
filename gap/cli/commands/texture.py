"""Draw a texture in the style of an image, from noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gap.cli.commands.stylize import Log, Out
from gap.cli.options import with_options
from gap.imagery.options import StyleOptions, TextureOptions

EXAMPLE = "gap texture painting.jpg --out texture.png"


@with_options(TextureOptions)
def texture(
    read: Callable[..., TextureOptions],
    *,
    style: Annotated[Path, typer.Argument(help="Style image.")],
    log: Log = None,
    out: Out = Path("texture.png"),
) -> None:
    """Draw a texture in the style of an image, from noise."""
    from gap.cli.drawing import check_output, find_device, load_backbone, run_drawing
    from gap.imagery.drawings import texture as draw

    options = read()
    check_output(out, [style])
    device = find_device(options)
    backbone = load_backbone(options.backbone, device, options.input, options.mean, options.std)
    style_options = {name: getattr(options, name) for name in StyleOptions.model_fields}
    run_drawing(
        out,
        lambda progress: draw(
            style, options.size, backbone=backbone, device=device, progress=False, callback=progress, **style_options
        ),
        log,
    )
