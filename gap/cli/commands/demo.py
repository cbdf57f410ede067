"""Attack a classifier on data that comes with the package, harden it, draw with it, and write a page of results."""

import time
from pathlib import Path
from typing import Annotated

import typer

from gap.core.process import TrainingInterrupted

EXAMPLE = "gap demo --out runs/demo"


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the page and everything it shows.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Attack a classifier on data that comes with the package, harden it, draw with it, and write a page of results.

    On 5,000 digits, the demo trains a classifier, and a generator and a universal perturbation against it. It compares
    them with PGD and baselines, hardens the classifier, evaluates it under attacks, and draws with hardened networks.
    The last line of the output is the path of the page.
    """
    from gap.cli.demo_sections import SECTIONS, Stage
    from gap.core.artifact import prepare_output_dir, write_marker
    from gap.report.page import write_page

    prepare_output_dir(out)
    write_marker(out)
    stage = Stage(out)
    start = time.monotonic()
    try:
        for add_section in SECTIONS:
            add_section(stage)
    except TrainingInterrupted as interruption:
        interruption.advice = f"in {out}; gap demo begins from its beginning"
        raise
    seconds = time.monotonic() - start
    intro = f"{len(stage.sections)} sections on 5,000 real digits, made by gap demo in {seconds:.0f} seconds."
    page = write_page(out / "index.html", "gap: attack a classifier, harden it, draw with it", intro, stage.sections)
    typer.echo(page.resolve())
