"""Training of a feed-forward stylizer, from options to artifact."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gap.classifiers.adapters import ClassifierLike, name_of, on_device
from gap.classifiers.classifier import Classifier
from gap.classifiers.provenance import data_fingerprints
from gap.classifiers.task import find_device, load_classifiers, parse_input_shape
from gap.core.artifact import Artifact
from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.core.network import to_channels_last
from gap.data.adapters import data_name, image_data, is_data_name
from gap.data.dataset import Dataset, Split
from gap.data.registry import converted, load_data
from gap.imagery.backbone import default_content_layers, default_layers, prepare_backbone
from gap.imagery.feed_forward.options import StylizerOptions
from gap.imagery.feed_forward.stylizer import KIND, TrainedStylizer, extract, load_stylizer_artifact
from gap.imagery.losses import ColorGramLoss, ContentLoss, GramLoss
from gap.imagery.objectives import Activations, TotalVariation
from gap.imagery.options import BACKBONE
from gap.models.feature_extractor import FeatureExtractor
from gap.models.stylizers import Stylizer, make_stylizer
from gap.training.augmentation import make_augmentation
from gap.training.run import run_training
from gap.training.runtime import main_first, make_accelerator, preserve_process_state
from gap.training.task import Backward, TrainingTask, with_adamw
from gap.training.trainer import Callback, TrainingRun, TrainSchedule, train

# Images are loaded larger than the training size by this factor, so that random crops are never enlarged.
LOAD_SCALE = 2


class StylizerTraining(TrainingTask):
    """Trains a network that stylizes in one pass, by the loss of style transfer (Johnson et al., 2016)."""

    def __init__(
        self,
        network: Stylizer,
        extractor: FeatureExtractor,
        layers: Sequence[str],
        content_layers: Sequence[str],
        styles: Dataset,
        options: StylizerOptions,
    ) -> None:
        """The outputs of `layers` are the inputs of the stylizer; they are also the style layers of the loss."""
        self.modules = {"stylizer": with_adamw(network, options.lr)}
        self.encode_style = network.encode_style
        self.extractor, self.layers, self.content_layers = extractor, layers, content_layers
        self.styles, self.options = styles, options
        self.augmentation = make_augmentation((options.size, options.size), flip=True, crop=1 / LOAD_SCALE)

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        indices = torch.randint(len(self.styles.train), (len(images),))
        styles = self.augmentation(_images_at(self.styles.train, indices, images.device))
        _, metrics = self._draw(self.augmentation(images), styles)
        loss = metrics["objective"].mean()
        self.modules["stylizer"].update(loss, backward)
        return {"loss": loss} | {
            name: values.detach().mean() for name, values in metrics.items() if name != "objective"
        }

    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        parts = [self._draw(*self._validation_inputs(part)) for part in images.split(self.options.batch_size)]
        return {name: torch.cat([metrics[name] for _, metrics in parts]) for name in parts[0][1]}

    def sample_images(self, images: Tensor) -> dict[str, Tensor]:
        contents, styles = self._validation_inputs(images)
        return {"content": contents, "style": styles, "drawn": self._draw(contents, styles)[0]}

    def _validation_inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Contents and validation styles in the training size.

        The style of a content depends on its pixels only, not on the process or the other images of a batch.
        """
        split = self.styles.validation
        indices = (images * 255).round().long().flatten(1).sum(dim=1).cpu() % len(split)
        styles = _images_at(split, indices, images.device)
        size = (self.options.size, self.options.size)
        contents, styles = (F.interpolate(batch, size, mode="bilinear", antialias=True) for batch in (images, styles))
        return contents, styles

    def _check_layers(self, activations: Activations) -> None:
        """Raise GapError naming a layer that passes no gradient to the drawing: its loss would have no effect."""
        for name in (*self.layers, *self.content_layers):
            if not activations.layers[name].requires_grad:
                raise GapError(
                    f"layer {name} passes no gradient to the drawing: the stylizer would learn nothing from it;"
                    " use a backbone that passes gradients at its stages"
                )

    def _draw(self, contents: Tensor, styles: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The drawings, and the objective of each with its parts."""
        module = self.modules["stylizer"]
        with frozen(self.extractor.run):
            with torch.no_grad():
                content_maps, style_maps = extract(self.extractor, contents), extract(self.extractor, styles)
                code = self.encode_style([style_maps[name] for name in self.layers])
            drawings = module.network([content_maps[name] for name in self.layers], code, tuple(contents.shape[-2:]))
            activations = Activations(drawings, extract(self.extractor, drawings))
            if activations.images.requires_grad:
                self._check_layers(activations)
            style = _mean([GramLoss(name, style_maps[name])(activations) for name in self.layers])
            content = _mean([ContentLoss(name, content_maps[name])(activations) for name in self.content_layers])
            colors = ColorGramLoss(styles)(activations)
        options = self.options
        total = content + options.style_weight * (style + options.color_weight * colors)
        total = total + options.tv_weight * TotalVariation()(activations)
        return drawings, {"objective": total, "style": style, "content": content, "colors": colors}


@dataclass(frozen=True)
class StylizerParts:
    """The backbone of a stylizer, and the images that it is trained on."""

    backbone: Classifier
    contents: Dataset
    styles: Dataset


@preserve_process_state()
def train_stylizer(
    content: Any,
    style: Any,
    *,
    backbone: ClassifierLike = BACKBONE,
    epochs: float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **options: Any,
) -> TrainedStylizer:
    """Train a network that draws any content in any style in one forward pass.

    Args:
        content: a name such as "cifar10" or "folder:PATH", or images of one size: a tensor or an array of N images, a
            list, a torch Dataset. Labels are not needed, and are ignored. 5% of the images are the validation set.
        style: the style images, in the same forms; two or more.
        backbone: the network that encodes the images and defines the loss: a name, a folder, a `gap.Classifier` or any
            `nn.Module`.
        epochs: passes over the content images; by default those of `gap train-stylizer`.
        batch_size: images per step.
        seed: the seed of all random choices.
        device: the torch device; by default that of the backbone.
        out: a folder for the result, with checkpoints and logs. Without one, the result stays in memory.
        resume: whether an unfinished training in `out` is continued.
        overwrite: whether the files of an earlier training in `out` are replaced.
        callbacks: functions that are called with a `TrainingProgress` every 20 steps and after each epoch.
        progress: whether a progress bar is shown.
        **options: further options of `gap train-stylizer` by name: type, size, style_weight, lr...

    Returns:
        A stylizer: a function of a content C x H x W in [0, 1] and a list of style images. It has the metrics during
        the training (`history`) and a method `save`; `gap.load_stylizer` loads a saved stylizer.

    Raises:
        GapError: when the backbone and the images do not match, or there are too few images.
        TrainingInterrupted: after Ctrl-C or SIGTERM, with the state saved in `out`.

    References:
        Johnson et al., 2016; Huang and Belongie, 2017 (AdaIN).
    """
    torch_device = find_device([backbone], device)
    given = {
        "content": data_name(content),
        "style": data_name(style),
        "backbone": name_of(backbone),
        "batch_size": batch_size,
        "seed": seed,
        "device": str(torch_device),
    }
    stylizer_options = StylizerOptions.read(given | ({} if epochs is None else {"epochs": epochs}), options)
    parts = _load_parts(stylizer_options, backbone, content, style)
    artifact, history = run_training(
        "train-stylizer", partial(train_stylizer_from_options, parts=parts), stylizer_options, out,
        resume=resume, overwrite=overwrite, callbacks=callbacks, progress=progress,
    )  # fmt: skip
    return TrainedStylizer(load_stylizer_artifact(artifact, parts.backbone, torch_device), artifact, history)


def train_stylizer_from_options(
    options: StylizerOptions,
    folder: Path | str,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool = False,
    parts: StylizerParts | None = None,
) -> Artifact:
    """Train a stylizer and save it as an artifact in `folder`, which the caller has prepared.

    `parts` replaces the backbone and the images of the options.

    Raises GapError when the backbone and the images do not match, or there are too few images.
    """
    run = TrainingRun(Path(folder), make_accelerator(options), callbacks, resume)
    device = run.accelerator.device
    if parts is None:
        with main_first(run.accelerator):
            parts = _load_parts(options, options.backbone, options.content, options.style)
    contents, styles = parts.contents, parts.styles
    for argument, images in (("content", contents), ("style", styles)):
        if not len(images.train) or not len(images.validation):
            raise GapError(
                f"{images.name} has too few pictures for `{argument}`: some are held out for validation; give five or"
                " more"
            )
    backbone = on_device(parts.backbone, device)
    channels = backbone.spec.channels
    layers, content_layers = default_layers(backbone), default_content_layers(backbone)
    sample = _images_at(contents.train, torch.arange(min(8, len(contents.train))), device)
    extractor = prepare_backbone(backbone, sample, list(dict.fromkeys([*layers, *content_layers])))
    torch.manual_seed(options.seed)  # loading the backbone and the images draws random numbers
    network, widths = _initialize_stylizer(options.type, extractor, layers, sample, channels)
    training = StylizerTraining(network, extractor, layers, content_layers, styles, options)
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


def _load_parts(options: StylizerOptions, backbone: ClassifierLike, content: Any, style: Any) -> StylizerParts:
    """The backbone and the images, given by name or as objects, in the channels of the backbone and in one size."""
    load_size = (LOAD_SCALE * options.size, LOAD_SCALE * options.size)
    shape = parse_input_shape(options.input)
    (classifier,) = load_classifiers([backbone], shape, (3, load_size), options.mean, options.std)
    channels = classifier.spec.channels

    def load(data: Any) -> Dataset:
        if is_data_name(data):
            return load_data(str(data), options.data_root, channels=channels, size=load_size)
        return converted(image_data(data), channels, load_size)

    return StylizerParts(classifier, load(content), load(style))


@torch.no_grad()
def _initialize_stylizer(
    type: str, extractor: FeatureExtractor, layers: Sequence[str], images: Tensor, channels: int
) -> tuple[Stylizer, list[int]]:
    """A new stylizer with the scales of the layers' outputs for these images, and the widths of the layers."""
    with frozen(extractor.run):
        outputs = extract(extractor, images)
        feature_maps = [outputs[name] for name in layers]
    if any(maps.ndim != 4 for maps in feature_maps):
        raise GapError("a stylizer needs layers that give maps; take a convolutional backbone")
    widths = [maps.shape[1] for maps in feature_maps]
    network = make_stylizer(type, widths, channels)
    network.scales = torch.stack([maps.float().square().mean().sqrt() for maps in feature_maps]).cpu()
    return to_channels_last(network.to(images.device)), widths


def _images_at(split: Split, indices: Tensor, device: torch.device) -> Tensor:
    images, _ = next(iter(split.batches([indices], device)))
    return images


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)
