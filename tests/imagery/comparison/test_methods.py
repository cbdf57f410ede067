"""Backbones are compared by the images that they draw."""

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


def make_classifier(name: str = "net", seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(
        CifarResNet18(3, 10, width=4), ClassifierSpec(3, (32, 32), 10), name=name, architecture="net"
    ).eval()


def make_results(*points: tuple[float, float]) -> list[StylizationResult]:
    blank = torch.zeros(3, 4, 4)
    return [StylizationResult(0, 0, "net", float(index), blank, *point) for index, point in enumerate(points)]


def test_style_advantage_is_measured_at_equal_content_distance() -> None:
    baseline = make_results((0.1, 8.0), (0.2, 4.0), (0.4, 1.0))
    halved = make_results((0.4, 0.5), (0.1, 4.0), (0.2, 2.0))
    assert style_advantage(halved, baseline) == pytest.approx(2.0)
    assert style_advantage(baseline, halved) == pytest.approx(0.5)
    assert style_advantage(baseline, baseline) == pytest.approx(1.0)


def test_style_advantage_uses_only_the_range_of_both_curves() -> None:
    baseline = make_results((0.1, 8.0), (0.2, 4.0))
    assert style_advantage(make_results((0.2, 1.0), (0.9, 1e-9)), baseline) == pytest.approx(4.0)
    assert style_advantage(make_results((0.3, 1.0), (0.9, 0.5)), baseline) is None


def test_style_advantage_dominated_points_are_ignored() -> None:
    baseline = make_results((0.1, 8.0), (0.2, 4.0), (0.3, 4.0), (0.4, 4.0))
    with_dominated = make_results((0.1, 4.0), (0.2, 2.0), (0.3, 9.0), (0.4, 8.0))
    assert style_advantage(with_dominated, baseline) == pytest.approx(2.0)


def test_perceptual_metric_style_is_resized_to_the_image() -> None:
    """Catches: a style distance that depends on the size of the file of the style."""
    torch.manual_seed(0)
    style = torch.rand(3, 96, 72).round()
    metric = PerceptualMetric(make_classifier(), torch.rand(3, 32, 24), [style])
    assert metric(resize(style, (32, 24)))[1] == pytest.approx(0, abs=1e-6)


def test_perceptual_metric_is_zero_at_the_content_and_at_the_style() -> None:
    content, style = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    metric = PerceptualMetric(make_classifier(), content, [style])
    to_content, to_style = metric(content), metric(style)
    assert to_content[0] == pytest.approx(0, abs=1e-6) and to_content[1] > 1e-4
    assert to_style[1] == pytest.approx(0, abs=1e-6) and to_style[0] > 1e-2


def test_perceptual_metric_several_styles_give_the_weighted_mean() -> None:
    content, first, second = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    distances = [PerceptualMetric(make_classifier(), content, [style])(content)[1] for style in (first, second)]
    assert PerceptualMetric(make_classifier(), content, [first, second], [3.0, 1.0])(content)[1] == pytest.approx(
        0.75 * distances[0] + 0.25 * distances[1]
    )


def test_ablated_changes_only_the_ablated_part() -> None:
    method = StylizationMethod("net", make_classifier(seed=3), StyleTransferOptions(evaluations=3))
    original = [parameter.clone() for parameter in method.backbone.parameters()]
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
    changed = [
        not torch.equal(a, b) for a, b in zip(random.backbone.parameters(), original, strict=True) if a.dim() > 1
    ]
    assert all(changed) and random.options == method.options
    assert all(torch.equal(a, b) for a, b in zip(method.backbone.parameters(), original, strict=True))
    with pytest.raises(GapError, match="did you mean smoothed"):
        ablated(method, "smooth")


def test_activation_entropy_is_higher_with_smoothed_activations() -> None:
    method = StylizationMethod("net", make_classifier(), StyleTransferOptions())
    content = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert activation_entropy(ablated(method, "smoothed"), content) > activation_entropy(method, content) + 0.01


def test_run_comparison_metric_network_that_also_draws_is_refused() -> None:
    method, content = (
        StylizationMethod("net", make_classifier(), StyleTransferOptions(evaluations=1)),
        torch.rand(3, 32, 32),
    )
    with pytest.raises(GapError, match="cannot judge what it draws itself"):
        list(run_comparison([content], [content], [method], make_classifier("twin")))


def test_smooth_activations_lowers_peaks_and_keeps_their_order() -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    extractors = MultiFeatureExtractor({"": prepare_backbone(make_classifier(), image, ["relu3_x"])})
    with extractors.frozen(), torch.no_grad():
        order = extractors(image)["relu3_x"].flatten().argsort()
        extractors.smooth_activations(image)
        after = extractors(image)["relu3_x"]
        assert (after.flatten()[order].diff() >= 0).all() and after.mean().item() == pytest.approx(1.0, abs=1e-4)
        assert after.max() / after.min() <= math.exp(3) * 1.01


def test_run_comparison_gives_a_result_for_each_pair_method_and_weight() -> None:
    images = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    config = StyleTransferOptions(evaluations=6, tv_weight=0.0)
    methods = [
        StylizationMethod("one", make_classifier("one"), config),
        StylizationMethod("two", make_classifier("two", 1), config),
    ]
    results = list(
        run_comparison(
            images[:1],
            images[1:],
            methods,
            make_classifier("judge", 2),
            style_weights=(1.0, 90.0),
        )
    )
    assert [(result.style, result.method, result.weight) for result in results] == [
        (style, name, weight) for style in (0, 1) for name in ("one", "two") for weight in (1.0, 90.0)
    ]
    for light, heavy in zip(results[::2], results[1::2], strict=True):
        assert heavy.content_distance > light.content_distance


def test_activation_entropy_is_one_for_equal_values_and_zero_for_one_peak() -> None:
    class Stage(nn.Module):
        def __init__(self, peak: bool) -> None:
            super().__init__()
            self.conv, self.peak = nn.Conv2d(3, 5, 1), peak

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = torch.zeros_like(self.conv(images)) if self.peak else torch.ones_like(self.conv(images))
            maps[:, 0, 0, 0] = 1
            return maps

    def entropy(peak: bool) -> float:
        network = nn.Sequential(Stage(peak), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        classifier = Classifier(network, ClassifierSpec(3, (8, 8), 9), name="a", architecture="a")
        return activation_entropy(StylizationMethod("a", classifier, StyleTransferOptions()), torch.rand(3, 8, 8))

    assert entropy(peak=False) == pytest.approx(1.0)
    assert entropy(peak=True) == pytest.approx(0.0, abs=1e-6)
