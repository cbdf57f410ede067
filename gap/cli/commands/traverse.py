"""Walk pictures towards a class, as a video."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gap.cli import completion
from gap.cli.options import Device, Input, Mean, Std, parse_numbers
from gap.core.files import check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from gap.classifiers.classifier import Classifier

EXAMPLE = "gap traverse runs/hard digit.png --compare-with runs/mnist-cnn --target-class 0 --out walk.mp4"


def traverse(
    classifier: Annotated[
        str,
        typer.Argument(
            help="Any classifier; a hardened one shows what a class looks like.", autocompletion=completion.classifiers
        ),
    ],
    pictures: Annotated[list[Path], typer.Argument(help="Image files or folders: the initial images.")],
    to: Annotated[str, typer.Option("--target-class", help="Target class, by number or by name.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="File for the video, .mp4 or .gif; its key frames go beside it, as .frames.png."),
    ],
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--compare-with",
            help="Another classifier to show side by side; repeatable.",
            autocompletion=completion.classifiers,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="Largest perturbation, such as l2:5; by default a quarter of the largest distance between two images.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps, and frames of the video.")] = 60,
    fps: Annotated[int, typer.Option("--fps", min=1, max=60, help="Frames per second.")] = 20,
    input: Input = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
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
    from gap.imagery.optimize import default_budget
    from gap.imagery.traversal import traverse_images as work
    from gap.report.image_grid import CaptionedImage, image_grid
    from gap.report.pictures import save_image, to_image
    from gap.report.traversal_frames import TraversalFrames, key_frames, traversal_frames
    from gap.report.video import check_video, save_video
    from gap.threat import Budget

    check_video(out)
    sheet = out.with_suffix(".frames.png")
    within = Budget.parse(budget) if budget else None
    given = parse_numbers("--mean", mean), parse_numbers("--std", std)
    where = find_device(device, 0)
    walkers = load_classifiers([classifier, *(beside or [])], parse_input_shape(input), None, *given)
    first, spec = walkers[0], walkers[0].spec
    target = first.find_class(to)
    files = [file for path in pictures for file in find_pictures(path)]
    for left in (out, sheet):
        check_not_input(left, files)
        check_writable(left)
    images = torch.stack([load_image(file, spec.channels, spec.size) for file in files]).float() / 255
    within = within or default_budget(images)
    within.check(spec.channels, *spec.size)
    images, classes = images.to(where), torch.full((len(images),), target, device=where)
    drawn: list[TraversalFrames] = []

    def keep(pictures: "Tensor") -> None:
        so_far = [CaptionedImage(to_image(picture), file.name) for picture, file in zip(pictures, files, strict=True)]
        save_image(image_grid(so_far), sheet)

    with progress_display(keep) as stand:
        for walker in walkers:
            walk = work(walker.to(where), images, classes, budget=within, steps=steps, tell=stand)
            drawn.append(
                TraversalFrames(Path(split_name(walker.name)[1] or walker.name).name, walk.images, walk.probabilities)
            )
    names = [first.label(index) for index in range(spec.classes)]
    try:
        save_image(key_frames(drawn, names), sheet)
        save_video(traversal_frames(drawn, names), out, fps=fps)
    finally:
        for walker, each in zip(walkers, drawn, strict=True):
            _say(walker, each.probabilities, files, target)
    typer.echo(f"within {within}; key frames in {sheet}\n{out}")


def _say(classifier: "Classifier", probabilities: "Tensor", files: list[Path], target: int) -> None:
    for index, file in enumerate(files):
        before, after = (
            f"{classifier.label(int(at.argmax()))} {at.max().item():.1%}" for at in probabilities[[0, -1], index]
        )
        reached = int(probabilities[-1, index].argmax()) == target
        short = "" if reached else f" (not {classifier.label(target)}, {probabilities[-1, index, target].item():.1%})"
        typer.echo(f"{classifier.name}, {file.name}: {before} -> {after}{short}")
