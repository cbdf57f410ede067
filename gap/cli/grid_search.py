"""What `gap stylize --grid-search` leaves: every drawing of a search, a sheet of them, and the best."""

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
    """Save each drawing of a search as it comes, in a folder beside `out` with a sheet and a table of all so far, and
    the best so far in `out`."""
    folder = out.with_name(f"{out.stem}-grid")
    prepare_output_dir(folder)
    write_marker(folder)
    for old in folder.glob("[0-9][0-9].png"):
        old.unlink()
    drawn: list[Trial] = []
    with progress_display(lambda pictures: save_image(pictures[0], folder / PREVIEW_FILE)) as stand:
        for each in search(stand):
            drawn.append(each)
            _keep(drawn, metric_network, folder, out)
            layers = ",".join(each.layers)
            typer.echo(f"{len(drawn)}: {each.weight:g}, {layers}, score {each.score:.3g}", err=True)
    (folder / PREVIEW_FILE).unlink(missing_ok=True)
    ranked = sorted(_rows(drawn), key=lambda row: float(str(row["score"])))
    print_table(ranked, COLUMNS, f"measured by {metric_network}, the best first")
    typer.echo(f"{folder / 'sheet.png'}\n{out}")


def _keep(drawn: Sequence[Trial], metric_network: str, folder: Path, out: Path) -> None:
    rows = _rows(drawn)
    save_image(drawn[-1].picture, folder / str(rows[-1]["file"]))
    best = min(drawn, key=lambda each: each.score)
    save_image(best.picture, out)
    shown = [
        CaptionedImage(
            to_image(each.picture),
            f"{'the best, ' if each is best else ''}{row['file']}: {each.layers[0]} to {each.layers[-1]},"
            f" weight {each.weight:g}, score {each.score:.3g}",
        )
        for each, row in zip(drawn, rows, strict=True)
    ]
    save_image(image_grid(shown, columns=3), folder / "sheet.png")
    write_json(folder / "table.json", {"metric_network": metric_network, "rows": rows})


def _rows(drawn: Sequence[Trial]) -> list[dict[str, object]]:
    return [
        {
            "file": f"{number:02}.png",
            "style_weight": each.weight,
            "layers": ",".join(each.layers),
            "content_distance": each.content_distance,
            "style_distance": each.style_distance,
            "score": each.score,
        }
        for number, each in enumerate(drawn, start=1)
    ]
