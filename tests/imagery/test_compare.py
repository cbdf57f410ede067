"""Backbones compared by what they draw."""

import pytest
import torch
from gap.models.classifiers import CifarResNet18
from torch import nn

from gap.classifier import Classifier, Facts
from gap.imagery.compare import Drawn, Judge, activation_entropy, draw_all, lead
from gap.imagery.stylize import Manner


def net(name: str = "net", seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(CifarResNet18(3, 10, width=4), Facts(3, (32, 32), 10), name=name, architecture="net").eval()


def curve(*points: tuple[float, float]) -> list[Drawn]:
    blank = torch.zeros(3, 4, 4)
    return [Drawn(0, 0, "net", float(place), blank, *point) for place, point in enumerate(points)]


def test_the_lead_is_taken_at_equal_content_distance() -> None:
    theirs = curve((0.1, 8.0), (0.2, 4.0), (0.4, 1.0))
    halved = curve((0.4, 0.5), (0.1, 4.0), (0.2, 2.0))
    assert lead(halved, theirs) == pytest.approx(2.0)
    assert lead(theirs, halved) == pytest.approx(0.5)
    assert lead(theirs, theirs) == pytest.approx(1.0)


def test_only_where_both_are() -> None:
    theirs = curve((0.1, 8.0), (0.2, 4.0))
    assert lead(curve((0.2, 1.0), (0.9, 1e-9)), theirs) == pytest.approx(4.0)
    assert lead(curve((0.3, 1.0), (0.9, 0.5)), theirs) is None


def test_the_judge_sees_no_distance_from_the_pictures_themselves() -> None:
    content, style = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    judge = Judge(net(), content, style)
    to_content, to_style = judge(content), judge(style)
    assert to_content[0] == pytest.approx(0, abs=1e-6) and to_content[1] > 1e-4
    assert to_style[1] == pytest.approx(0, abs=1e-6) and to_style[0] > 1e-2


def test_every_pair_by_every_backbone_and_weight() -> None:
    pictures = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    backbones = [net("one"), net("two", 1)]
    drawn = list(
        draw_all(
            pictures[:1],
            pictures[1:],
            backbones,
            net("judge", 2),
            weights=(1.0, 90.0),
            manner=Manner(evaluations=6, smoothness=0.0),
        )
    )
    assert [(each.style, each.backbone, each.weight) for each in drawn] == [
        (style, name, weight) for style in (0, 1) for name in ("one", "two") for weight in (1.0, 90.0)
    ]
    for light, heavy in zip(drawn[::2], drawn[1::2], strict=True):
        assert heavy.content_distance > light.content_distance


def test_entropy_is_1_where_all_are_alike_and_0_where_one_is_all() -> None:
    class Stage(nn.Module):
        def __init__(self, peak: bool) -> None:
            super().__init__()
            self.conv, self.peak = nn.Conv2d(3, 5, 1), peak

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            given = torch.zeros_like(self.conv(images)) if self.peak else torch.ones_like(self.conv(images))
            given[:, 0, 0, 0] = 1
            return given

    def entropy(peak: bool) -> float:
        network = nn.Sequential(Stage(peak), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return activation_entropy(
            Classifier(network, Facts(3, (8, 8), 9), name="a", architecture="a"), torch.rand(3, 8, 8)
        )

    assert entropy(peak=False) == pytest.approx(1.0)
    assert entropy(peak=True) == pytest.approx(0.0, abs=1e-6)
