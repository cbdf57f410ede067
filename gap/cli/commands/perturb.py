"""Apply a trained attack to picture files and folders."""

from pathlib import Path
from typing import Annotated

import typer

from gap.attacks.generator.model import ARTIFACT_KINDS
from gap.cli.options import Mean, Std, parse_numbers
from gap.core.artifact import open_artifact, prepare_output_dir
from gap.core.files import write_json
from gap.evaluation.image_files import perturb_files
from gap.report.tables import Column, print_table

EXAMPLE = "gap perturb runs/per-image picture.png folder/ --out out/"

COLUMNS = (
    Column("picture", "picture"),
    Column("before", "before"),
    Column("before_confidence", "confidence", ".1%"),
    Column("after", "after"),
    Column("after_confidence", "confidence", ".1%"),
    Column("l2", "L2", ".3f"),
    Column("linf", "Linf", ".3f"),
)


def perturb(
    artifact: Annotated[Path, typer.Argument(help="a folder that gap train left")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="picture files and folders of them")],
    out: Annotated[Path, typer.Option("--out", help="the folder to write to")],
    classifier: Annotated[
        str | None,
        typer.Option("--classifier", help="who reads the pictures; by default the one it was trained against"),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="another budget than the one it was trained at")
    ] = None,
    keep_size: Annotated[
        bool,
        typer.Option("--original-size", help="perturb at the picture's own size; the classifier reads a resized copy"),
    ] = False,
) -> None:
    """Apply a trained attack to picture files and folders.

    Writes, for each picture, an 8-bit PNG inside the budget and a side-by-side (clean, perturbation amplified,
    perturbed, with what the classifier says), and table.json over all. Pictures are resized and cropped to the size the
    attack was trained at, unless --original-size.
    """
    opened = open_artifact(artifact, *ARTIFACT_KINDS)
    prepare_output_dir(out)
    rows = perturb_files(
        opened,
        paths,
        out,
        classifier=classifier,
        mean=parse_numbers("--mean", mean),
        std=parse_numbers("--std", std),
        budget=budget,
        keep_size=keep_size,
    )
    try:
        write_json(out / "table.json", {"rows": rows})
    finally:
        print_table(rows, COLUMNS, f"{artifact} on {len(rows)} picture{'s' if len(rows) > 1 else ''}")
    typer.echo(out)
