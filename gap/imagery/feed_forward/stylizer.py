"""Feed-forward stylizers: trained networks that draw any content in any style in one pass, and their artifacts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from gap.classifiers.adapters import ClassifierLike, as_classifier, on_device
from gap.classifiers.classifier import Classifier, ClassifierMetadata, load_classifier
from gap.classifiers.registry import runs_user_code, split_name
from gap.core.artifact import CARD, TENSORS, Artifact, Count, open_artifact
from gap.core.device import pick_device
from gap.core.errors import GapError
from gap.core.frozen import frozen
from gap.core.network import to_channels_last
from gap.core.safe_load import check_shapes
from gap.imagery.backbone import check_size, prepare_backbone
from gap.imagery.feed_forward.options import StylizerType
from gap.imagery.style_transfer import normalize_weights
from gap.models.feature_extractor import SHAPE_ERRORS, FeatureExtractor
from gap.models.stylizers import Stylizer, make_stylizer

KIND = "stylizer"


class StylizerCard(BaseModel):
    """The card of a stylizer."""

    backbone: ClassifierMetadata
    type: StylizerType
    layers: list[str] = Field(min_length=1)
    widths: list[Count]


class FeedForwardStylizer:
    """A frozen stylizer with the frozen backbone that encodes its inputs, for images with `channels`."""

    def __init__(self, network: Stylizer, extractor: FeatureExtractor, channels: int) -> None:
        self.network, self.extractor, self.channels = network, extractor, channels

    @property
    def device(self) -> torch.device:
        """The device of the stylizer."""
        return self.network.scales.device

    @torch.no_grad()
    def __call__(self, content: Tensor, styles: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
        """The content, C x H x W in [0, 1], in the style of one image or in a weighted mix of several, of any sizes.

        Raises GapError for sizes that the backbone does not support, and for invalid weights.
        """
        style_weights = normalize_weights(weights, len(styles))
        with frozen(self.network, self.extractor.run):
            codes = [self.network.encode_style(self._extract(style)) for style in styles]
            mixed_code = [
                sum(
                    (
                        style_weight * layer_code
                        for style_weight, layer_code in zip(style_weights, layer_codes, strict=True)
                    ),
                    start=torch.zeros_like(layer_codes[0]),
                )
                for layer_codes in zip(*codes, strict=True)
            ]
            height, width = content.shape[-2:]
            drawing: Tensor = self.network(self._extract(content), mixed_code, (height, width))
        return drawing[0]

    def _extract(self, picture: Tensor) -> list[Tensor]:
        try:
            return list(extract(self.extractor, picture[None]).values())
        except SHAPE_ERRORS:
            check_size(self.extractor, picture[None], "the backbone")
            raise


class TrainedStylizer(FeedForwardStylizer):
    """A stylizer that `train_stylizer` trained.

    Attributes:
        artifact: its weights and its card, as they are saved.
        history: the metrics during the training, a row every 20 steps and after each epoch.
    """

    def __init__(
        self, stylizer: FeedForwardStylizer, artifact: Artifact, history: Sequence[dict[str, Any]] = ()
    ) -> None:
        super().__init__(stylizer.network, stylizer.extractor, stylizer.channels)
        self.artifact, self.history = artifact, history

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The last metrics on the validation images."""
        metrics: dict[str, dict[str, float]] = self.artifact.card["metrics"]
        return metrics

    def save(self, folder: Path | str) -> None:
        """Save weights and card in a folder, from which `gap.load_stylizer` and `gap stylize --fast` load them.

        Raises GapError where the folder holds files that gap did not write.
        """
        self.artifact.save(folder)


def extract(extractor: FeatureExtractor, images: Tensor) -> dict[str, Tensor]:
    """The feature maps of the layers, in their order, for images N x C x H x W in [0, 1]."""
    return extractor(images)


def load_stylizer(
    folder: Path | str, backbone: ClassifierLike | None = None, device: torch.device | str = "cpu"
) -> FeedForwardStylizer:
    """The stylizer in a folder that `gap train-stylizer` wrote, or in which a `TrainedStylizer` was saved.

    Args:
        folder: the folder.
        backbone: the backbone of the training; by default the one in the card, which must then have a name.
        device: the torch device.

    Raises:
        GapError: when the folder has no stylizer or is damaged, for a device that is not available, and where the
            backbone is not that of the training, or is user code that only the card names, which is not run.
    """
    return load_stylizer_artifact(open_artifact(Path(folder), KIND), backbone, pick_device(device))


def load_stylizer_artifact(
    artifact: Artifact, backbone: ClassifierLike | None, device: torch.device
) -> FeedForwardStylizer:
    """The stylizer of an artifact; arguments and errors are those of `load_stylizer`."""
    card = artifact.read(StylizerCard)
    backbone = _backbone(card.backbone, artifact) if backbone is None else _given_backbone(backbone, card.backbone)
    if backbone.fingerprint() != card.backbone.fingerprint:
        raise GapError(
            f"{artifact.folder} was trained with {card.backbone.name} as it then was; {backbone.name} is another"
        )
    with torch.device("meta"):  # without memory: the sizes in a damaged card may be huge
        empty_network = make_stylizer(card.type, card.widths, backbone.spec.channels)
    check_shapes(empty_network.state_dict(), artifact.tensors(), artifact.folder / TENSORS)
    network = make_stylizer(card.type, card.widths, backbone.spec.channels)
    artifact.fit(network)
    images = torch.rand(1, backbone.spec.channels, *backbone.spec.size)
    extractor = prepare_backbone(on_device(backbone, device), images.to(device), card.layers)
    widths = [output.shape[1] for output in extract(extractor, images.to(device)).values()]
    if widths != card.widths:
        raise GapError(f"{artifact.folder / CARD} is damaged at widths: its layers have {widths}; make it again")
    return FeedForwardStylizer(to_channels_last(network.eval().to(device)), extractor, backbone.spec.channels)


def _given_backbone(backbone: ClassifierLike, metadata: ClassifierMetadata) -> Classifier:
    """A backbone of the user, with the input of the training where it does not define its own."""
    if isinstance(backbone, Classifier):
        return backbone
    return as_classifier(
        backbone,
        channels=metadata.channels,
        size=metadata.size,
        mean=metadata.mean,
        std=metadata.std,
        lenient=True,
    )


def _backbone(metadata: ClassifierMetadata, artifact: Artifact) -> Classifier:
    if runs_user_code(metadata.architecture) or runs_user_code(split_name(metadata.name)[0]):
        raise GapError(f"{artifact.folder / CARD} names {metadata.name}, which is code; name it yourself: `backbone`")
    try:
        return load_classifier(
            metadata.name,
            channels=metadata.channels,
            size=metadata.size,
            mean=metadata.mean,
            std=metadata.std,
            lenient=True,
        )
    except GapError as error:
        raise GapError(f"the backbone of {artifact.folder} is not found ({error}); give it as `backbone`") from error
