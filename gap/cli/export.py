"""Write a classifier as ONNX, TorchScript or a plain state dict."""

from pathlib import Path
from typing import Annotated

import typer

from gap.classifier import load_classifier
from gap.cli.options import Mean, Std, parse_numbers
from gap.errors import GapError
from gap.export import export as work
from gap.setting import parse_input

EXAMPLE = "gap export runs/hard hard.onnx"


def export(
    classifier: Annotated[str, typer.Argument(help="any classifier, as in --classifier of the other verbs")],
    file: Annotated[Path, typer.Argument(help="where to; .onnx, .ts (TorchScript), .safetensors or .pt (state dict)")],
    input: Annotated[
        str | None, typer.Option("--input", help="what a classifier of your own takes, as 3x32x32")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is there")] = False,
) -> None:
    """Write a classifier as ONNX, TorchScript or a plain state dict.

    ONNX and TorchScript hold the normaliser, and are compared with the network on random pixels before they are kept.
    """
    if file.exists() and not overwrite:
        raise GapError(f"{file} is there already; use --overwrite, or another name")
    channels, size = parse_input(input) or (None, None)
    loaded = load_classifier(
        classifier,
        channels=channels,
        size=size,
        mean=parse_numbers("--mean", mean),
        std=parse_numbers("--std", std),
    )
    typer.echo(f"{file}: {work(loaded, file)}")
