"""List the data sets that can be named."""

import typer

from gap.data.registry import data_names, default_root

EXAMPLE = "gap data"


def data() -> None:
    """List the data sets that can be named."""
    for name, description in data_names().items():
        typer.echo(f"{name:16} {description}")
    typer.echo(f"\nDownloads live in {default_root()} (--data-root, or the variable GAP_DATA).")
