"""Walk pictures towards a class, as a video."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gap.cli import completion
from gap.cli.options import with_options
from gap.core.files import check_writable
from gap.imagery.options import TraverseOptions

if TYPE_CHECKING:
    from torch import Tensor

    from gap.classifiers.classifier import Classifier

EXAMPLE = "gap traverse runs/hard digit.png --compare-with runs/mnist-cnn --target-class 0 --out walk.mp4"


@with_options(TraverseOptions)
def traverse(
    read: Callable[..., TraverseOptions],
    *,
    classifier: Annotated[
        str,
        typer.Argument(
            help="Any classifier; a hardened one shows what a class looks like.", autocompletion=completion.classifiers
        ),
    ],
    pictures: Annotated[list[Path], typer.Argument(help="Image files or folders: the initial images.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="File for the video, .mp4 or .gif; its key frames go beside it, as .frames.png."),
    ],
) -> None:
    """Walk pictures towards a class, as a video.

    Each walk follows the gradient of the class's logit, in steps of one length, within a budget. Under the pictures
    stand the probabilities of the classes. The pictures are given to every classifier as the first one takes them.
    Ctrl-C leaves a sheet of the pictures as they are so far.
    """
    import torch

    from gap.classifiers.registry import split_name
    from gap.classifiers.task import load_classifiers, parse_input_shape
    from gap.cli.drawing import check_not_input, find_device, progress_display
    from gap.data.images import find_pictures, load_image
    from gap.imagery.drawings import traverse as draw
    from gap.imagery.optimize import default_budget
    from gap.report.image_grid import CaptionedImage, image_grid
    from gap.report.pictures import save_image, to_image
    from gap.report.traversal_frames import TraversalFrames, key_frames, traversal_frames
    from gap.report.video import check_video, save_video
    from gap.threat import Budget

    options = read()
    check_video(out)
    sheet = out.with_suffix(".frames.png")
    budget = Budget.parse(options.budget) if options.budget else None
    device = find_device(options)
    shape = parse_input_shape(options.input)
    networks = load_classifiers([classifier, *options.compare_with], shape, None, options.mean, options.std)
    first, spec = networks[0], networks[0].spec
    target = first.find_class(options.target_class)
    files = [file for path in pictures for file in find_pictures(path)]
    for left in (out, sheet):
        check_not_input(left, files)
        check_writable(left)
    images = torch.stack([load_image(file, spec.channels, spec.size) for file in files]).float() / 255
    budget = budget or default_budget(images)
    budget.check(spec.channels, *spec.size)
    drawn: list[TraversalFrames] = []

    def keep(pictures: "Tensor") -> None:
        so_far = [CaptionedImage(to_image(picture), file.name) for picture, file in zip(pictures, files, strict=True)]
        save_image(image_grid(so_far), sheet)

    with progress_display(keep) as progress:
        for network in networks:
            walk = draw(
                network.to(device),
                images,
                target,
                budget=budget,
                steps=options.steps,
                device=device,
                progress=False,
                callback=progress,
            )
            title = Path(split_name(network.name)[1] or network.name).name
            drawn.append(TraversalFrames(title, walk.images, walk.probabilities))
    names = [first.label(index) for index in range(spec.classes)]
    try:
        save_image(key_frames(drawn, names), sheet)
        save_video(traversal_frames(drawn, names), out, fps=options.fps)
    finally:
        for network, frames in zip(networks, drawn, strict=True):
            _print_result(network, frames.probabilities, files, target)
    typer.echo(f"within {budget}; key frames in {sheet}\n{out}")


def _print_result(classifier: "Classifier", probabilities: "Tensor", files: list[Path], target: int) -> None:
    for index, file in enumerate(files):
        before, after = (
            f"{classifier.label(int(at.argmax()))} {at.max().item():.1%}" for at in probabilities[[0, -1], index]
        )
        reached = int(probabilities[-1, index].argmax()) == target
        short = "" if reached else f" (not {classifier.label(target)}, {probabilities[-1, index, target].item():.1%})"
        typer.echo(f"{classifier.name}, {file.name}: {before} -> {after}{short}")
