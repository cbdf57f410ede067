"""Attack a classifier on data that comes with the package, harden it, draw with it, and make a page of it all."""

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
    """Attack a classifier on data that comes with the package, harden it, draw with it, and make a page of it all.

    5,000 real digits; a classifier; a generator and a universal perturbation against it; PGD and the controls that
    learn nothing beside them; the classifier hardened, and what attacks leave of it; what hardened networks draw. The
    last line printed is the path of the page.
    """
    from gap.cli.demo_sections import SECTIONS, Stage
    from gap.core.artifact import prepare_output_dir, write_marker
    from gap.report.page import write_page

    prepare_output_dir(out)
    write_marker(out)
    stage = Stage(out)
    started = time.monotonic()
    try:
        for add in SECTIONS:
            add(stage)
    except TrainingInterrupted as stopped:
        stopped.advice = f"in {out}; gap demo begins from its beginning"
        raise
    seconds = time.monotonic() - started
    lead = f"{len(stage.sections)} sections on 5,000 real digits, made by gap demo in {seconds:.0f} seconds."
    page = write_page(out / "index.html", "gap: attack a classifier, harden it, draw with it", lead, stage.sections)
    typer.echo(page.resolve())
