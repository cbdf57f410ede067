"""Export a classifier as ONNX, TorchScript or a state dict."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gap.classifiers.options import InputOptions
from gap.cli import completion
from gap.cli.options import with_options
from gap.core.errors import GapError

EXAMPLE = "gap export runs/hard hard.onnx"


@with_options(InputOptions)
def export(
    read: Callable[..., InputOptions],
    *,
    classifier: Annotated[
        str,
        typer.Argument(
            help="Any classifier: a name, a folder, or code of your own.", autocompletion=completion.classifiers
        ),
    ],
    file: Annotated[
        Path, typer.Argument(help="File to write: .onnx, .ts (TorchScript), .safetensors or .pt (state dict).")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Export a classifier as ONNX, TorchScript or a state dict.

    ONNX and TorchScript include the normalizer. Their outputs on random pixels are compared with the network before the
    file is saved.
    """
    from gap.classifiers.export import export as work
    from gap.classifiers.task import load_classifiers, parse_input_shape

    if file.exists() and not overwrite:
        raise GapError(f"{file} is there already; use --overwrite, or another name")
    options = read()
    shape = parse_input_shape(options.input)
    (loaded,) = load_classifiers([classifier], shape, None, options.mean, options.std)
    typer.echo(f"{file}: {work(loaded, file)}")
