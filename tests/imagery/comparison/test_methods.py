"""Backbones compared by what they draw."""

import math

import pytest
import torch
from gap.models.classifiers import CifarResNet18
from torch import nn

from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.core.errors import GapError
from gap.imagery.backbone import MultiFeatureExtractor, prepare_backbone
from gap.imagery.canvas import resize
from gap.imagery.comparison.ablations import StylizationMethod, ablated
from gap.imagery.comparison.methods import (
    PerceptualMetric,
    StylizationResult,
    activation_entropy,
    run_comparison,
    style_advantage,
)
from gap.imagery.options import StyleTransferOptions


def net(name: str = "net", seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(
        CifarResNet18(3, 10, width=4), ClassifierSpec(3, (32, 32), 10), name=name, architecture="net"
    ).eval()


def curve(*points: tuple[float, float]) -> list[StylizationResult]:
    blank = torch.zeros(3, 4, 4)
    return [StylizationResult(0, 0, "net", float(place), blank, *point) for place, point in enumerate(points)]


def test_the_lead_is_taken_at_equal_content_distance() -> None:
    theirs = curve((0.1, 8.0), (0.2, 4.0), (0.4, 1.0))
    halved = curve((0.4, 0.5), (0.1, 4.0), (0.2, 2.0))
    assert style_advantage(halved, theirs) == pytest.approx(2.0)
    assert style_advantage(theirs, halved) == pytest.approx(0.5)
    assert style_advantage(theirs, theirs) == pytest.approx(1.0)


def test_only_where_both_are() -> None:
    theirs = curve((0.1, 8.0), (0.2, 4.0))
    assert style_advantage(curve((0.2, 1.0), (0.9, 1e-9)), theirs) == pytest.approx(4.0)
    assert style_advantage(curve((0.3, 1.0), (0.9, 0.5)), theirs) is None


def test_what_is_worse_in_both_counts_for_nothing() -> None:
    theirs = curve((0.1, 8.0), (0.2, 4.0), (0.3, 4.0), (0.4, 4.0))
    stray = curve((0.1, 4.0), (0.2, 2.0), (0.3, 9.0), (0.4, 8.0))
    assert style_advantage(stray, theirs) == pytest.approx(2.0)


def test_the_judge_sees_a_style_as_large_as_the_drawing() -> None:
    """The style itself, at that size, is as near as can be, however large its file."""
    torch.manual_seed(0)
    style = torch.rand(3, 96, 72).round()
    judge = PerceptualMetric(net(), torch.rand(3, 32, 24), [style])
    assert judge(resize(style, (32, 24)))[1] == pytest.approx(0, abs=1e-6)


def test_the_judge_sees_no_distance_from_the_pictures_themselves() -> None:
    content, style = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    judge = PerceptualMetric(net(), content, [style])
    to_content, to_style = judge(content), judge(style)
    assert to_content[0] == pytest.approx(0, abs=1e-6) and to_content[1] > 1e-4
    assert to_style[1] == pytest.approx(0, abs=1e-6) and to_style[0] > 1e-2


def test_the_judge_weighs_styles() -> None:
    content, one, other = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    apart = [PerceptualMetric(net(), content, [style])(content)[1] for style in (one, other)]
    assert PerceptualMetric(net(), content, [one, other], [3.0, 1.0])(content)[1] == pytest.approx(
        0.75 * apart[0] + 0.25 * apart[1]
    )


def test_ablations_change_what_they_say_and_nothing_else() -> None:
    method = StylizationMethod("net", net(seed=3), StyleTransferOptions(evaluations=3))
    same = [parameter.clone() for parameter in method.backbone.parameters()]
    shallow = ablated(method, "shallow")
    assert (shallow.name, shallow.options.layers, shallow.options.content_layers) == (
        "net shallow",
        ["relu2_x", "relu3_x"],
        ["relu2_x"],
    )
    deep = StylizationMethod("net", method.backbone, StyleTransferOptions(content_layers=["relu4_x"]))
    assert ablated(deep, "shallow").options.content_layers == ["relu3_x"]
    assert ablated(method, "smoothed").options == StyleTransferOptions(evaluations=3, smooth_activations=True)
    random = ablated(method, "random")
    changed = [not torch.equal(a, b) for a, b in zip(random.backbone.parameters(), same, strict=True) if a.dim() > 1]
    assert all(changed) and random.options == method.options
    assert all(torch.equal(a, b) for a, b in zip(method.backbone.parameters(), same, strict=True))
    with pytest.raises(GapError, match="did you mean smoothed"):
        ablated(method, "smooth")


def test_a_smoothed_painter_sees_evener() -> None:
    method = StylizationMethod("net", net(), StyleTransferOptions())
    content = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert activation_entropy(ablated(method, "smoothed"), content) > activation_entropy(method, content) + 0.01


def test_a_judge_that_draws_is_refused() -> None:
    method, content = StylizationMethod("net", net(), StyleTransferOptions(evaluations=1)), torch.rand(3, 32, 32)
    with pytest.raises(GapError, match="cannot judge what it draws itself"):
        list(run_comparison([content], [content], [method], net("twin")))


def test_smoothing_takes_the_peaks_out() -> None:
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    extractors = MultiFeatureExtractor({"": prepare_backbone(net(), picture, ["relu3_x"])})
    with extractors.frozen(), torch.no_grad():
        order = extractors(picture)["relu3_x"].flatten().argsort()
        extractors.smooth_activations(picture)
        after = extractors(picture)["relu3_x"]
        assert (after.flatten()[order].diff() >= 0).all() and after.mean().item() == pytest.approx(1.0, abs=1e-4)
        assert after.max() / after.min() <= math.exp(3) * 1.01


def test_every_pair_by_every_backbone_and_weight() -> None:
    pictures = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    config = StyleTransferOptions(evaluations=6, tv_weight=0.0)
    methods = [StylizationMethod("one", net("one"), config), StylizationMethod("two", net("two", 1), config)]
    drawn = list(
        run_comparison(
            pictures[:1],
            pictures[1:],
            methods,
            net("judge", 2),
            weights=(1.0, 90.0),
        )
    )
    assert [(each.style, each.method, each.weight) for each in drawn] == [
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
        seen = Classifier(network, ClassifierSpec(3, (8, 8), 9), name="a", architecture="a")
        return activation_entropy(StylizationMethod("a", seen, StyleTransferOptions()), torch.rand(3, 8, 8))

    assert entropy(peak=False) == pytest.approx(1.0)
    assert entropy(peak=True) == pytest.approx(0.0, abs=1e-6)
