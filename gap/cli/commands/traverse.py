"""Move images towards a class, as a video."""

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
            help="Any classifier; with a hardened one, images come to look like the class.",
            autocompletion=completion.classifiers,
        ),
    ],
    pictures: Annotated[list[Path], typer.Argument(help="Image files or folders: the initial images.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="File for the video, .mp4 or .gif; key frames are saved next to it, as OUT-frames.png."
        ),
    ],
) -> None:
    """Move images towards a class, as a video.

    Images are moved along the gradient of the class's logit, in steps of constant length, within a budget. The
    probabilities of the classes are shown below the images. All classifiers get the images in the input size of the
    first one. Ctrl-C saves a sheet of the present images.
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
    sheet = out.with_name(f"{out.stem}-frames.png")
    budget = Budget.parse(options.budget) if options.budget else None
    device = find_device(options)
    shape = parse_input_shape(options.input)
    networks = load_classifiers([classifier, *options.compare_with], shape, None, options.mean, options.std)
    first, spec = networks[0], networks[0].spec
    target = first.find_class(options.target_class)
    files = [file for path in pictures for file in find_pictures(path)]
    for output in (out, sheet):
        check_not_input(output, files)
        check_writable(output)
    images = torch.stack([load_image(file, spec.channels, spec.size) for file in files]).float() / 255
    budget = budget or default_budget(images)
    budget.check(spec.channels, *spec.size)
    all_frames: list[TraversalFrames] = []

    def save_preview(pictures: "Tensor") -> None:
        captioned = [
            CaptionedImage(to_image(picture), file.name) for picture, file in zip(pictures, files, strict=True)
        ]
        save_image(image_grid(captioned), sheet)

    with progress_display(save_preview) as progress:
        for network in networks:
            traversal = draw(
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
            all_frames.append(TraversalFrames(title, traversal.images, traversal.probabilities))
    names = [first.label(index) for index in range(spec.classes)]
    try:
        save_image(key_frames(all_frames, names), sheet)
        save_video(traversal_frames(all_frames, names), out, fps=options.fps)
    finally:
        for network, frames in zip(networks, all_frames, strict=True):
            _print_result(network, frames.probabilities, files, target)
    typer.echo(f"within {budget}; key frames in {sheet}\n{out}")


def _print_result(classifier: "Classifier", probabilities: "Tensor", files: list[Path], target: int) -> None:
    for index, file in enumerate(files):
        first_prediction, last_prediction = (
            f"{classifier.label(int(class_probabilities.argmax()))} {class_probabilities.max().item():.1%}"
            for class_probabilities in probabilities[[0, -1], index]
        )
        reached = int(probabilities[-1, index].argmax()) == target
        note = "" if reached else f" (not {classifier.label(target)}, {probabilities[-1, index, target].item():.1%})"
        typer.echo(f"{classifier.name}, {file.name}: {first_prediction} -> {last_prediction}{note}")
