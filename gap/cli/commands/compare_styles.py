"""Compare backbones by what they draw: contents, styles, backbones, on one page with sliders."""

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

# How many pictures R is measured on.
MOST = 6


@with_options(CompareStylesOptions)
def compare_styles(
    read: Callable[..., CompareStylesOptions],
    *,
    content: Annotated[list[Path], typer.Option("--content", help="Content image; repeatable.")],
    style: Annotated[list[Path], typer.Option("--style", help="Style image; repeatable.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page, the table and the images.")],
) -> None:
    """Compare backbones by what they draw: contents, styles, backbones, on one page with sliders.

    Each backbone draws every content in every style, once for each style weight and with the same evaluations. A
    classifier that drew none of them measures how far each is from its content and its style. The first backbone stands
    on the left of the sliders; how far the others are ahead of it is taken at equal content distance.
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
    given = options.input, options.mean, options.std
    backbones = [load_backbone(name, device, *given) for name in names]
    reader = load_backbone(options.metric_network, device)
    channels = reader.spec.channels
    if any(each.spec.channels != channels for each in backbones):
        raise GapError("backbones and the metric network must look at the same pictures; these differ in channels")
    contents = [sized_image(path, channels, options.size).to(device) for path in content]
    styles = [sized_image(path, channels).to(device) for path in style]
    precision: Precision = "bf16" if use_bf16(options.precision, device) else "fp32"
    drawing = StyleTransferOptions(evaluations=options.evaluations, precision=precision, seed=options.seed)
    methods = [StylizationMethod(each.name, each, drawing) for each in backbones]
    methods += [ablated(methods[0], kind) for kind in dict.fromkeys(options.ablation)]
    names = [method.name for method in methods]
    for network in backbones:
        check_metric_network(reader, network)
    write_marker(out)
    started = time.monotonic()
    drawn: list[StylizationResult] = []
    for each in run_comparison(contents, styles, methods, reader, weights=options.weights):
        drawn.append(each)
        save_image(each.picture, out / _file(each, content, style))
        names_of = f"{content[each.content].stem}, {style[each.style].stem}, {each.method} x {each.weight:g}"
        typer.echo(f"{names_of}: content {each.content_distance:.3g}, style {each.style_distance:.3g}", err=True)
    pairs = [[one for one in drawn if (one.content, one.style) == pair] for pair in _pairs(content, style)]
    rows = [_row(name, pairs, names[0]) for name in names]
    for row, method in zip(rows, methods, strict=True):
        row["activation_entropy"] = sum(activation_entropy(method, each) for each in contents) / len(contents)
        row["layer_robustness"] = (
            None if method.options.smooth_activations else _robustness(method, [*contents, *styles][:MOST])
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
        "weights": options.weights,
        "rows": rows,
        "drawings": [_to_row(each, content, style) for each in drawn],
    }
    try:
        write_json(out / "table.json", result)
    finally:
        print_table(rows, columns, f"measured by {options.metric_network}")
    seconds = time.monotonic() - started
    tried = ", ".join(f"{weight:g}" for weight in options.weights)
    budget = f"{options.evaluations} evaluations in {precision} for each of the style weights {tried}"
    text = (
        f"Every backbone had the same budget: {budget}. {options.metric_network} measured the distances; it drew none"
        " of the pictures. Distances are relative, and means over all drawings. A pair is ahead of"
        f" {names[0]} where its style distance is smaller at equal content distance. The advantage says how many times"
        " smaller, in the geometric mean over the pairs. Pairs whose content distances do not overlap are apart. The"
        " least style distance is that of the best weight of each pair, in the mean over the pairs. R is the robustness"
        " of the layers to perturbations, within an L2 budget of a hundredth of the largest distance."
    )
    curves = {name: _means_by_weight([each for each in drawn if each.method == name]) for name in names}
    axes = f"content distance ({options.metric_network})", "style distance"
    plot = lines(curves, "Style against content distance", *axes)
    figure = Figure(plot, "Each point is a style weight, the mean over all pairs.", "style against content distance")
    table = Section("Measured", text, [figure], Table(rows, columns))
    shown_styles = [resize(each, fit_size(each, options.size)) for each in styles]
    figures = [
        [_shown(path, picture) for path, picture in zip(paths, pictures, strict=True)]
        for paths, pictures in (
            (content, contents),
            (style, shown_styles),
        )
    ]
    sections = [table, *(_section(pair, names, *figures) for pair in pairs)]
    lead_text = f"Contents: {len(contents)}, styles: {len(styles)}, backbones: {len(names)}; {seconds:.0f} seconds."
    if any("apart" in str(row["pairs_ahead"]) for row in rows):
        typer.echo(
            "pairs apart share no content distance: more --weights between those, or beyond, bring them together"
        )
    typer.echo(write_page(out / "index.html", "Styles through several backbones", lead_text, sections).resolve())


def _means_by_weight(drawn: "Sequence[StylizationResult]") -> list[tuple[float, float]]:
    """The mean content and style distance of each style weight."""
    by_weight = [[each for each in drawn if each.weight == weight] for weight in {each.weight for each in drawn}]
    return [
        (fmean(each.content_distance for each in same), fmean(each.style_distance for each in same))
        for same in by_weight
    ]


def _robustness(method: "StylizationMethod", pictures: "Sequence[Tensor]") -> float:
    """R within an L2 budget of a hundredth of the largest distance, over the pictures at the backbone's own size: the
    mean over the method's layers. Rough: of a few pictures, in a few steps; `gap layer-robustness` is for more."""
    import torch

    from gap.evaluation.layer_robustness import layer_robustness
    from gap.imagery.backbone import default_layers
    from gap.imagery.canvas import resize
    from gap.threat import Budget

    size = method.backbone.spec.size
    images = torch.stack([resize(each, size) for each in pictures])
    budget = Budget("l2", 0.01 * images[0].numel() ** 0.5)
    layers = list(method.options.layers or default_layers(method.backbone))
    return fmean(each.value for each in layer_robustness(method.backbone, layers, images, budget, steps=5))


def _pairs(content: Sequence[Path], style: Sequence[Path]) -> list[tuple[int, int]]:
    return [(of, like) for of in range(len(content)) for like in range(len(style))]


def _row(name: str, pairs: "Sequence[Sequence[StylizationResult]]", first: str) -> dict[str, object]:
    """A backbone's mean distances over all its drawings, and how it stands beside the first one, pair by pair."""
    from gap.imagery.comparison.methods import style_advantage

    by_pair = [[each for each in pair if each.method == name] for pair in pairs]
    own = [each for pair in by_pair for each in pair]
    nearest = [min(pair, key=lambda each: each.style_distance) for pair in by_pair]
    leads = [
        style_advantage(mine, [each for each in pair if each.method == first])
        for mine, pair in zip(by_pair, pairs, strict=True)
    ]
    known = [each for each in leads if each is not None]
    ahead = f"{sum(each > 1 for each in known)} of {len(known)}{_left_out(leads)}"
    return {
        "backbone": name,
        "style_distance": fmean(each.style_distance for each in own),
        "content_distance": fmean(each.content_distance for each in own),
        "least_style_distance": fmean(each.style_distance for each in nearest),
        "content_distance_at_least": fmean(each.content_distance for each in nearest),
        "pairs_ahead": ahead if name != first else None,
        "advantage": geometric_mean(known) if known and name != first else None,
        "advantages": leads,
    }


def _left_out(leads: Sequence[float | None]) -> str:
    """How many pairs share no content distance, and cannot be compared."""
    apart = sum(each is None for each in leads)
    return f" ({apart} apart)" if apart else ""


def _section(
    pair: "Sequence[StylizationResult]", names: Sequence[str], contents: "Sequence[Figure]", styles: "Sequence[Figure]"
) -> "Section":
    """The drawings of one content in one style: the first backbone beside each other one, weight by weight."""
    from gap.report.page import Section, Slider

    of, like = pair[0].content, pair[0].style
    by = {(each.method, each.weight): each for each in pair}
    sliders = [
        Slider(
            _figure(by[names[0], weight].picture, names[0]),
            _figure(by[other, weight].picture, other),
            f"style weight {weight:g}: {names[0]} | {other}",
        )
        for other in names[1:]
        for weight in dict.fromkeys(each.weight for each in pair)
    ]
    title = f"{Path(contents[of].caption).stem} in the style of {Path(styles[like].caption).stem}"
    return Section(title, "", [contents[of], styles[like]], sliders=sliders)


def _figure(picture: "Tensor", method: str) -> "Figure":
    from gap.report.page import Figure
    from gap.report.pictures import to_image, to_png_bytes

    return Figure(to_png_bytes(to_image(picture)), method, f"drawn by {method}")


def _shown(path: Path, picture: "Tensor") -> "Figure":
    from gap.report.page import Figure
    from gap.report.pictures import to_image, to_png_bytes

    return Figure(to_png_bytes(to_image(picture)), path.name, path.name)


def _file(drawn: "StylizationResult", content: Sequence[Path], style: Sequence[Path]) -> str:
    backbone = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in drawn.method)
    names = f"{drawn.content}-{content[drawn.content].stem}-{drawn.style}-{style[drawn.style].stem}"
    return f"{names}-{backbone}-{drawn.weight:g}.png"


def _to_row(drawn: "StylizationResult", content: Sequence[Path], style: Sequence[Path]) -> dict[str, object]:
    return {
        "content": content[drawn.content].name,
        "style": style[drawn.style].name,
        "backbone": drawn.method,
        "weight": drawn.weight,
        "content_distance": drawn.content_distance,
        "style_distance": drawn.style_distance,
        "file": _file(drawn, content, style),
    }
