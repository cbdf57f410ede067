"""Drawing on a small backbone: what is asked for comes nearer, and what may not be is refused in a line."""

import pytest
import torch
from gap.models.classifiers import CifarResNet18, mnist_cnn
from gap.models.feature_extractor import LOGITS, FeatureExtractor
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier, ClassifierSpec, load_classifier
from gap.core.errors import GapError, GapWarning
from gap.imagery.backbone import MultiFeatureExtractor, default_layers, prepare_backbone
from gap.imagery.canvas import FourierCanvas, PixelCanvas
from gap.imagery.feature_visualization import Feature, invert_features, visualize_features
from gap.imagery.losses import Diversity, Neuron
from gap.imagery.objectives import Activations, PixelDistance, TotalVariation
from gap.imagery.optimize import OptimizationProgress, optimize
from gap.imagery.options import Optimizer, StyleTransferOptions
from gap.imagery.style_transfer import synthesize_texture, transfer_style
from gap.imagery.transforms import RandomTransform
from gap.threat import Budget

QUICK = StyleTransferOptions(evaluations=12)


@pytest.fixture(scope="module")
def backbone() -> Classifier:
    torch.manual_seed(0)
    network = CifarResNet18(3, 10, width=4)
    return Classifier(network, ClassifierSpec(3, (32, 32), 10), name="net", architecture="net").eval()


def picture(seed: int, height: int = 40, width: int = 32) -> Tensor:
    """Waves in a direction and colors of their own."""
    generator = torch.Generator().manual_seed(seed)
    down, across = torch.rand(2, generator=generator) * 1.5
    waves = (torch.arange(height)[:, None] * down + torch.arange(width)[None, :] * across).sin()
    return (0.5 + 0.4 * waves * torch.rand(3, 1, 1, generator=generator)).clamp(0, 1)


def heard(told: list[OptimizationProgress]) -> list[float]:
    return [progress.values.sum().item() for progress in told]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_optimize_spends_its_evaluations_and_comes_nearer(optimizer: Optimizer) -> None:
    told: list[OptimizationProgress] = []
    canvas = PixelCanvas(torch.full((1, 3, 6, 6), 0.5))
    target = picture(0, 6, 6)[None]
    optimize(canvas, PixelDistance(target), lambda images: {}, evaluations=40, optimizer=optimizer, tell=told.append)
    assert [progress.step for progress in told] == list(range(40))
    assert heard(told)[-1] < 0.1 * heard(told)[0]
    assert canvas.image().min() >= 0 and canvas.image().max() <= 1


def test_a_drawing_stops_early_only_where_that_is_asked_for(backbone: Classifier) -> None:
    def spent(tolerance: float) -> int:
        canvas = PixelCanvas(torch.full((1, 3, 6, 6), 0.5))
        distance = PixelDistance(picture(0, 6, 6)[None])
        return optimize(canvas, distance, lambda images: {}, evaluations=90, optimizer="adam", tolerance=tolerance)

    assert spent(0.0) == 90
    assert 20 < spent(0.999) < spent(0.9) <= 90
    drawn = transfer_style(
        picture(0), [picture(1)], backbone, options=StyleTransferOptions(evaluations=60, tolerance=0.9)
    )
    assert drawn.evaluations < 40


def test_what_is_kept_is_the_best_that_was_met() -> None:
    """With steps far too long, Adam leaves the start for worse."""
    canvas, target = PixelCanvas(torch.full((1, 3, 6, 6), 0.5)), torch.full((1, 3, 6, 6), 0.52)
    optimize(canvas, PixelDistance(target), lambda images: {}, evaluations=8, optimizer="adam", lr=0.4)
    assert (canvas.image() - target).abs().max() < 0.021


def test_stylizing_nears_both_pictures(backbone: Classifier) -> None:
    told: list[OptimizationProgress] = []
    backbone.train()
    before = {name: (value.clone(), value.stride()) for name, value in backbone.state_dict().items()}
    drawn = transfer_style(picture(0), [picture(1, 50, 20)], backbone, options=QUICK, tell=told.append)
    assert drawn.image.shape == (3, 40, 32) and drawn.evaluations == 12 == len(told)
    assert drawn.image.min() >= 0 and drawn.image.max() <= 1
    assert heard(told)[-1] < 0.5 * heard(told)[0]
    assert "style at relu2_x" in drawn.loss_summary and "content at relu2_x" in drawn.loss_summary
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name][0]) and value.stride() == before[name][1]
    assert all(weight.requires_grad for weight in backbone.parameters())
    assert all(module.training for module in backbone.modules())
    backbone.eval()


def test_the_same_seed_draws_the_same(backbone: Classifier) -> None:
    options = StyleTransferOptions(evaluations=4, seed=3)
    first, again = (
        transfer_style(picture(0), [picture(1)], backbone, init="noise", options=options).image for _ in range(2)
    )
    assert torch.equal(first, again)


def test_large_pictures_are_drawn_small_first(backbone: Classifier) -> None:
    sizes: list[tuple[int, ...]] = []
    config = StyleTransferOptions(evaluations=9, min_size=8)
    transfer_style(
        picture(0), [picture(1)], backbone, options=config, tell=lambda s: sizes.append(s.activations.images.shape[2:])
    )
    assert list(dict.fromkeys(sizes)) == [(10, 8), (20, 16), (40, 32)] and len(sizes) == 9


def test_a_content_network_of_its_own(backbone: Classifier) -> None:
    drawn = transfer_style(picture(0), [picture(1)], backbone, content_backbone=backbone, options=QUICK)
    assert "content at content relu2_x" in drawn.loss_summary


def test_a_style_without_weight_is_left_out(backbone: Classifier) -> None:
    both = [picture(1), picture(2)]
    one = transfer_style(picture(0), both, backbone, weights=[1, 0], options=QUICK)
    alone = transfer_style(picture(0), both[:1], backbone, options=QUICK)
    torch.testing.assert_close(one.image, alone.image, atol=1e-2, rtol=0)


def test_masked_styles_stay_in_their_regions(backbone: Classifier) -> None:
    content = torch.full((3, 32, 64), 0.5)
    left = torch.zeros(1, 32, 64)
    left[..., :32] = 1
    config = StyleTransferOptions(evaluations=15, layers=["relu2_x"], content_layers=[])
    drawn = transfer_style(content, [picture(1), picture(2)], backbone, masks=[left, left * 0], options=config)
    moved = (drawn.image - content).abs().mean(dim=0)
    assert moved[:, :28].mean() > 5 * moved[:, 40:].mean()


def test_the_content_s_colors_are_kept(backbone: Classifier) -> None:
    content = picture(0).mean(dim=0, keepdim=True).repeat(3, 1, 1)
    config = StyleTransferOptions(evaluations=8, keep_colors=True)
    drawn = transfer_style(content, [picture(1)], backbone, options=config).image
    assert (drawn - drawn.mean(dim=0)).abs().max() < 1e-2
    assert (drawn - content).abs().max() > 1e-2


def test_texture_of_another_size(backbone: Classifier) -> None:
    drawn = synthesize_texture(picture(1), (24, 48), backbone, options=QUICK)
    assert drawn.image.shape == (3, 24, 48) and "content" not in drawn.loss_summary


def test_a_texture_is_no_blur_of_other_colors() -> None:
    """It varies from pixel to pixel as the style does, and has its mean colors."""
    style, seer = picture(1, 48, 48), load_classifier("drawing-hardened")
    drawn = synthesize_texture(style, (48, 48), seer, options=StyleTransferOptions(evaluations=40)).image
    fine, coarse = (TotalVariation()(Activations(each[None], {})).item() for each in (drawn, style))
    assert fine > 0.5 * coarse
    torch.testing.assert_close(drawn.mean(dim=(1, 2)), style.mean(dim=(1, 2)), atol=0.05, rtol=0)


def test_pictures_of_one_feature_can_be_unlike(backbone: Classifier) -> None:
    """And anything else may be asked beside: a distance keeps them where they began."""
    same, drawn = [Feature("layer1", 0)] * 3, {}
    for diversity in (0.0, 30.0):
        drawn[diversity] = visualize_features(backbone, same, diversity=diversity, steps=30)
    extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, drawn[0.0], ["layer1"])})
    with extractors.frozen(), torch.no_grad():
        alike = [Diversity("layer1")(Activations(each, extractors(each))).mean() for each in drawn.values()]
    assert alike[1] < alike[0] - 0.02
    gray = torch.full((3, 3, 32, 32), 0.5)
    held = visualize_features(backbone, same, extra_objective=1000 * PixelDistance(gray), steps=30)
    assert (held - gray).norm() < 0.5 * (drawn[0.0] - gray).norm()


def test_a_neuron_is_excited_more_than_by_its_channel(backbone: Classifier) -> None:
    def middle(neuron: bool) -> float:
        made = visualize_features(backbone, [Feature("layer1", 0, neuron)], steps=30)
        extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, made, ["layer1"])})
        with extractors.frozen(), torch.no_grad():
            return -Neuron("layer1", torch.tensor([0]))(Activations(made, extractors(made))).item()

    assert middle(True) > 1.2 * middle(False)


def test_a_unit_that_nothing_wakes_is_told() -> None:
    dead = Classifier(
        CifarResNet18(3, 10, width=4), ClassifierSpec(3, (32, 32), 10), name="net", architecture="net"
    ).eval()
    for bias in (dead.network.layer1[-1].bn2.bias, dead.network.layer1[0].bn2.bias):
        bias.data.fill_(-1e3)
    with pytest.warns(GapWarning, match="layer1:0@center never became active"):
        visualize_features(dead, [Feature("layer1", 0, neuron=True)], diversity=1.0, steps=2)


def test_one_channel_and_no_residual_stages() -> None:
    gray = Classifier(mnist_cnn(1, 10), ClassifierSpec(1, (28, 28), 10), name="cnn", architecture="net").eval()
    layers = default_layers(gray)
    assert layers == ["1", "3"]
    pictures = [picture(seed, 28, 28).mean(dim=0, keepdim=True) for seed in (0, 1)]
    drawn = transfer_style(pictures[0], pictures[1:], gray, options=QUICK)
    assert drawn.image.shape == (1, 28, 28)


def test_classes_and_channels_are_excited_within_the_ball(backbone: Classifier) -> None:
    budget = Budget("l2", 3.0)
    for layer in ("logits", "layer2"):
        told: list[OptimizationProgress] = []
        features = [Feature(layer, 1), Feature(layer, 5)]
        drawn = visualize_features(backbone, features, budget=budget, steps=10, tell=told.append)
        assert drawn.shape == (2, 3, 32, 32)
        assert (budget.norm_of(drawn - told[0].activations.images) <= 3.001).all()
        assert (told[-1].values < told[0].values).all()


def test_a_feature_added_to_a_picture_stays_near_it(backbone: Classifier) -> None:
    init = picture(0)
    drawn = visualize_features(backbone, [Feature("layer2", 0)], init=init, budget=Budget("linf", 0.1), steps=15)
    moved = drawn[0] - init
    assert drawn.shape[1:] == init.shape and moved.abs().max() <= 0.1001
    assert moved.square().mean().sqrt() > 0.05


def test_with_natural_priors(backbone: Classifier) -> None:
    told: list[OptimizationProgress] = []
    drawn = visualize_features(
        backbone, [Feature("layer3", 2)], prior="natural", steps=30, size=(48, 40), tell=told.append
    )
    assert drawn.shape == (1, 3, 48, 40) and drawn.min() >= 0 and drawn.max() <= 1
    assert heard(told)[-1] < heard(told)[0]


def test_a_layer_is_inverted(backbone: Classifier) -> None:
    target = picture(0, 32, 32)
    drawn = invert_features(backbone, target, "layer1", steps=60)
    noise = visualize_features(backbone, [Feature("layer1", 0)], steps=1)[0]
    assert (drawn - target).square().mean() < 0.3 * (noise - target).square().mean()


def test_the_fourier_canvas_begins_gray_and_its_fine_waves_are_weak() -> None:
    canvas = FourierCanvas(1, 3, (32, 32), seed=0)
    images = canvas.image()
    assert (images - 0.5).abs().max() < 0.2
    canvas.weights.data = 0.05 * torch.randn_like(canvas.weights)
    spectrum = torch.fft.rfft2((canvas() / (1 - canvas())).log()[0, 0].detach()).abs()
    assert spectrum[1:3, 1:3].mean() > 3 * spectrum[10:16, 10:16].mean()


def test_shaking_moves_each_picture_in_its_own_way() -> None:
    torch.manual_seed(0)
    images = picture(0)[None].repeat(2, 1, 1, 1)
    shaken = RandomTransform()(images)
    assert shaken.shape == images.shape
    assert (shaken[0] - shaken[1]).abs().max() > 0.05 and (shaken - images).abs().max() > 0.05
    assert torch.allclose(RandomTransform(0, 0.0, 0.0)(images), images, atol=1e-4)


def test_padding_is_gray_and_cropping_moves_the_window() -> None:
    torch.manual_seed(0)
    images = picture(0)[None]
    height, width = images.shape[-2:]
    padded = RandomTransform(0, 0.0, 0.0, pad=3)(images)
    assert torch.allclose(padded[..., 3:-3, 3:-3], images, atol=1e-4)
    assert torch.allclose(padded[..., :3, :], torch.tensor(0.5), atol=1e-4)
    windows = [RandomTransform(0, 0.0, 0.0, crop=4)(images) for _ in range(12)]
    places = {
        (top, left)
        for window in windows
        for top in range(5)
        for left in range(5)
        if torch.allclose(window, images[..., top : top + height - 4, left : left + width - 4], atol=1e-4)
    }
    assert len(places) > 5


def test_a_feature_is_drawn_through_the_transforms_that_are_given(backbone: Classifier) -> None:
    """A backbone that sees only the left half leaves the right one as it began."""

    class LeftHalf(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[..., : images.shape[-1] // 2]

    init = picture(0)
    drawn = visualize_features(backbone, [Feature("layer2", 1)], init=init, transforms=LeftHalf(), steps=4)[0]
    half = init.shape[-1] // 2
    assert torch.equal(drawn[..., half:], init[..., half:])
    assert (drawn[..., :half] - init[..., :half]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda net: visualize_features(net, [Feature("layer2", 8)]), "layer2 of net has the channels 0 to 7, not 8"),
        (lambda net: visualize_features(net, [Feature("logits", 10)]), "logits of net has the classes 0 to 9, not 10"),
        (lambda net: visualize_features(net, [Feature("layer9", 0)]), "unknown layer 'layer9'; did you mean layer"),
        (lambda net: transfer_style(picture(0), [picture(1)], net, weights=[1, 2]), "1 styles need as many weights"),
        (
            lambda net: transfer_style(picture(0), [picture(1)], net, masks=[picture(2)[:1, :9]]),
            "have the size of the content",
        ),
        (
            lambda net: transfer_style(picture(0), [picture(1)], net, options=StyleTransferOptions(layers=["relu9_x"])),
            "unknown layer",
        ),
        (lambda net: visualize_features(net, [Feature("layer1", 0), Feature("layer2", 0)]), "of one layer"),
        (
            lambda net: visualize_features(net, [Feature("layer1", 0)], prior="natural", init=picture(0)),
            "begins at noise",
        ),
        (
            lambda net: StyleTransferOptions.read({"style_loss": "gramm"}),
            "unknown style_loss 'gramm'; did you mean gram",
        ),
        (lambda net: StyleTransferOptions.read({"strides": "smoth"}), "unknown strides 'smoth'; did you mean smooth"),
        (lambda net: StyleTransferOptions.read({"precision": "fp16"}), "unknown precision 'fp16'"),
        (lambda net: StyleTransferOptions.read({"layers": []}), "style is read from one layer or more"),
        (lambda net: StyleTransferOptions.read({"lr": -1.0}), "option lr=-1.0: .*greater than 0"),
    ],
)
def test_bad_requests(backbone: Classifier, act, message: str) -> None:
    with pytest.raises(GapError, match=message):
        act(backbone)


def test_the_least_size_is_named() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.Conv2d(4, 4, 5), torch.nn.Flatten())
    small = Classifier(network, ClassifierSpec(3, (32, 32), 10), name="net", architecture="net").eval()
    with pytest.raises(GapError, match="pictures of 8 x 8 pixels: it takes 9 pixels or more"):
        visualize_features(small, [Feature("1", 0)], size=(8, 8))
    gray = Classifier(mnist_cnn(1, 10), ClassifierSpec(1, (28, 28), 10), name="cnn", architecture="net").eval()
    with pytest.raises(GapError, match="pictures of 40 x 40 pixels: it takes 28 to 31"):
        visualize_features(gray, [Feature("logits", 0)], size=(40, 40))
    assert visualize_features(gray, [Feature("conv_2", 0)], size=(40, 40), steps=1).shape == (1, 1, 40, 40)


class Apart(torch.nn.Module):
    """Its stem ends before the norm that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
        self.norm = torch.nn.BatchNorm2d(4)
        self.norm.running_mean += 1

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.stem(images)).mean(dim=(2, 3))


def test_layers_give_what_they_give_unfolded(backbone: Classifier) -> None:
    apart = Classifier(Apart(), ClassifierSpec(3, (16, 16), 4), name="net", architecture="net").eval()
    images = torch.rand(2, 3, 16, 16)
    for layers in (["stem"], ["stem.0"], ["norm"], [LOGITS]):
        seen = prepare_backbone(apart, images, layers)(images)
        with torch.no_grad():
            torch.testing.assert_close(seen, FeatureExtractor(apart.network, layers)(images), rtol=1e-3, atol=1e-4)
    images = torch.rand(1, 3, 32, 32)
    names = ["conv1", "layer1.0.bn1", "layer2", LOGITS]
    with torch.no_grad():
        expected = FeatureExtractor(backbone.network, names)(images)
        torch.testing.assert_close(prepare_backbone(backbone, images, names)(images), expected, rtol=1e-3, atol=1e-4)


def test_one_layer_by_two_names_serves_style_and_content(backbone: Classifier) -> None:
    config = StyleTransferOptions(evaluations=2, layers=["layer1", "layer3"])
    assert "content at layer1" in transfer_style(picture(0), [picture(1)], backbone, options=config).loss_summary


@pytest.mark.parametrize(
    "config",
    [
        StyleTransferOptions(evaluations=12, strides="smooth"),
        StyleTransferOptions(evaluations=12, smooth_activations=True),
    ],
)
def test_other_ways_to_look_draw_too(backbone: Classifier, config: StyleTransferOptions) -> None:
    content, style = picture(0), picture(1)
    drawn = transfer_style(content, [style], backbone, options=config)
    plain = transfer_style(content, [style], backbone, options=QUICK)
    assert (drawn.image - content).abs().mean() > 1e-3 and (drawn.image - plain.image).abs().mean() > 1e-3


def test_bfloat16_asks_for_the_same_as_float32(backbone: Classifier) -> None:
    told: dict[str, list[OptimizationProgress]] = {"bf16": [], "fp32": []}
    for precision, seen in told.items():
        config = StyleTransferOptions(evaluations=2, precision=precision)
        transfer_style(picture(0), [picture(1)], backbone, init="noise", options=config, tell=seen.append)
    half, whole = (seen[0] for seen in told.values())
    assert half.values.dtype == torch.float32
    assert half.values.item() == pytest.approx(whole.values.item(), rel=0.03)
    assert half.values.item() != whole.values.item()


def test_a_few_evaluations_already_draw(backbone: Classifier) -> None:
    """Without a search along its first steps, L-BFGS throws the picture far away and needs dozens to come back.

    In bfloat16 the search is among roundings, and may throw it for one evaluation, which is not kept."""
    told: list[OptimizationProgress] = []
    config = StyleTransferOptions(evaluations=20, style_weight=1000.0, precision="fp32")
    drawn = transfer_style(picture(0, 96, 96), [picture(1, 96, 96)], backbone, options=config, tell=told.append)
    assert len(told) == 20 and (drawn.image - picture(0, 96, 96)).abs().max() > 0.05
    assert max(heard(told)) < 3 * heard(told)[0] and min(heard(told)) < 0.3 * heard(told)[0]
