"""Compare the drawings of several backbones, on one page with sliders."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Annotated

import typer

from gap.cli.options import with_options
from gap.core.errors import GapError
from gap.core.files import write_json
from gap.imagery.options import CompareStylesOptions
from gap.report.tables import Column, Table, print_table
from gap.training.options import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from gap.imagery.comparison.ablations import StylizationMethod
    from gap.imagery.comparison.methods import StylizationResult
    from gap.report.page import Figure, Section

EXAMPLE = "gap compare-styles --content a.jpg --content b.jpg --style c.jpg --style d.jpg --out page/"

# The number of images on which R is measured.
MAX_ROBUSTNESS_IMAGES = 6


@with_options(CompareStylesOptions)
def compare_styles(
    read: Callable[..., CompareStylesOptions],
    *,
    content: Annotated[list[Path], typer.Option("--content", help="Content image; repeatable.")],
    style: Annotated[list[Path], typer.Option("--style", help="Style image; repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page, the table and the images.")],
) -> None:
    """Compare the drawings of several backbones, on one page with sliders.

    Each backbone draws every content in every style, once for each style weight, with the same number of evaluations. A
    separate classifier measures the distances of the drawings to content and style. The first backbone is at the left
    of the sliders. The other backbones are compared with it at equal content distance.
    """
    from gap.cli.drawing import find_device, load_backbone
    from gap.core.artifact import prepare_output_dir, write_marker
    from gap.imagery.canvas import fit_size, resize
    from gap.imagery.comparison.ablations import StylizationMethod, ablated
    from gap.imagery.comparison.methods import activation_entropy, check_metric_network, run_comparison
    from gap.imagery.drawings import sized_image
    from gap.imagery.options import StyleTransferOptions
    from gap.report.page import Figure, Section, write_page
    from gap.report.pictures import save_image
    from gap.report.plots import lines
    from gap.training.runtime import use_bf16

    options = read()
    names = options.backbone
    if len({*names, *options.ablation}) < 2 or len(set(names)) < len(names):
        raise GapError("name two or more backbones, each once, to compare")
    prepare_output_dir(out)
    device = find_device(options)
    input_options = options.input, options.mean, options.std
    backbones = [load_backbone(name, device, *input_options) for name in names]
    metric_network = load_backbone(options.metric_network, device)
    channels = metric_network.spec.channels
    if any(backbone.spec.channels != channels for backbone in backbones):
        raise GapError("the backbones and the metric network must have the same number of channels")
    contents = [sized_image(path, channels, options.size).to(device) for path in content]
    styles = [sized_image(path, channels).to(device) for path in style]
    precision: Precision = "bf16" if use_bf16(options.precision, device) else "fp32"
    transfer_options = StyleTransferOptions(evaluations=options.evaluations, precision=precision, seed=options.seed)
    methods = [StylizationMethod(backbone.name, backbone, transfer_options) for backbone in backbones]
    methods += [ablated(methods[0], kind) for kind in dict.fromkeys(options.ablation)]
    names = [method.name for method in methods]
    for network in backbones:
        check_metric_network(metric_network, network)
    write_marker(out)
    start = time.monotonic()
    results: list[StylizationResult] = []
    for drawing in run_comparison(contents, styles, methods, metric_network, style_weights=options.style_weights):
        results.append(drawing)
        save_image(drawing.picture, out / _file(drawing, content, style))
        description = (
            f"{content[drawing.content].stem}, {style[drawing.style].stem}, {drawing.method} x {drawing.weight:g}"
        )
        typer.echo(
            f"{description}: content {drawing.content_distance:.3g}, style {drawing.style_distance:.3g}", err=True
        )
    pairs = [
        [drawing for drawing in results if (drawing.content, drawing.style) == pair]
        for pair in _index_pairs(content, style)
    ]
    rows = [_row(name, pairs, names[0]) for name in names]
    for row, method in zip(rows, methods, strict=True):
        row["activation_entropy"] = sum(activation_entropy(method, image) for image in contents) / len(contents)
        row["layer_robustness"] = (
            None
            if method.options.smooth_activations
            else _robustness(method, [*contents, *styles][:MAX_ROBUSTNESS_IMAGES])
        )
    columns = [
        Column("backbone", "backbone"),
        Column("style_distance", "style distance", ".3g"),
        Column("content_distance", "content distance", ".3g"),
        Column("pairs_ahead", "pairs ahead"),
        Column("advantage", "advantage", ".2f"),
        Column("least_style_distance", "least style distance", ".3g"),
        Column("content_distance_at_least", "content distance there", ".3g"),
        Column("activation_entropy", "activation entropy", ".3f"),
        Column("layer_robustness", "R of layers", ".3f"),
    ]
    result = {
        "metric_network": options.metric_network,
        "evaluations": options.evaluations,
        "precision": precision,
        "style_weights": options.style_weights,
        "rows": rows,
        "drawings": [_to_row(drawing, content, style) for drawing in results],
    }
    try:
        write_json(out / "results.json", result)
    finally:
        print_table(rows, columns, f"measured by {options.metric_network}")
    seconds = time.monotonic() - start
    weights_text = ", ".join(f"{weight:g}" for weight in options.style_weights)
    budget = f"{options.evaluations} evaluations in {precision} for each of the style weights {weights_text}"
    text = (
        f"Every backbone had the same budget: {budget}. The distances are those of {options.metric_network}, which is"
        " not one of the backbones. They are relative, and means over all drawings. A pair is ahead of"
        f" {names[0]} where its style distance is smaller at equal content distance. The advantage is the factor by"
        " which it is smaller, as the geometric mean over the pairs. Pairs whose content distances do not overlap are"
        " apart. The least style distance is that of the best weight of each pair, as the mean over the pairs. R is the"
        " robustness of the layers to perturbations, within an L2 budget of a hundredth of the largest distance."
    )
    curves = {name: _means_by_weight([drawing for drawing in results if drawing.method == name]) for name in names}
    axis_labels = f"content distance ({options.metric_network})", "style distance"
    plot = lines(curves, "Style against content distance", *axis_labels)
    figure = Figure(plot, "Each point is a style weight, the mean over all pairs.", "style against content distance")
    table = Section("Measured", text, [figure], Table(rows, columns))
    resized_styles = [resize(image, fit_size(image, options.size)) for image in styles]
    figures = [
        [_input_figure(path, picture) for path, picture in zip(paths, pictures, strict=True)]
        for paths, pictures in (
            (content, contents),
            (style, resized_styles),
        )
    ]
    sections = [table, *(_section(pair, names, *figures) for pair in pairs)]
    intro = f"Contents: {len(contents)}, styles: {len(styles)}, backbones: {len(names)}; {seconds:.0f} seconds."
    if any("apart" in str(row["pairs_ahead"]) for row in rows):
        typer.echo(
            "the content distances of pairs apart do not overlap: use more --style-weights between those, or beyond"
            " them"
        )
    typer.echo(write_page(out / "index.html", "Styles through several backbones", intro, sections).resolve())


def _means_by_weight(results: "Sequence[StylizationResult]") -> list[tuple[float, float]]:
    """The mean content and style distances for each style weight."""
    weights = {result.weight for result in results}
    by_weight = [[result for result in results if result.weight == weight] for weight in weights]
    return [
        (fmean(result.content_distance for result in group), fmean(result.style_distance for result in group))
        for group in by_weight
    ]


def _robustness(method: "StylizationMethod", pictures: "Sequence[Tensor]") -> float:
    """R within an L2 budget of a hundredth of the largest distance, as the mean over the method's layers.

    It is a rough estimate of a few images in the backbone's input size, with few steps; `gap layer-robustness` is more
    precise.
    """
    import torch

    from gap.evaluation.layer_robustness import layer_robustness
    from gap.imagery.backbone import default_layers
    from gap.imagery.canvas import resize
    from gap.threat import Budget

    size = method.backbone.spec.size
    images = torch.stack([resize(picture, size) for picture in pictures])
    budget = Budget("l2", 0.01 * images[0].numel() ** 0.5)
    layers = list(method.options.layers or default_layers(method.backbone))
    return fmean(layer.value for layer in layer_robustness(method.backbone, layers, images, budget, steps=5))


def _index_pairs(content: Sequence[Path], style: Sequence[Path]) -> list[tuple[int, int]]:
    return [(content_index, style_index) for content_index in range(len(content)) for style_index in range(len(style))]


def _row(name: str, pairs: "Sequence[Sequence[StylizationResult]]", first: str) -> dict[str, object]:
    """A backbone's mean distances over all its drawings, and its comparison with the first backbone."""
    from gap.imagery.comparison.methods import style_advantage

    by_pair = [[result for result in pair if result.method == name] for pair in pairs]
    all_results = [result for pair in by_pair for result in pair]
    lowest_style = [min(pair, key=lambda result: result.style_distance) for pair in by_pair]
    advantages = [
        style_advantage(own_results, [result for result in pair if result.method == first])
        for own_results, pair in zip(by_pair, pairs, strict=True)
    ]
    comparable = [advantage for advantage in advantages if advantage is not None]
    ahead = f"{sum(advantage > 1 for advantage in comparable)} of {len(comparable)}{_note_incomparable(advantages)}"
    return {
        "backbone": name,
        "style_distance": fmean(result.style_distance for result in all_results),
        "content_distance": fmean(result.content_distance for result in all_results),
        "least_style_distance": fmean(result.style_distance for result in lowest_style),
        "content_distance_at_least": fmean(result.content_distance for result in lowest_style),
        "pairs_ahead": ahead if name != first else None,
        "advantage": geometric_mean(comparable) if comparable and name != first else None,
        "advantages": advantages,
    }


def _note_incomparable(advantages: Sequence[float | None]) -> str:
    """A note with the number of pairs whose content distances do not overlap, which cannot be compared."""
    num_apart = sum(advantage is None for advantage in advantages)
    return f" ({num_apart} apart)" if num_apart else ""


def _section(
    pair: "Sequence[StylizationResult]", names: Sequence[str], contents: "Sequence[Figure]", styles: "Sequence[Figure]"
) -> "Section":
    """The drawings of a content in a style: sliders of the first and each other backbone, for each weight."""
    from gap.report.page import Section, Slider

    content_index, style_index = pair[0].content, pair[0].style
    result_of = {(result.method, result.weight): result for result in pair}
    sliders = [
        Slider(
            _figure(result_of[names[0], weight].picture, names[0]),
            _figure(result_of[other, weight].picture, other),
            f"style weight {weight:g}: {names[0]} | {other}",
        )
        for other in names[1:]
        for weight in dict.fromkeys(result.weight for result in pair)
    ]
    title = f"{Path(contents[content_index].caption).stem} in the style of {Path(styles[style_index].caption).stem}"
    return Section(title, "", [contents[content_index], styles[style_index]], sliders=sliders)


def _figure(picture: "Tensor", method: str) -> "Figure":
    from gap.report.page import Figure
    from gap.report.pictures import to_image, to_png_bytes

    return Figure(to_png_bytes(to_image(picture)), method, f"drawn by {method}")


def _input_figure(path: Path, picture: "Tensor") -> "Figure":
    from gap.report.page import Figure
    from gap.report.pictures import to_image, to_png_bytes

    return Figure(to_png_bytes(to_image(picture)), path.name, path.name)


def _file(result: "StylizationResult", content: Sequence[Path], style: Sequence[Path]) -> str:
    backbone = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in result.method)
    names = f"{result.content}-{content[result.content].stem}-{result.style}-{style[result.style].stem}"
    return f"{names}-{backbone}-{result.weight:g}.png"


def _to_row(result: "StylizationResult", content: Sequence[Path], style: Sequence[Path]) -> dict[str, object]:
    return {
        "content": content[result.content].name,
        "style": style[result.style].name,
        "backbone": result.method,
        "weight": result.weight,
        "content_distance": result.content_distance,
        "style_distance": result.style_distance,
        "file": _file(result, content, style),
    }
