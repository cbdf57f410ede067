"""What a drawing needs is known from a part of it."""

import gc

import pytest
import torch
from gap.models.classifiers import CifarResNet18
from torch import nn

from gap.classifiers.classifier import Classifier, Facts
from gap.core.errors import GapError
from gap.imagery.backbone import View, prepared
from gap.imagery.memory import REMEMBERED, check_memory, estimate


def tensors() -> int:
    gc.collect()
    return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


@pytest.fixture
def view() -> View:
    torch.manual_seed(0)
    backbone = Classifier(CifarResNet18(3, 10, width=4), Facts(3, (32, 32), 10), name="net", architecture="net").eval()
    return View({"": prepared(backbone, torch.rand(1, 3, 32, 32), ["relu2_x", "relu5_x"])})


def test_the_estimate_is_the_same_from_any_size(view: View) -> None:
    images = torch.rand(1, 3, 128, 96)
    whole = estimate(view, images, (128, 96))
    assert estimate(view, images[..., :48, :48], (128, 96)) == pytest.approx(whole, rel=0.05)
    assert estimate(view, images.repeat(3, 1, 1, 1), (128, 96)) == pytest.approx(3 * whole, rel=0.05)
    # What a convolution's way back needs is its input: 4 channels and more, in float32, at full size, several times.
    assert whole > 10 * images.nbytes


def test_weights_do_not_grow_with_the_picture() -> None:
    """A linear layer keeps its weights for the way back, transposed; cast, in half precision."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 64, 4000), nn.Linear(4000, 10))
    backbone = Classifier(network, Facts(3, (32, 32), 10), name="net", architecture="net").eval()
    images = torch.rand(1, 3, 32, 32)
    for half in (False, True):
        view = View({"": prepared(backbone, images, ["3"])}, half=half)
        assert estimate(view, images, (320, 320)) < 100 * (REMEMBERED + 10) * images.nbytes


def test_the_first_look_is_as_good_as_any() -> None:
    """It reads no further than the deepest layer asked for."""
    torch.manual_seed(0)
    backbone = Classifier(CifarResNet18(3, 10, width=4), Facts(3, (32, 32), 10), name="net", architecture="net").eval()
    images = torch.rand(1, 3, 48, 48)
    view = View({"": prepared(backbone, images, ["relu2_x"])})
    assert estimate(view, images, (480, 480)) == estimate(view, images, (480, 480))


def test_the_estimate_keeps_nothing(view: View) -> None:
    images = torch.rand(1, 3, 48, 48)
    estimate(view, images, (48, 48))
    before = tensors()
    for _ in range(3):
        estimate(view, images, (48, 48))
    assert tensors() == before


def test_too_little_memory_is_said(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(1, 3, 48, 48)
    needed = estimate(view, images, (480, 480))
    for free, fits in ((1.01 * needed, True), (0.99 * needed, False)):
        monkeypatch.setattr("gap.imagery.memory.available", lambda device, free=free: free)
        if fits:
            check_memory(view, images, (480, 480))
        else:
            with pytest.raises(GapError, match=r"a drawing of 480 x 480 pixels: about .* make it smaller"):
                check_memory(view, images, (480, 480))
