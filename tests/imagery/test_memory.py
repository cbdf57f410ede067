"""What a drawing needs is known from a part of it."""

import gc

import pytest
import torch
from gap.models.classifiers import CifarResNet18

from gap.classifier import Classifier, Facts
from gap.errors import GapError
from gap.imagery.memory import check_memory, estimate
from gap.imagery.view import View, prepared


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
