"""Backbones compared by what they draw."""

import math

import pytest
import torch
from gap.models.classifiers import CifarResNet18
from torch import nn

from gap.classifiers.classifier import Classifier, Facts
from gap.core.errors import GapError
from gap.imagery.backbone import View, prepared
from gap.imagery.canvas import resized
from gap.imagery.comparison.ablations import Painter, ablated
from gap.imagery.comparison.methods import Drawn, Judge, activation_entropy, draw_all, lead
from gap.imagery.style_transfer import Manner


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


def test_what_is_worse_in_both_counts_for_nothing() -> None:
    theirs = curve((0.1, 8.0), (0.2, 4.0), (0.3, 4.0), (0.4, 4.0))
    stray = curve((0.1, 4.0), (0.2, 2.0), (0.3, 9.0), (0.4, 8.0))
    assert lead(stray, theirs) == pytest.approx(2.0)


def test_the_judge_sees_a_style_as_large_as_the_drawing() -> None:
    """The style itself, at that size, is as near as can be, however large its file."""
    torch.manual_seed(0)
    style = torch.rand(3, 96, 72).round()
    judge = Judge(net(), torch.rand(3, 32, 24), [style])
    assert judge(resized(style, (32, 24)))[1] == pytest.approx(0, abs=1e-6)


def test_the_judge_sees_no_distance_from_the_pictures_themselves() -> None:
    content, style = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    judge = Judge(net(), content, [style])
    to_content, to_style = judge(content), judge(style)
    assert to_content[0] == pytest.approx(0, abs=1e-6) and to_content[1] > 1e-4
    assert to_style[1] == pytest.approx(0, abs=1e-6) and to_style[0] > 1e-2


def test_the_judge_weighs_styles() -> None:
    content, one, other = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    apart = [Judge(net(), content, [style])(content)[1] for style in (one, other)]
    assert Judge(net(), content, [one, other], [3.0, 1.0])(content)[1] == pytest.approx(
        0.75 * apart[0] + 0.25 * apart[1]
    )


def test_ablations_change_what_they_say_and_nothing_else() -> None:
    painter = Painter("net", net(seed=3), Manner(evaluations=3))
    same = [parameter.clone() for parameter in painter.backbone.parameters()]
    shallow = ablated(painter, "shallow")
    assert (shallow.name, shallow.manner.layers, shallow.manner.content_layers) == (
        "net shallow",
        ["relu2_x", "relu3_x"],
        ["relu2_x"],
    )
    deep = Painter("net", painter.backbone, Manner(content_layers=["relu4_x"]))
    assert ablated(deep, "shallow").manner.content_layers == ["relu3_x"]
    assert ablated(painter, "smoothed").manner == Manner(evaluations=3, smoothed=True)
    random = ablated(painter, "random")
    changed = [not torch.equal(a, b) for a, b in zip(random.backbone.parameters(), same, strict=True) if a.dim() > 1]
    assert all(changed) and random.manner == painter.manner
    assert all(torch.equal(a, b) for a, b in zip(painter.backbone.parameters(), same, strict=True))
    with pytest.raises(GapError, match="did you mean smoothed"):
        ablated(painter, "smooth")


def test_a_smoothed_painter_sees_evener() -> None:
    painter = Painter("net", net(), Manner())
    content = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert activation_entropy(ablated(painter, "smoothed"), content) > activation_entropy(painter, content) + 0.01


def test_a_judge_that_draws_is_refused() -> None:
    painter, content = Painter("net", net(), Manner(evaluations=1)), torch.rand(3, 32, 32)
    with pytest.raises(GapError, match="cannot judge what it draws itself"):
        list(draw_all([content], [content], [painter], net("twin")))


def test_smoothing_takes_the_peaks_out() -> None:
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    view = View({"": prepared(net(), picture, ["relu3_x"])})
    with view.still(), torch.no_grad():
        order = view(picture)["relu3_x"].flatten().argsort()
        view.smooth(picture)
        after = view(picture)["relu3_x"]
        assert (after.flatten()[order].diff() >= 0).all() and after.mean().item() == pytest.approx(1.0, abs=1e-4)
        assert after.max() / after.min() <= math.exp(3) * 1.01


def test_every_pair_by_every_backbone_and_weight() -> None:
    pictures = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    manner = Manner(evaluations=6, smoothness=0.0)
    painters = [Painter("one", net("one"), manner), Painter("two", net("two", 1), manner)]
    drawn = list(
        draw_all(
            pictures[:1],
            pictures[1:],
            painters,
            net("judge", 2),
            weights=(1.0, 90.0),
        )
    )
    assert [(each.style, each.painter, each.weight) for each in drawn] == [
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
        seen = Classifier(network, Facts(3, (8, 8), 9), name="a", architecture="a")
        return activation_entropy(Painter("a", seen, Manner()), torch.rand(3, 8, 8))

    assert entropy(peak=False) == pytest.approx(1.0)
    assert entropy(peak=True) == pytest.approx(0.0, abs=1e-6)
