"""What a drawing needs is known from a part of it."""

import gc

import pytest
import torch
from gap.models.classifiers import CifarResNet18
from torch import nn

from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.core.errors import GapError
from gap.imagery.backbone import MultiFeatureExtractor, prepare_backbone
from gap.imagery.memory import OPTIMIZER_COPIES, check_memory, estimate


def tensors() -> int:
    gc.collect()
    return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


@pytest.fixture
def extractors() -> MultiFeatureExtractor:
    torch.manual_seed(0)
    backbone = Classifier(
        CifarResNet18(3, 10, width=4), ClassifierSpec(3, (32, 32), 10), name="net", architecture="net"
    ).eval()
    return MultiFeatureExtractor({"": prepare_backbone(backbone, torch.rand(1, 3, 32, 32), ["relu2_x", "relu5_x"])})


def test_the_estimate_is_the_same_from_any_size(extractors: MultiFeatureExtractor) -> None:
    images = torch.rand(1, 3, 128, 96)
    whole = estimate(extractors, images, (128, 96))
    assert estimate(extractors, images[..., :48, :48], (128, 96)) == pytest.approx(whole, rel=0.05)
    assert estimate(extractors, images.repeat(3, 1, 1, 1), (128, 96)) == pytest.approx(3 * whole, rel=0.05)
    # What a convolution's way back needs is its input: 4 channels and more, in float32, at full size, several times.
    assert whole > 10 * images.nbytes


def test_weights_do_not_grow_with_the_picture() -> None:
    """A linear layer keeps its weights for the way back, transposed; cast, in half precision."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 64, 4000), nn.Linear(4000, 10))
    backbone = Classifier(network, ClassifierSpec(3, (32, 32), 10), name="net", architecture="net").eval()
    images = torch.rand(1, 3, 32, 32)
    for half in (False, True):
        extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, images, ["3"])}, half=half)
        assert estimate(extractors, images, (320, 320)) < 100 * (OPTIMIZER_COPIES + 10) * images.nbytes


def test_the_first_look_is_as_good_as_any() -> None:
    """It reads no further than the deepest layer asked for."""
    torch.manual_seed(0)
    backbone = Classifier(
        CifarResNet18(3, 10, width=4), ClassifierSpec(3, (32, 32), 10), name="net", architecture="net"
    ).eval()
    images = torch.rand(1, 3, 48, 48)
    extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, images, ["relu2_x"])})
    assert estimate(extractors, images, (480, 480)) == estimate(extractors, images, (480, 480))


def test_the_estimate_keeps_nothing(extractors: MultiFeatureExtractor) -> None:
    images = torch.rand(1, 3, 48, 48)
    estimate(extractors, images, (48, 48))
    before = tensors()
    for _ in range(3):
        estimate(extractors, images, (48, 48))
    assert tensors() == before


def test_too_little_memory_is_said(extractors: MultiFeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(1, 3, 48, 48)
    needed = estimate(extractors, images, (480, 480))
    for free, fits in ((1.01 * needed, True), (0.99 * needed, False)):
        monkeypatch.setattr("gap.imagery.memory.available", lambda device, free=free: free)
        if fits:
            check_memory(extractors, images, (480, 480))
        else:
            with pytest.raises(GapError, match=r"a drawing of 480 x 480 pixels: about .* make it smaller"):
                check_memory(extractors, images, (480, 480))
