"""List the data sets that can be named."""

import typer

from gap.data.names import default_root, list_datasets

EXAMPLE = "gap data"


def data() -> None:
    """List the data sets that can be named."""
    for name, description in list_datasets().items():
        typer.echo(f"{name:16} {description}")
    typer.echo(f"\nDownloads live in {default_root()} (--data-root, or the variable GAP_DATA).")
