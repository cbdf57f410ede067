"""Which families of networks work with which commands: one untrained network of each, on a few small images.

    python benchmarks/families.py [--only NAME ...] [--verbs VERB ...] [--out families.md]

`judge` takes minutes for each network even on two images; name it in --verbs.

Every command runs as on the command line. A cell is `works`, `refused` (a GapError, whose message is below the table)
or `FAULT` (any other error, with its traceback). The exit status is 1 if there is a fault.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
from PIL import Image

from gap.cli.app import make_app
from gap.core.errors import GapError
from gap.data.registry import load_data
from gap.report.pictures import save_image

# One network of each family, and the side of its images.
NETWORKS = {
    "torchvision:alexnet@none": 64,
    "torchvision:vgg11_bn@none": 32,
    "torchvision:resnet18@none": 64,
    "torchvision:resnext50_32x4d@none": 64,
    "torchvision:densenet121@none": 64,
    "torchvision:googlenet@none": 64,
    "torchvision:inception_v3@none": 299,
    "torchvision:squeezenet1_1@none": 64,
    "torchvision:mobilenet_v2@none": 64,
    "torchvision:mobilenet_v3_small@none": 64,
    "torchvision:mnasnet0_5@none": 64,
    "torchvision:shufflenet_v2_x0_5@none": 64,
    "torchvision:efficientnet_b0@none": 64,
    "torchvision:regnet_y_400mf@none": 64,
    "torchvision:convnext_tiny@none": 64,
    "torchvision:swin_t@none": 64,
    "timm:tf_efficientnet_lite0@none": 64,
    "timm:resnetv2_50@none": 64,
    "timm:repvgg_a0@none": 64,
    "timm:ghostnet_100@none": 64,
    "timm:nf_regnet_b0@none": 64,
    "timm:convnext_atto@none": 64,
    "timm:mobilevit_xxs@none": 64,
    "timm:poolformer_s12@none": 64,
    "timm:vit_tiny_patch16_224@none": 224,
    "timm:deit_tiny_distilled_patch16_224@none": 224,
    "timm:swin_tiny_patch4_window7_224@none": 224,
    "timm:mixer_s32_224@none": 224,
    "timm:levit_128s@none": 224,
    "timm:xcit_nano_12_p16_224@none": 224,
}
VERBS = ("inspect", "evaluate", "train", "pretrain", "harden", "judge", "layer-robustness", "stylize", "visualize")
QUICK = [verb for verb in VERBS if verb != "judge"]


def drawing_side(side: int) -> int:
    """The side of drawings: that of the network, but large enough for its layers."""
    return max(96, side)


def commands(name: str, side: int, folder: Path) -> dict[str, list[str]]:
    """The arguments of each command for a network; output is written inside the folder."""
    shape = ["--input", f"3x{side}x{side}"]
    data = ["--data", f"folder:{folder / 'images'}", *shape]
    short = ["--epochs", "1", "--batch-size", "8"]
    budget = ["--budget", "linf:8/255"]
    content, style = (str(folder / f"{picture}.png") for picture in ("content", "style"))
    drawing = ["--backbone", name, *shape]
    return {
        "inspect": [name, *shape],
        "evaluate": ["pgd:steps=2", "fgsm", "--classifier", name, *data, *budget],
        "train": ["--classifier", name, *data, *budget, *short, "--out", str(folder / "train")],
        "pretrain": ["--classifier", name, *data, *short, "--out", str(folder / "pretrain")],
        "harden": [name, *data, *budget, *short, "--attack", "pgd", "--steps", "1", "--out", str(folder / "harden")],
        "judge": [name, *data, *budget, "--fast", "--images", "2"],
        "layer-robustness": [name, *data, *budget, "--images", "2", "--steps", "1"],
        "stylize": [
            content,
            style,
            *drawing,
            "--size",
            str(drawing_side(side)),
            "--evaluations",
            "2",
            "--out",
            str(folder / "stylized.png"),
        ],
        "visualize": [name, "logit:3", *shape, "--steps", "2", "--out", str(folder / "feature.png")],
    }


def run(verb: str, arguments: list[str]) -> tuple[str, str]:
    """The outcome of a command, and the message of a refusal or the traceback of a fault."""
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_app(verb)([verb, *arguments], standalone_mode=False)
    except GapError as error:
        return "refused", str(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "FAULT", "".join(traceback.format_exception(error)[-4:])
    return "works", ""


def write_images(folder: Path, side: int) -> None:
    """Write forty digits in ten class folders, and two images of that side for drawings."""
    digits = load_data("mnist-5k").train
    for label in range(10):
        (folder / "images" / str(label)).mkdir(parents=True)
        for index in (digits.labels == label).nonzero().flatten()[:4].tolist():
            save_image(digits.images[index], folder / "images" / str(label) / f"{index}.png")
    for name, seed in (("content", 0), ("style", 1)):
        noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))
        save_image(noise, folder / f"{name}.png")
        Image.open(folder / f"{name}.png").resize((side, side)).save(folder / f"{name}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=list(NETWORKS), help="only these networks; unlisted ones get 64 pixels"
    )
    parser.add_argument("--verbs", nargs="*", default=QUICK, choices=VERBS, help="the commands to try")
    parser.add_argument("--out", type=Path, help="file for the table in Markdown")
    arguments = parser.parse_args()
    lines = [f"| network | pixels | {' | '.join(arguments.verbs)} |", f"| --- | --- |{' --- |' * len(arguments.verbs)}"]
    notes: list[str] = []
    faults = 0
    for name in arguments.only:
        side, cells = NETWORKS.get(name, 64), []
        for verb in arguments.verbs:
            with tempfile.TemporaryDirectory() as folder:
                write_images(Path(folder), drawing_side(side))
                start = time.monotonic()
                outcome, detail = run(verb, commands(name, side, Path(folder))[verb])
                detail = detail.replace(folder, "FOLDER")
            sys.stderr.write(f"{name} {verb}: {outcome} {time.monotonic() - start:.0f} s {detail}\n")
            cells.append(outcome)
            faults += outcome == "FAULT"
            if detail:
                notes.append(f"* `{name}`, {verb}: {detail}")
        lines.append(f"| `{name.removesuffix('@none')}` | {side} | {' | '.join(cells)} |")
    table = "\n".join([*lines, "", *notes]) + "\n"
    sys.stdout.write(table)
    if arguments.out:
        arguments.out.write_text(table)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
