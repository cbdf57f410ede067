"""List the configs that come with gap, or print one."""

from importlib import resources
from typing import Annotated

import typer

from gap.cli import completion
from gap.core.errors import unknown_name_error
from gap.core.options import named_configs

EXAMPLE = "gap configs mnist-per-image"


def configs(
    name: Annotated[str | None, typer.Argument(help="Config to print.", autocompletion=completion.configs)] = None,
) -> None:
    """List the configs that come with gap, or print one."""
    names = named_configs()
    if name is None:
        for config in names:
            typer.echo(f"{config:28} {_text(config).splitlines()[0].lstrip('# ')}")
        return
    if name not in names:
        raise unknown_name_error("config", name, names)
    typer.echo(_text(name), nl=False)


def _text(name: str) -> str:
    return resources.files("gap.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
