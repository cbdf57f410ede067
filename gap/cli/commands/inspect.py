"""Show the input and the layers of a classifier, and its predictions for an image."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gap.classifiers.options import InputOptions
from gap.cli import completion
from gap.cli.options import with_options

if TYPE_CHECKING:
    from gap.classifiers.classifier import Classifier

EXAMPLE = "gap inspect runs/mnist-cnn --picture digit.png"


@with_options(InputOptions)
def inspect(
    read: Callable[..., InputOptions],
    *,
    classifier: Annotated[
        str,
        typer.Argument(
            help="Any classifier: a name, a folder, or code of your own.", autocompletion=completion.classifiers
        ),
    ],
    picture: Annotated[Path | None, typer.Option("--picture", help="Image to classify.")] = None,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Depth to which layers are listed.")] = 3,
) -> None:
    """Show the input and the layers of a classifier, and its predictions for an image."""
    from gap.classifiers.task import load_classifiers, parse_input_shape
    from gap.models.feature_extractor import layer_aliases

    options = read()
    shape = parse_input_shape(options.input)
    (loaded,) = load_classifiers([classifier], shape, None, options.mean, options.std)
    spec = loaded.spec
    parameters = sum(weight.numel() for weight in loaded.parameters())
    typer.echo(
        f"classifier    {loaded.name}\narchitecture  {loaded.architecture}\nfingerprint   {loaded.fingerprint()}"
    )
    typer.echo(f"input         {spec.channels}x{spec.size[0]}x{spec.size[1]} pixels in [0, 1]")
    typer.echo(f"normalizer    mean {_format_values(spec.mean)}, std {_format_values(spec.std)}")
    typer.echo(f"classes       {spec.classes}\nparameters    {parameters:,}\nlayers")
    aliases: dict[str, list[str]] = {}
    for alias, name in layer_aliases(loaded.network).items():
        aliases.setdefault(name, []).append(alias)
    for name, module in loaded.network.named_modules():
        if name and name.count(".") < depth:
            typer.echo(f"  {name:30} {type(module).__name__:24} {' '.join(aliases.get(name, []))}".rstrip())
    if picture:
        typer.echo(f"{picture}")
        for label, probability in _top_predictions(loaded, picture):
            typer.echo(f"  {probability:6.1%}  {label}")


def _format_values(values: tuple[float, ...] | None) -> str:
    return "none" if values is None else ",".join(f"{value:g}" for value in values)


def _top_predictions(classifier: "Classifier", picture: Path) -> list[tuple[str, float]]:
    import torch

    from gap.core.frozen import frozen
    from gap.data.images import load_image

    image = load_image(picture, classifier.spec.channels, classifier.spec.size).unsqueeze(0).float() / 255
    with torch.no_grad(), frozen(classifier):
        probabilities, labels = classifier(image)[0].softmax(dim=0).topk(min(5, classifier.spec.classes))
    return [
        (classifier.label(int(label)), probability.item())
        for label, probability in zip(labels, probabilities, strict=True)
    ]
