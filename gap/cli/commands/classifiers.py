"""List the names of classifiers."""

from typing import Annotated

import typer

from gap.classifiers.options import NAME_SYNTAX
from gap.models.classifier_names import BUILTIN_DESCRIPTIONS

EXAMPLE = "gap classifiers torchvision"


def classifiers(
    family: Annotated[str, typer.Argument(help="Family: gap, torchvision or timm.")] = "gap",
    containing: Annotated[str, typer.Option("--filter", help="List only names that contain this text.")] = "",
) -> None:
    """List the names of classifiers."""
    for line in _lines(family):
        if containing in line:
            typer.echo(line)
    if family == "gap":
        typer.echo(f"\nA classifier is {NAME_SYNTAX}.\nMore names: gap classifiers torchvision, gap classifiers timm")


def _lines(family: str) -> list[str]:
    if family == "gap":
        return [f"{name:24} {description}" for name, description in BUILTIN_DESCRIPTIONS.items()]
    if family == "torchvision":
        import torchvision.models

        names = torchvision.models.list_models(module=torchvision.models)
        return [
            f"torchvision:{name}@{weights.name}"
            for name in names
            for weights in torchvision.models.get_model_weights(name)
        ]
    if family == "timm":
        import timm

        return [f"timm:{name}" for name in timm.list_models(pretrained=True)]
    raise typer.BadParameter(f"{family!r} is not a family; use gap, torchvision or timm")
