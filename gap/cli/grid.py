"""What `gap stylize --grid` leaves: every drawing of a search, a sheet of them, and the best."""

from collections.abc import Iterable
from pathlib import Path

import typer

from gap.artefact import claim_output, mark
from gap.data.pictures import save_picture
from gap.files import write_json
from gap.imagery.grid import Try
from gap.report.pictures import save_image, to_image
from gap.report.sheets import Captioned, sheet
from gap.report.tables import Column, print_table

COLUMNS = [
    Column("weight", "style weight", "g"),
    Column("layers", "layers"),
    Column("content", "content distance", ".3g"),
    Column("style", "style distance", ".3g"),
    Column("score", "score", ".3g"),
]


def keep_best(tries: Iterable[Try], judge: str, out: Path) -> None:
    """Save each drawing of a search beside `out` as it comes, a sheet and a table of all, and in `out` the best."""
    folder = out.with_name(f"{out.stem}-grid")
    claim_output(folder)
    mark(folder)
    rows: list[dict[str, object]] = []
    drawn: list[Try] = []
    for each in tries:
        drawn.append(each)
        file = f"{len(drawn):02}.png"
        save_picture(each.picture, folder / file)
        captions = [f"{number}: {one.weight:g}, score {one.score:.3g}" for number, one in enumerate(drawn, start=1)]
        shown = [Captioned(to_image(one.picture), caption) for one, caption in zip(drawn, captions, strict=True)]
        save_image(sheet(shown, columns=3), folder / "sheet.png")
        best = min(drawn, key=lambda one: one.score)
        save_picture(best.picture, out)
        rows.append(
            {
                "file": file,
                "weight": each.weight,
                "layers": ",".join(each.layers),
                "content": each.content_distance,
                "style": each.style_distance,
                "score": each.score,
            }
        )
        typer.echo(f"{captions[-1]}, layers {','.join(each.layers)}", err=True)
    print_table(sorted(rows, key=lambda row: float(str(row["score"]))), COLUMNS, f"read by {judge}, the best first")
    write_json(folder / "table.json", {"judge": judge, "rows": rows})
    typer.echo(f"{folder / 'sheet.png'}\n{out}")
