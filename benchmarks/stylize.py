"""Seconds per evaluation of style transfer, compared with a plain loop over the same network and layers.

    python benchmarks/stylize.py CONTENT STYLE [--backbone drawing-hardened] [--size 256] [--pystiche]

The plain loop is the usual one: float32, contiguous format, hooks, a complete forward pass, frozen weights, Gram
matrices, torch's L-BFGS with the same history. Both have the same objective (relative losses at the same layers with
the same weights), and alternate. Medians, ratios, and the final objectives are printed. `--pystiche` adds pystiche (pip
install pystiche --no-deps), for a backbone that is a chain of layers such as VGG's. Its losses are weighted in another
way, so that only its time can be compared.
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
    """The usual loop; returns the final objective."""
    names = default_layers(backbone)
    (content_name,) = default_content_layers(backbone)
    aliases = layer_aliases(backbone.network)
    outputs: dict[str, Tensor] = {}
    for name in {*names, content_name}:
        module = backbone.network.get_submodule(aliases.get(name, name))
        module.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
    backbone.eval().requires_grad_(False)

    def features(image: Tensor) -> dict[str, Tensor]:
        backbone.network(backbone.normalize(image[None]))
        return dict(outputs)

    def gram(maps: Tensor) -> Tensor:
        flat = maps[0].flatten(1)
        return flat @ flat.T / flat.shape[1]

    style_features = features(style)
    style_grams = {name: gram(style_features[name]) for name in names}
    content_target = features(content)[content_name]

    def objective(image: Tensor) -> Tensor:
        image_features = features(image)
        style_losses = [
            (gram(image_features[name]) - target).square().sum() / target.square().sum()
            for name, target in style_grams.items()
        ]
        content_loss = (image_features[content_name] - content_target).square().mean() / content_target.var()
        return STYLE_WEIGHT * torch.stack(style_losses).mean() + content_loss

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
    """The loop of pystiche with the same layers; returns the number of evaluations."""
    for name in ("alexnet", "vgg"):  # pystiche uses these tables of addresses, which torchvision no longer has
        vars(import_module(f"torchvision.models.{name}"))["model_urls"] = defaultdict(str)
    from pystiche import enc, loss, optim

    paths = [layer_aliases(backbone.network).get(name, name) for name in default_layers(backbone)]
    root = paths[0].rpartition(".")[0]
    chain = backbone.network.get_submodule(root).eval().requires_grad_(False)
    encoder = enc.MultiLayerEncoder([("start", _Preprocessing(backbone)), *chain.named_children()])
    names = [path.removeprefix(f"{root}.") for path in paths]
    criterion = loss.PerceptualLoss(
        content_loss=loss.FeatureReconstructionLoss(encoder.extract_encoder(names[-2])),
        style_loss=loss.MultiLayerEncodingLoss(
            encoder, names, lambda part, weight: loss.GramLoss(part, score_weight=weight), score_weight=1e4
        ),
    )
    criterion.set_content_image(content[None])
    criterion.set_style_image(style[None])
    evaluations_done = 0

    def counted_criterion(image: Tensor) -> object:
        nonlocal evaluations_done
        evaluations_done += 1
        tick()
        return criterion(image)

    optim.image_optimization(
        content[None].clone().requires_grad_(True),
        counted_criterion,
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
    return evaluations_done


class _Preprocessing(nn.Module):
    """The modules before the chain: the normalizer, and the network's method `prepare` if it has one."""

    def __init__(self, backbone: Classifier) -> None:
        super().__init__()
        self.backbone = [backbone]

    def forward(self, images: Tensor) -> Tensor:
        (backbone,) = self.backbone
        prepare = getattr(backbone.network, "prepare", None)
        images = backbone.normalize(images)
        return prepare(images) if prepare else images


def draw_by_gap(content: Tensor, style: Tensor, backbone: Classifier, evaluations: int, tick: Tick) -> float:
    """Style transfer by gap; returns the final objective."""
    config = StyleTransferOptions(evaluations=evaluations, min_size=10**6, tv_weight=0.0, color_weight=0.0)
    result = transfer_style(content, [style], backbone, options=config, tell=lambda progress: tick())
    return float(result.loss_summary.splitlines()[0].rpartition(":")[2])


def record_time(ticks: list[float]) -> None:
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
    variants: dict[str, Callable[[Tensor, Tensor, Classifier, int, Tick], float]] = {"gap": draw_by_gap, "plain": plain}
    if arguments.pystiche:
        variants["pystiche"] = pystiche
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    preparation: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(arguments.rounds + 1):
        for name, run in variants.items():
            backbone = load_classifier(arguments.backbone, channels=3, size=(224, 224), lenient=True)
            ticks = [time.perf_counter()]
            result = run(content, style, backbone, arguments.evaluations, partial(record_time, ticks))
            if turn:  # the first round is a warmup
                preparation[name].append(ticks[1] - ticks[0])
                seconds[name].append(statistics.median(after - before for before, after in pairwise(ticks[1:])))
            print(f"{name:8} {'evaluations' if name == 'pystiche' else 'objective'} {result:.4g}", flush=True)
    for name, timings in seconds.items():
        preparation_time = statistics.median(preparation[name])
        milliseconds = 1000 * statistics.median(timings)
        print(f"{name:8} {milliseconds:7.1f} ms an evaluation, the first one after {preparation_time:.2f} s")
    for name in list(seconds)[1:]:
        ratios = [slow / fast for slow, fast in zip(seconds[name], seconds["gap"], strict=True)]
        print(
            f"gap is {statistics.median(ratios):.2f} times as fast as {name} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
