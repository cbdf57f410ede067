"""Measure the robustness R of layers: how far perturbations change their outputs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BeforeValidator, Field

from gap.classifiers.options import DataOptions
from gap.cli import completion
from gap.cli.options import Json, with_options
from gap.core.errors import GapError
from gap.core.files import check_writable, write_bytes, write_json
from gap.core.options import split_names
from gap.evaluation.options import STEPS
from gap.report.tables import Column, print_table
from gap.training.options import RuntimeOptions

if TYPE_CHECKING:
    from gap.classifiers.classifier import Classifier
    from gap.evaluation.layer_robustness import LayerRobustness
    from gap.threat import Budget

EXAMPLE = "gap layer-robustness drawing-standard drawing-hardened --data cifar10 --budget l2:0.5 --out layers.png"


class LayersOptions(RuntimeOptions, DataOptions):
    """Options of `gap layer-robustness`."""

    budget: Annotated[
        str, Field(description="Largest perturbation, such as linf:8/255 or l2:0.5, for pixels in [0, 1].")
    ]
    layers: Annotated[
        list[str] | None,
        BeforeValidator(split_names),
        Field(
            description="Layers, as a,b,c; by default those that style transfer uses.",
            json_schema_extra={"complete": "layers"},
        ),
    ] = None
    images: Annotated[int, Field(ge=2, description="Number of test images.")] = 200
    steps: Annotated[int, Field(ge=1, description="Steps of gradient ascent.")] = STEPS
    batch_size: Annotated[int, Field(ge=1, description="Images per batch.")] = 50


@with_options(LayersOptions)
def layer_robustness(
    read: Callable[..., LayersOptions],
    *,
    classifiers: Annotated[
        list[str], typer.Argument(help="One or several classifiers to compare.", autocompletion=completion.classifiers)
    ],
    json: Json = None,
    out: Annotated[Path | None, typer.Option("--out", help="File for the plot, .png.")] = None,
    content: Annotated[Path | None, typer.Option("--content", help="For --layer-sweep: content image.")] = None,
    style: Annotated[Path | None, typer.Option("--style", help="For --layer-sweep: style image.")] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            "--layer-sweep",
            help="File for a grid, .png: style transfer through each layer alone, with its robustness R.",
        ),
    ] = None,
    size: Annotated[int, typer.Option("--size", min=8, max=2048, help="Longer side of a drawing, in pixels.")] = 192,
    evaluations: Annotated[
        int, typer.Option("--evaluations", min=1, help="Forward and backward passes for each drawing.")
    ] = 100,
) -> None:
    """Measure the robustness R of layers: how far perturbations change their outputs.

    R is the mean of the largest change of a layer's output within the budget, divided by the mean distance of its
    outputs for two images. It is 0 for a layer that perturbations do not change, and 1 for a layer that they change as
    much as another image does.
    """
    import torch

    from gap.classifiers.task import load_task
    from gap.cli.drawing import check_output
    from gap.data.images import load_image
    from gap.evaluation.layer_robustness import as_rows, layer_robustness
    from gap.imagery.backbone import default_layers
    from gap.threat import Budget
    from gap.training.runtime import make_accelerator

    options = read()
    if (sweep is None) != (content is None) or (sweep is None) != (style is None):
        raise GapError("a sweep needs --layer-sweep, --content and --style together")
    if json:
        check_writable(json)
    if out:
        check_output(out)
    if sweep and content and style:
        check_output(sweep, [content, style])
        for path in (content, style):
            load_image(path, 3)
    accelerator = make_accelerator(options)
    task = load_task(classifiers, options, accelerator.device)
    budget = Budget.parse(options.budget)
    budget.check(task.classifiers[0].spec.channels, *task.classifiers[0].spec.size)
    test = task.data.test
    count = min(options.images, len(test))
    images = torch.cat([batch for batch, _ in test.batches([torch.arange(count)], accelerator.device)])
    results: dict[str, list[LayerRobustness]] = {}
    for classifier in task.classifiers:
        names = options.layers or default_layers(classifier)
        typer.echo(f"{classifier.name}: {', '.join(names)}, {options.steps} steps each", err=True)
        results[classifier.name] = layer_robustness(
            classifier,
            names,
            images,
            budget,
            steps=options.steps,
            batch_size=options.batch_size,
            seed=options.seed,
        )
    rows = as_rows(results)
    columns = [Column("classifier", "classifier"), Column("layer", "layer"), Column("robustness", "R", ".3f")]
    try:
        if json:
            write_json(json, {"rows": rows, "budget": str(budget), "images": count, "data": task.data.describe()})
        if out:
            write_bytes(out, _plot(results, budget))
    finally:
        print_table(rows, columns, f"{task.data.name}, {count} test images, {budget}")
    if out:
        typer.echo(out)
    if sweep and content and style:
        _sweep(task.classifiers, results, content, style, size, evaluations, sweep)


def _plot(results: "Mapping[str, Sequence[LayerRobustness]]", budget: "Budget") -> bytes:
    from gap.report.plots import grouped_bars

    series = {
        name: {layer.layer: (layer.value, layer.low, layer.high) for layer in layers}
        for name, layers in results.items()
    }
    return grouped_bars(series, f"Robustness of layers within {budget}", "R")


def _sweep(
    classifiers: "Sequence[Classifier]",
    results: "Mapping[str, Sequence[LayerRobustness]]",
    content: Path,
    style: Path,
    size: int,
    evaluations: int,
    out: Path,
) -> None:
    """Write a sheet of drawings of a content in a style by each single layer, with R, in a row per classifier."""
    from PIL import Image

    from gap.imagery.drawings import stylize
    from gap.report.image_grid import CaptionedImage, image_grid
    from gap.report.pictures import save_image, to_image

    cells: list[CaptionedImage] = []
    columns = max(map(len, results.values()))
    for classifier in classifiers:
        for layer in results[classifier.name]:
            drawing = stylize(
                content,
                style,
                backbone=classifier,
                size=size,
                layers=[layer.layer],
                evaluations=evaluations,
                progress=False,
            ).image
            cells.append(CaptionedImage(to_image(drawing), f"{classifier.name} {layer.layer}: R {layer.value:.3f}"))
            save_image(image_grid(cells, columns=columns), out)
            typer.echo(cells[-1].caption, err=True)
        cells += [CaptionedImage(Image.new("RGB", (1, 1), "white"), "")] * (columns - len(results[classifier.name]))
    typer.echo(out)
