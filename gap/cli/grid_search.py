"""The output of `gap stylize --grid-search`: all drawings, a sheet of them, and the best one."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import typer

from gap.cli.drawing import DrawingProgress, progress_display
from gap.core.artifact import prepare_output_dir, write_marker
from gap.core.files import write_json
from gap.imagery.grid import Trial
from gap.report.image_grid import CaptionedImage, image_grid
from gap.report.pictures import save_image, to_image
from gap.report.tables import Column, print_table

COLUMNS = [
    Column("file", "file"),
    Column("style_weight", "style weight", "g"),
    Column("layers", "layers"),
    Column("content_distance", "content distance", ".3g"),
    Column("style_distance", "style distance", ".3g"),
    Column("score", "score", ".3g"),
]
PREVIEW_FILE = "unfinished.png"


def save_grid_search(search: Callable[[DrawingProgress], Iterable[Trial]], metric_network: str, out: Path) -> None:
    """Save the drawings of a search, and after each of them a sheet and a table, in a folder next to `out`.

    The best drawing so far is saved to `out`.
    """
    folder = out.with_name(f"{out.stem}-grid")
    prepare_output_dir(folder)
    write_marker(folder)
    for path in folder.glob("[0-9][0-9].png"):
        path.unlink()
    trials: list[Trial] = []
    with progress_display(lambda images: save_image(images[0], folder / PREVIEW_FILE)) as progress:
        for trial in search(progress):
            trials.append(trial)
            _save_results(trials, metric_network, folder, out)
            layers = ",".join(trial.layers)
            typer.echo(f"{len(trials)}: {trial.weight:g}, {layers}, score {trial.score:.3g}", err=True)
    (folder / PREVIEW_FILE).unlink(missing_ok=True)
    ranked = sorted(_rows(trials), key=lambda row: float(str(row["score"])))
    print_table(ranked, COLUMNS, f"measured by {metric_network}, the best first")
    typer.echo(f"{folder / 'sheet.png'}\n{out}")


def _save_results(trials: Sequence[Trial], metric_network: str, folder: Path, out: Path) -> None:
    rows = _rows(trials)
    save_image(trials[-1].picture, folder / str(rows[-1]["file"]))
    best = min(trials, key=lambda trial: trial.score)
    save_image(best.picture, out)
    captioned = [
        CaptionedImage(
            to_image(trial.picture),
            f"{'the best, ' if trial is best else ''}{row['file']}: {trial.layers[0]} to {trial.layers[-1]},"
            f" weight {trial.weight:g}, score {trial.score:.3g}",
        )
        for trial, row in zip(trials, rows, strict=True)
    ]
    save_image(image_grid(captioned, columns=3), folder / "sheet.png")
    write_json(folder / "results.json", {"metric_network": metric_network, "rows": rows})


def _rows(trials: Sequence[Trial]) -> list[dict[str, object]]:
    return [
        {
            "file": f"{number:02}.png",
            "style_weight": trial.weight,
            "layers": ",".join(trial.layers),
            "content_distance": trial.content_distance,
            "style_distance": trial.style_distance,
            "score": trial.score,
        }
        for number, trial in enumerate(trials, start=1)
    ]
