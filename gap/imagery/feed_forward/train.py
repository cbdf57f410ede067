"""Train a network that draws any content in any style in one pass, from options to artifact."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gap.classifiers.provenance import data_fingerprints
from gap.classifiers.task import load_classifiers, parse_input_shape
from gap.core.artifact import Artifact
from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.data.dataset import Dataset, Split
from gap.data.registry import load_data
from gap.imagery.backbone import default_content_layers, default_layers, prepare_backbone
from gap.imagery.feed_forward.options import StylizerOptions
from gap.imagery.feed_forward.stylizer import KIND, extract
from gap.imagery.losses import ColorGramLoss, ContentLoss, GramLoss
from gap.imagery.objectives import Activations, TotalVariation
from gap.models.feature_extractor import FeatureExtractor
from gap.models.stylizers import Stylizer, make_stylizer
from gap.training.augmentation import make_augmentation
from gap.training.runtime import main_first, make_accelerator, preserve_process_state
from gap.training.task import Backward, TrainingTask, with_adamw
from gap.training.trainer import Callback, TrainingRun, TrainSchedule, train

# Pictures are read so many times larger than they are trained on, so that a random part is never enlarged.
LOAD_SCALE = 2


class StylizerTraining(TrainingTask):
    """The objective of stylizing, asked of a network that draws in one pass (Johnson et al., 2016), for styles that
    change from picture to picture."""

    def __init__(
        self,
        network: Stylizer,
        extractor: FeatureExtractor,
        layers: Sequence[str],
        kept: Sequence[str],
        styles: Dataset,
        options: StylizerOptions,
    ) -> None:
        """The stylizer sees, and style is compared at, `layers` of the extractor; content is compared at `kept`."""
        self.modules = {"stylizer": with_adamw(network, options.lr)}
        self.encode_style = network.encode_style
        self.extractor, self.layers, self.kept = extractor, layers, kept
        self.styles, self.options = styles, options
        self.augmentation = make_augmentation((options.size, options.size), flip=True, crop=1 / LOAD_SCALE)

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        chosen = torch.randint(len(self.styles.train), (len(images),))
        styles = self.augmentation(_pictures(self.styles.train, chosen, images.device))
        _, metrics = self._drawn(self.augmentation(images), styles)
        loss = metrics["objective"].mean()
        self.modules["stylizer"].update(loss, backward)
        return {"loss": loss} | {
            name: values.detach().mean() for name, values in metrics.items() if name != "objective"
        }

    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        parts = [self._drawn(*self._held_out(part)) for part in images.split(self.options.batch_size)]
        return {name: torch.cat([metrics[name] for _, metrics in parts]) for name in parts[0][1]}

    def sample_images(self, images: Tensor) -> dict[str, Tensor]:
        contents, styles = self._held_out(images)
        return {"content": contents, "style": styles, "drawn": self._drawn(contents, styles)[0]}

    def _held_out(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Contents and held-out styles at the size they are trained on: which style is a matter of the content alone,
        whoever judges it and beside whatever others."""
        split = self.styles.validation
        chosen = (images * 255).round().long().flatten(1).sum(dim=1).cpu() % len(split)
        styles = _pictures(split, chosen, images.device)
        size = (self.options.size, self.options.size)
        contents, styles = (F.interpolate(each, size, mode="bilinear", antialias=True) for each in (images, styles))
        return contents, styles

    def _check_layers(self, activations: Activations) -> None:
        """Raise GapError naming a layer that passes no gradient to the drawing: nothing would be learned from it."""
        for name in (*self.layers, *self.kept):
            if not activations.layers[name].requires_grad:
                raise GapError(
                    f"layer {name} passes no gradient to the drawing: the stylizer would learn nothing from it;"
                    " use a backbone that passes gradients at its stages"
                )

    def _drawn(self, contents: Tensor, styles: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Contents in styles, and the objective of each with its parts."""
        module = self.modules["stylizer"]
        with frozen(self.extractor.run):
            with torch.no_grad():
                of, like = extract(self.extractor, contents), extract(self.extractor, styles)
                code = self.encode_style([like[name] for name in self.layers])
            drawn = module.network([of[name] for name in self.layers], code, tuple(contents.shape[-2:]))
            activations = Activations(drawn, extract(self.extractor, drawn))
            if activations.images.requires_grad:
                self._check_layers(activations)
            style = _mean([GramLoss(name, like[name])(activations) for name in self.layers])
            content = _mean([ContentLoss(name, of[name])(activations) for name in self.kept])
            colors = ColorGramLoss(styles)(activations)
        asked = self.options
        total = content + asked.style_weight * (style + asked.color_weight * colors)
        total = total + asked.tv_weight * TotalVariation()(activations)
        return drawn, {"objective": total, "style": style, "content": content, "colors": colors}


@preserve_process_state()
def train_stylizer(
    options: StylizerOptions, folder: Path | str, callbacks: Sequence[Callback] = (), *, resume: bool = False
) -> Artifact:
    """Train a stylizer and leave it as an artifact in `folder`, which the caller has made ready.

    Raises GapError when backbone and pictures do not fit.
    """
    run = TrainingRun(Path(folder), make_accelerator(options), callbacks, resume)
    device = run.accelerator.device
    room = (LOAD_SCALE * options.size, LOAD_SCALE * options.size)
    with main_first(run.accelerator):
        asked = parse_input_shape(options.input)
        (backbone,) = load_classifiers([options.backbone], asked, (3, room), options.mean, options.std)
        channels = backbone.spec.channels
        contents, styles = (
            load_data(name, options.data_root, channels=channels, size=room)
            for name in (options.content, options.style)
        )
    if not len(styles.train):
        raise GapError(f"{options.style} has no pictures to train on beside those held out; give five or more")
    layers, kept = default_layers(backbone), default_content_layers(backbone)
    backbone.to(device)
    some = _pictures(contents.train, torch.arange(min(8, len(contents.train))), device)
    extractor = prepare_backbone(backbone, some, list(dict.fromkeys([*layers, *kept])))
    network, widths = _fresh(options.type, extractor, layers, some, channels)
    training = StylizerTraining(network, extractor, layers, kept, styles, options)
    schedule = TrainSchedule(options.epochs, options.batch_size, options.seed)
    fingerprints = data_fingerprints(contents, [backbone]) | data_fingerprints(styles)
    metrics = train(training, contents.train, contents.validation, schedule, run, fingerprints)
    card: dict[str, Any] = {
        "backbone": backbone.describe(),
        "type": options.type,
        "layers": layers,
        "widths": widths,
        "content": contents.describe(),
        "style": styles.describe(),
        "metrics": {"validation": metrics},
        "options": options.to_dict(),
    }
    return run.save(KIND, network.state_dict(), card)


@torch.no_grad()
def _fresh(
    type: str, extractor: FeatureExtractor, layers: Sequence[str], images: Tensor, channels: int
) -> tuple[Stylizer, list[int]]:
    """A fresh stylizer that knows how large each layer's output is for these images, and the layers' widths."""
    with frozen(extractor.run):
        seen = extract(extractor, images)
        feature_maps = [seen[name] for name in layers]
    if any(each.ndim != 4 for each in feature_maps):
        raise GapError("a stylizer needs layers that give maps; take a convolutional backbone")
    widths = [each.shape[1] for each in feature_maps]
    network = make_stylizer(type, widths, channels)
    network.scales = torch.stack([each.float().square().mean().sqrt() for each in feature_maps]).cpu()
    return network.to(images.device).to(memory_format=torch.channels_last), widths


def _pictures(split: Split, chosen: Tensor, device: torch.device) -> Tensor:
    images, _ = next(iter(split.batches([chosen], device)))
    return images


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)
