"""Apply a trained attack to image files and folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gap.attacks.names import ARTIFACT_KINDS
from gap.classifiers.options import NormalizerOptions
from gap.cli import completion
from gap.cli.options import with_options
from gap.core.files import write_json
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


@with_options(NormalizerOptions)
def perturb(
    read: Callable[..., NormalizerOptions],
    *,
    artifact: Annotated[Path, typer.Argument(help="Folder of gap train.", autocompletion=completion.trained_attacks)],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Image files, and folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the perturbed images.")],
    classifier: Annotated[
        str | None,
        typer.Option(
            "--classifier",
            help="Classifier that reports predictions; by default the one that the attack was trained against.",
            autocompletion=completion.classifiers,
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Budget, in place of the one that the attack was trained with.")
    ] = None,
    original_size: Annotated[
        bool,
        typer.Option("--original-size", help="Perturb at the image's own size; the classifier gets a resized copy."),
    ] = False,
) -> None:
    """Apply a trained attack to image files and folders.

    For each image, writes an 8-bit PNG inside the budget and a side-by-side comparison (clean, perturbation amplified,
    perturbed, with predictions of the classifier). Writes results.json for all images. Images are resized and cropped
    to the size of the attack's training, except with --original-size.
    """
    from gap.core.artifact import open_artifact, prepare_output_dir
    from gap.evaluation.image_files import perturb_files

    options = read()
    attack_artifact = open_artifact(artifact, *ARTIFACT_KINDS)
    prepare_output_dir(out)
    rows = perturb_files(
        attack_artifact,
        paths,
        out,
        classifier=classifier,
        mean=options.mean,
        std=options.std,
        budget=budget,
        original_size=original_size,
    )
    try:
        write_json(out / "results.json", {"rows": rows})
    finally:
        print_table(rows, COLUMNS, f"{artifact} on {len(rows)} picture{'s' if len(rows) > 1 else ''}")
    typer.echo(out)
