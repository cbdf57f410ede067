"""The memory that a drawing needs is estimated from a crop of it."""

import gc

import pytest
import torch
from gap.models.classifiers import CifarResNet18
from torch import nn

from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.core.errors import GapError
from gap.imagery.backbone import MultiFeatureExtractor, prepare_backbone
from gap.imagery.memory import OPTIMIZER_COPIES, check_memory, estimate


def count_tensors() -> int:
    gc.collect()
    return sum(isinstance(item, torch.Tensor) for item in gc.get_objects())


@pytest.fixture
def extractors() -> MultiFeatureExtractor:
    torch.manual_seed(0)
    backbone = Classifier(
        CifarResNet18(3, 10, width=4), ClassifierSpec(3, (32, 32), 10), name="net", architecture="net"
    ).eval()
    return MultiFeatureExtractor({"": prepare_backbone(backbone, torch.rand(1, 3, 32, 32), ["relu2_x", "relu5_x"])})


def test_estimate_from_a_crop_equals_that_from_the_whole_image(extractors: MultiFeatureExtractor) -> None:
    images = torch.rand(1, 3, 128, 96)
    whole = estimate(extractors, images, (128, 96))
    assert estimate(extractors, images[..., :48, :48], (128, 96)) == pytest.approx(whole, rel=0.05)
    assert estimate(extractors, images.repeat(3, 1, 1, 1), (128, 96)) == pytest.approx(3 * whole, rel=0.05)
    # The backward pass of a convolution needs its input: 4 channels or more, in float32, at full size, several times.
    assert whole > 10 * images.nbytes


def test_estimate_weights_do_not_grow_with_the_image() -> None:
    """A linear layer keeps its weights for the backward pass, transposed, and in half precision under autocast."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 64, 4000), nn.Linear(4000, 10))
    backbone = Classifier(network, ClassifierSpec(3, (32, 32), 10), name="net", architecture="net").eval()
    images = torch.rand(1, 3, 32, 32)
    for half in (False, True):
        extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, images, ["3"])}, half=half)
        assert estimate(extractors, images, (320, 320)) < 100 * (OPTIMIZER_COPIES + 10) * images.nbytes


def test_estimate_repeated_gives_the_same_value() -> None:
    """Catches: a first forward pass that runs beyond the deepest layer needed."""
    torch.manual_seed(0)
    backbone = Classifier(
        CifarResNet18(3, 10, width=4), ClassifierSpec(3, (32, 32), 10), name="net", architecture="net"
    ).eval()
    images = torch.rand(1, 3, 48, 48)
    extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, images, ["relu2_x"])})
    assert estimate(extractors, images, (480, 480)) == estimate(extractors, images, (480, 480))


def test_estimate_keeps_no_tensors(extractors: MultiFeatureExtractor) -> None:
    images = torch.rand(1, 3, 48, 48)
    estimate(extractors, images, (48, 48))
    before = count_tensors()
    for _ in range(3):
        estimate(extractors, images, (48, 48))
    assert count_tensors() == before


def test_check_memory_too_little_memory_raises(
    extractors: MultiFeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(1, 3, 48, 48)
    needed = estimate(extractors, images, (480, 480))
    for free, fits in ((1.01 * needed, True), (0.99 * needed, False)):
        monkeypatch.setattr("gap.imagery.memory.available", lambda device, free=free: free)
        if fits:
            check_memory(extractors, images, (480, 480))
        else:
            with pytest.raises(GapError, match=r"a drawing of 480 x 480 pixels: about .* make it smaller"):
                check_memory(extractors, images, (480, 480))
