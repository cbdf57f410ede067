"""Seconds per evaluation of stylizing beside a plain loop over the same network and layers, in one run.

    python benchmarks/stylize.py CONTENT STYLE [--backbone drawing-hardened] [--size 256] [--pystiche]

The plain loop is the usual one: float32, contiguous, hooks, the whole network run, its weights frozen, Gram matrices,
torch's L-BFGS with the same history. Both are handed the same objective (shares of style and content at the same layers
with the same weights), and take turns; medians, ratios, and the objective that each reached are printed. `--pystiche`
has pystiche (pip install pystiche --no-deps) take its turn, on a backbone that is one chain of layers such as VGG's; it
weighs its losses in its own way, so that only its time can be compared.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import torch
from gap.models.feature_extractor import layer_aliases
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier, load_classifier
from gap.imagery.backbone import default_content_layers, default_layers
from gap.imagery.drawings import sized_image
from gap.imagery.options import STYLE_WEIGHT, StyleTransferOptions
from gap.imagery.style_transfer import transfer_style

HISTORY = 20


Tick = Callable[[], None]


def plain(content: Tensor, style: Tensor, backbone: Classifier, evaluations: int, tick: Tick) -> float:
    """The loop as it is usually written; returns the objective it ends with."""
    names = default_layers(backbone)
    (content_name,) = default_content_layers(backbone)
    known = layer_aliases(backbone.network)
    read: dict[str, Tensor] = {}
    for name in {*names, content_name}:
        module = backbone.network.get_submodule(known.get(name, name))
        module.register_forward_hook(lambda module, given, output, name=name: read.update({name: output}))
    backbone.eval().requires_grad_(False)

    def features(image: Tensor) -> dict[str, Tensor]:
        backbone.network(backbone.normalize(image[None]))
        return dict(read)

    def gram(maps: Tensor) -> Tensor:
        flat = maps[0].flatten(1)
        return flat @ flat.T / flat.shape[1]

    painted = features(style)
    wanted = {name: gram(painted[name]) for name in names}
    kept = features(content)[content_name]

    def objective(image: Tensor) -> Tensor:
        seen = features(image)
        shares = [(gram(seen[name]) - target).square().sum() / target.square().sum() for name, target in wanted.items()]
        moved = (seen[content_name] - kept).square().mean() / kept.var()
        return STYLE_WEIGHT * torch.stack(shares).mean() + moved

    image = content.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [image], max_iter=evaluations, max_eval=evaluations, history_size=HISTORY, tolerance_grad=0, tolerance_change=0
    )

    def closure() -> Tensor:
        tick()
        image.data.clamp_(0, 1)
        optimizer.zero_grad()
        loss = objective(image) * image.numel()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return objective(image.clamp(0, 1)).item()


def pystiche(content: Tensor, style: Tensor, backbone: Classifier, evaluations: int, tick: Tick) -> float:
    """pystiche's own loop over the same chain and layers, until it has looked so often."""
    for name in ("alexnet", "vgg"):  # tables of addresses that torchvision no longer has, and pystiche asks for
        vars(import_module(f"torchvision.models.{name}"))["model_urls"] = defaultdict(str)
    from pystiche import enc, loss, optim

    paths = [layer_aliases(backbone.network).get(name, name) for name in default_layers(backbone)]
    root = paths[0].rpartition(".")[0]
    chain = backbone.network.get_submodule(root).eval().requires_grad_(False)
    encoder = enc.MultiLayerEncoder([("start", _Start(backbone)), *chain.named_children()])
    names = [path.removeprefix(f"{root}.") for path in paths]
    criterion = loss.PerceptualLoss(
        content_loss=loss.FeatureReconstructionLoss(encoder.extract_encoder(names[-2])),
        style_loss=loss.MultiLayerEncodingLoss(
            encoder, names, lambda part, weight: loss.GramLoss(part, score_weight=weight), score_weight=1e4
        ),
    )
    criterion.set_content_image(content[None])
    criterion.set_style_image(style[None])
    looks = 0

    def counted(image: Tensor) -> object:
        nonlocal looks
        looks += 1
        tick()
        return criterion(image)

    optim.image_optimization(
        content[None].clone().requires_grad_(True),
        counted,
        lambda image: torch.optim.LBFGS(
            [image],
            max_iter=evaluations,
            max_eval=evaluations,
            history_size=HISTORY,
            tolerance_grad=0,
            tolerance_change=0,
        ),
        num_steps=1,
        quiet=True,
    )
    return looks


class _Start(nn.Module):
    """What stands before the chain: the normalizer, and the network's own beginning where it has one (`prepare`)."""

    def __init__(self, backbone: Classifier) -> None:
        super().__init__()
        self.backbone = [backbone]

    def forward(self, images: Tensor) -> Tensor:
        (backbone,) = self.backbone
        prepare = getattr(backbone.network, "prepare", None)
        images = backbone.normalize(images)
        return prepare(images) if prepare else images


def ours(content: Tensor, style: Tensor, backbone: Classifier, evaluations: int, tick: Tick) -> float:
    """The same through gap."""
    config = StyleTransferOptions(evaluations=evaluations, min_size=10**6, tv_weight=0.0, color_weight=0.0)
    drawn = transfer_style(content, [style], backbone, options=config, tell=lambda progress: tick())
    return float(drawn.loss_summary.splitlines()[0].rpartition(":")[2])


def note(ticks: list[float]) -> None:
    ticks.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("content", type=Path)
    parser.add_argument("style", type=Path)
    parser.add_argument("--backbone", default="drawing-hardened")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pystiche", action="store_true")
    arguments = parser.parse_args()
    content, style = (sized_image(path, 3, arguments.size) for path in (arguments.content, arguments.style))
    contestants: dict[str, Callable[[Tensor, Tensor, Classifier, int, Tick], float]] = {"gap": ours, "plain": plain}
    if arguments.pystiche:
        contestants["pystiche"] = pystiche
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    readied: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(arguments.rounds + 1):
        for name, run in contestants.items():
            backbone = load_classifier(arguments.backbone, channels=3, size=(224, 224), lenient=True)
            ticks = [time.perf_counter()]
            reached = run(content, style, backbone, arguments.evaluations, partial(note, ticks))
            if turn:  # the first one warms up
                readied[name].append(ticks[1] - ticks[0])
                seconds[name].append(statistics.median(later - sooner for sooner, later in pairwise(ticks[1:])))
            print(f"{name:8} {'looked' if name == 'pystiche' else 'reached'} {reached:.4g}", flush=True)
    for name, each in seconds.items():
        ready = statistics.median(readied[name])
        print(f"{name:8} {1000 * statistics.median(each):7.1f} ms an evaluation, the first of them after {ready:.2f} s")
    for name in list(seconds)[1:]:
        ratios = [slow / fast for slow, fast in zip(seconds[name], seconds["gap"], strict=True)]
        print(
            f"gap is {statistics.median(ratios):.2f} times as fast as {name} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
