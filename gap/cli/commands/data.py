"""List the names of data sets."""

import typer

from gap.data.names import default_root, list_datasets

EXAMPLE = "gap data"


def data() -> None:
    """List the names of data sets."""
    for name, description in list_datasets().items():
        typer.echo(f"{name:16} {description}")
    typer.echo(f"\nDownloads are in {default_root()} (--data-root, or the variable GAP_DATA).")
