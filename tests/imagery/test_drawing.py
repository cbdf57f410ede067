"""Drawing with a small backbone: the objective falls, and invalid requests are refused in one line."""

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


def make_image(seed: int, height: int = 40, width: int = 32) -> Tensor:
    """Waves whose direction and colors depend on the seed."""
    generator = torch.Generator().manual_seed(seed)
    down, across = torch.rand(2, generator=generator) * 1.5
    waves = (torch.arange(height)[:, None] * down + torch.arange(width)[None, :] * across).sin()
    return (0.5 + 0.4 * waves * torch.rand(3, 1, 1, generator=generator)).clamp(0, 1)


def losses(reports: list[OptimizationProgress]) -> list[float]:
    return [progress.values.sum().item() for progress in reports]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_optimize_uses_all_evaluations_and_lowers_the_loss(optimizer: Optimizer) -> None:
    reports: list[OptimizationProgress] = []
    canvas = PixelCanvas(torch.full((1, 3, 6, 6), 0.5))
    target = make_image(0, 6, 6)[None]
    optimize(canvas, PixelDistance(target), lambda images: {}, evaluations=40, optimizer=optimizer, tell=reports.append)
    assert [progress.step for progress in reports] == list(range(40))
    assert losses(reports)[-1] < 0.1 * losses(reports)[0]
    assert canvas.image().min() >= 0 and canvas.image().max() <= 1


def test_optimize_stops_early_only_with_a_tolerance(backbone: Classifier) -> None:
    def evaluations_with(tolerance: float) -> int:
        canvas = PixelCanvas(torch.full((1, 3, 6, 6), 0.5))
        distance = PixelDistance(make_image(0, 6, 6)[None])
        return optimize(canvas, distance, lambda images: {}, evaluations=90, optimizer="adam", tolerance=tolerance)

    assert evaluations_with(0.0) == 90
    assert 20 < evaluations_with(0.999) < evaluations_with(0.9) <= 90
    result = transfer_style(
        make_image(0), [make_image(1)], backbone, options=StyleTransferOptions(evaluations=60, tolerance=0.9)
    )
    assert result.evaluations < 40


def test_optimize_too_long_steps_keep_the_best_image() -> None:
    """Catches: the last image in place of the best one, where Adam moves away from the target."""
    canvas, target = PixelCanvas(torch.full((1, 3, 6, 6), 0.5)), torch.full((1, 3, 6, 6), 0.52)
    optimize(canvas, PixelDistance(target), lambda images: {}, evaluations=8, optimizer="adam", lr=0.4)
    assert (canvas.image() - target).abs().max() < 0.021


def test_transfer_style_lowers_the_loss_and_restores_the_backbone(backbone: Classifier) -> None:
    reports: list[OptimizationProgress] = []
    backbone.train()
    before = {name: (value.clone(), value.stride()) for name, value in backbone.state_dict().items()}
    result = transfer_style(make_image(0), [make_image(1, 50, 20)], backbone, options=QUICK, tell=reports.append)
    assert result.image.shape == (3, 40, 32) and result.evaluations == 12 == len(reports)
    assert result.image.min() >= 0 and result.image.max() <= 1
    assert losses(reports)[-1] < 0.5 * losses(reports)[0]
    assert "style at relu2_x" in result.loss_summary and "content at relu2_x" in result.loss_summary
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name][0]) and value.stride() == before[name][1]
    assert all(weight.requires_grad for weight in backbone.parameters())
    assert all(module.training for module in backbone.modules())
    backbone.eval()


def test_transfer_style_same_seed_gives_the_same_image(backbone: Classifier) -> None:
    options = StyleTransferOptions(evaluations=4, seed=3)
    first, second = (
        transfer_style(make_image(0), [make_image(1)], backbone, init="noise", options=options).image for _ in range(2)
    )
    assert torch.equal(first, second)


def test_transfer_style_large_image_is_drawn_from_small_to_large(backbone: Classifier) -> None:
    sizes: list[tuple[int, ...]] = []
    config = StyleTransferOptions(evaluations=9, min_size=8)
    transfer_style(
        make_image(0),
        [make_image(1)],
        backbone,
        options=config,
        tell=lambda progress: sizes.append(progress.activations.images.shape[2:]),
    )
    assert list(dict.fromkeys(sizes)) == [(10, 8), (20, 16), (40, 32)] and len(sizes) == 9


def test_transfer_style_content_backbone_gives_the_content_loss(backbone: Classifier) -> None:
    result = transfer_style(make_image(0), [make_image(1)], backbone, content_backbone=backbone, options=QUICK)
    assert "content at content relu2_x" in result.loss_summary


def test_transfer_style_style_of_weight_zero_has_no_effect(backbone: Classifier) -> None:
    both = [make_image(1), make_image(2)]
    weighted = transfer_style(make_image(0), both, backbone, weights=[1, 0], options=QUICK)
    expected = transfer_style(make_image(0), both[:1], backbone, options=QUICK)
    torch.testing.assert_close(weighted.image, expected.image, atol=1e-2, rtol=0)


def test_transfer_style_mask_limits_the_style_to_its_region(backbone: Classifier) -> None:
    content = torch.full((3, 32, 64), 0.5)
    left = torch.zeros(1, 32, 64)
    left[..., :32] = 1
    config = StyleTransferOptions(evaluations=15, layers=["relu2_x"], content_layers=[])
    result = transfer_style(content, [make_image(1), make_image(2)], backbone, masks=[left, left * 0], options=config)
    change = (result.image - content).abs().mean(dim=0)
    assert change[:, :28].mean() > 5 * change[:, 40:].mean()


def test_transfer_style_keep_colors_gives_the_colors_of_the_content(backbone: Classifier) -> None:
    content = make_image(0).mean(dim=0, keepdim=True).repeat(3, 1, 1)
    config = StyleTransferOptions(evaluations=8, keep_colors=True)
    image = transfer_style(content, [make_image(1)], backbone, options=config).image
    assert (image - image.mean(dim=0)).abs().max() < 1e-2
    assert (image - content).abs().max() > 1e-2


def test_synthesize_texture_other_size_has_no_content_loss(backbone: Classifier) -> None:
    result = synthesize_texture(make_image(1), (24, 48), backbone, options=QUICK)
    assert result.image.shape == (3, 24, 48) and "content" not in result.loss_summary


def test_synthesize_texture_has_the_detail_and_mean_colors_of_its_style() -> None:
    """Catches: a texture that is blurred, or of other colors than its style."""
    style, backbone = make_image(1, 48, 48), load_classifier("drawing-hardened")
    texture = synthesize_texture(style, (48, 48), backbone, options=StyleTransferOptions(evaluations=40)).image
    variation, expected = (TotalVariation()(Activations(image[None], {})).item() for image in (texture, style))
    assert variation > 0.5 * expected
    torch.testing.assert_close(texture.mean(dim=(1, 2)), style.mean(dim=(1, 2)), atol=0.05, rtol=0)


def test_visualize_features_diversity_makes_images_of_one_feature_differ(backbone: Classifier) -> None:
    """An extra objective applies as well: a pixel distance keeps the images near their initialization."""
    features, images = [Feature("layer1", 0)] * 3, {}
    for diversity in (0.0, 30.0):
        images[diversity] = visualize_features(backbone, features, diversity=diversity, steps=30)
    extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, images[0.0], ["layer1"])})
    with extractors.frozen(), torch.no_grad():
        similarity = [Diversity("layer1")(Activations(batch, extractors(batch))).mean() for batch in images.values()]
    assert similarity[1] < similarity[0] - 0.02
    gray = torch.full((3, 3, 32, 32), 0.5)
    constrained = visualize_features(backbone, features, extra_objective=1000 * PixelDistance(gray), steps=30)
    assert (constrained - gray).norm() < 0.5 * (images[0.0] - gray).norm()


def test_visualize_features_neuron_activates_it_more_than_its_channel_does(backbone: Classifier) -> None:
    def activation(neuron: bool) -> float:
        images = visualize_features(backbone, [Feature("layer1", 0, neuron)], steps=30)
        extractors = MultiFeatureExtractor({"": prepare_backbone(backbone, images, ["layer1"])})
        with extractors.frozen(), torch.no_grad():
            return -Neuron("layer1", torch.tensor([0]))(Activations(images, extractors(images))).item()

    assert activation(True) > 1.2 * activation(False)


def test_visualize_features_neuron_that_never_activates_warns() -> None:
    dead = Classifier(
        CifarResNet18(3, 10, width=4), ClassifierSpec(3, (32, 32), 10), name="net", architecture="net"
    ).eval()
    for bias in (dead.network.layer1[-1].bn2.bias, dead.network.layer1[0].bn2.bias):
        bias.data.fill_(-1e3)
    with pytest.warns(GapWarning, match="layer1:0@center never became active"):
        visualize_features(dead, [Feature("layer1", 0, neuron=True)], diversity=1.0, steps=2)


def test_transfer_style_gray_network_without_residual_stages_gives_an_image() -> None:
    gray = Classifier(mnist_cnn(1, 10), ClassifierSpec(1, (28, 28), 10), name="cnn", architecture="net").eval()
    layers = default_layers(gray)
    assert layers == ["1", "3"]
    images = [make_image(seed, 28, 28).mean(dim=0, keepdim=True) for seed in (0, 1)]
    result = transfer_style(images[0], images[1:], gray, options=QUICK)
    assert result.image.shape == (1, 28, 28)


def test_visualize_features_with_budget_lowers_the_loss_and_stays_within_it(backbone: Classifier) -> None:
    budget = Budget("l2", 3.0)
    for layer in ("logits", "layer2"):
        reports: list[OptimizationProgress] = []
        features = [Feature(layer, 1), Feature(layer, 5)]
        images = visualize_features(backbone, features, budget=budget, steps=10, tell=reports.append)
        assert images.shape == (2, 3, 32, 32)
        assert (budget.norm_of(images - reports[0].activations.images) <= 3.001).all()
        assert (reports[-1].values < reports[0].values).all()


def test_visualize_features_with_init_stays_within_the_budget_around_it(backbone: Classifier) -> None:
    init = make_image(0)
    images = visualize_features(backbone, [Feature("layer2", 0)], init=init, budget=Budget("linf", 0.1), steps=15)
    change = images[0] - init
    assert images.shape[1:] == init.shape and change.abs().max() <= 0.1001
    assert change.square().mean().sqrt() > 0.05


def test_visualize_features_natural_prior_lowers_the_loss(backbone: Classifier) -> None:
    reports: list[OptimizationProgress] = []
    images = visualize_features(
        backbone, [Feature("layer3", 2)], prior="natural", steps=30, size=(48, 40), tell=reports.append
    )
    assert images.shape == (1, 3, 48, 40) and images.min() >= 0 and images.max() <= 1
    assert losses(reports)[-1] < losses(reports)[0]


def test_invert_features_comes_nearer_to_the_target_image(backbone: Classifier) -> None:
    target = make_image(0, 32, 32)
    inverted = invert_features(backbone, target, "layer1", steps=60)
    noise = visualize_features(backbone, [Feature("layer1", 0)], steps=1)[0]
    assert (inverted - target).square().mean() < 0.3 * (noise - target).square().mean()


def test_fourier_canvas_starts_gray_with_small_high_frequencies() -> None:
    canvas = FourierCanvas(1, 3, (32, 32), seed=0)
    images = canvas.image()
    assert (images - 0.5).abs().max() < 0.2
    canvas.weights.data = 0.05 * torch.randn_like(canvas.weights)
    spectrum = torch.fft.rfft2((canvas() / (1 - canvas())).log()[0, 0].detach()).abs()
    assert spectrum[1:3, 1:3].mean() > 3 * spectrum[10:16, 10:16].mean()


def test_random_transform_each_image_is_transformed_differently() -> None:
    torch.manual_seed(0)
    images = make_image(0)[None].repeat(2, 1, 1, 1)
    transformed = RandomTransform()(images)
    assert transformed.shape == images.shape
    assert (transformed[0] - transformed[1]).abs().max() > 0.05 and (transformed - images).abs().max() > 0.05
    assert torch.allclose(RandomTransform(0, 0.0, 0.0)(images), images, atol=1e-4)


def test_random_transform_padding_is_gray_and_crops_are_random() -> None:
    torch.manual_seed(0)
    images = make_image(0)[None]
    height, width = images.shape[-2:]
    padded = RandomTransform(0, 0.0, 0.0, pad=3)(images)
    assert torch.allclose(padded[..., 3:-3, 3:-3], images, atol=1e-4)
    assert torch.allclose(padded[..., :3, :], torch.tensor(0.5), atol=1e-4)
    windows = [RandomTransform(0, 0.0, 0.0, crop=4)(images) for _ in range(12)]
    offsets = {
        (top, left)
        for window in windows
        for top in range(5)
        for left in range(5)
        if torch.allclose(window, images[..., top : top + height - 4, left : left + width - 4], atol=1e-4)
    }
    assert len(offsets) > 5


def test_visualize_features_given_transforms_are_applied(backbone: Classifier) -> None:
    """A transform that crops to the left half leaves the right half at its initial value."""

    class LeftHalf(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[..., : images.shape[-1] // 2]

    init = make_image(0)
    image = visualize_features(backbone, [Feature("layer2", 1)], init=init, transforms=LeftHalf(), steps=4)[0]
    half = init.shape[-1] // 2
    assert torch.equal(image[..., half:], init[..., half:])
    assert (image[..., :half] - init[..., :half]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: visualize_features(net, [Feature("layer2", 8)]), "layer2 of net has the channels 0 to 7, not 8"),
        (lambda net: visualize_features(net, [Feature("logits", 10)]), "logits of net has the classes 0 to 9, not 10"),
        (lambda net: visualize_features(net, [Feature("layer9", 0)]), "unknown layer 'layer9'; did you mean layer"),
        (
            lambda net: transfer_style(make_image(0), [make_image(1)], net, weights=[1, 2]),
            "1 styles need as many weights",
        ),
        (
            lambda net: transfer_style(make_image(0), [make_image(1)], net, masks=[make_image(2)[:1, :9]]),
            "have the size of the content",
        ),
        (
            lambda net: transfer_style(
                make_image(0), [make_image(1)], net, options=StyleTransferOptions(layers=["relu9_x"])
            ),
            "unknown layer",
        ),
        (lambda net: visualize_features(net, [Feature("layer1", 0), Feature("layer2", 0)]), "of one layer"),
        (
            lambda net: visualize_features(net, [Feature("layer1", 0)], prior="natural", init=make_image(0)),
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
def test_drawing_invalid_request_raises_with_the_reason(backbone: Classifier, call, message: str) -> None:
    with pytest.raises(GapError, match=message):
        call(backbone)


def test_visualize_features_unsupported_size_raises_with_the_accepted_sizes() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.Conv2d(4, 4, 5), torch.nn.Flatten())
    small = Classifier(network, ClassifierSpec(3, (32, 32), 10), name="net", architecture="net").eval()
    with pytest.raises(GapError, match="pictures of 8 x 8 pixels: it takes 9 pixels or more"):
        visualize_features(small, [Feature("1", 0)], size=(8, 8))
    gray = Classifier(mnist_cnn(1, 10), ClassifierSpec(1, (28, 28), 10), name="cnn", architecture="net").eval()
    with pytest.raises(GapError, match="pictures of 40 x 40 pixels: it takes 28 to 31"):
        visualize_features(gray, [Feature("logits", 0)], size=(40, 40))
    assert visualize_features(gray, [Feature("conv_2", 0)], size=(40, 40), steps=1).shape == (1, 1, 40, 40)


class NormOutsideStem(torch.nn.Module):
    """A network whose first norm is outside of the module of the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
        self.norm = torch.nn.BatchNorm2d(4)
        self.norm.running_mean += 1

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.stem(images)).mean(dim=(2, 3))


def test_prepare_backbone_fused_layers_give_the_outputs_of_the_network(backbone: Classifier) -> None:
    classifier = Classifier(NormOutsideStem(), ClassifierSpec(3, (16, 16), 4), name="net", architecture="net").eval()
    images = torch.rand(2, 3, 16, 16)
    for layers in (["stem"], ["stem.0"], ["norm"], [LOGITS]):
        outputs = prepare_backbone(classifier, images, layers)(images)
        with torch.no_grad():
            torch.testing.assert_close(
                outputs, FeatureExtractor(classifier.network, layers)(images), rtol=1e-3, atol=1e-4
            )
    images = torch.rand(1, 3, 32, 32)
    names = ["conv1", "layer1.0.bn1", "layer2", LOGITS]
    with torch.no_grad():
        expected = FeatureExtractor(backbone.network, names)(images)
        torch.testing.assert_close(prepare_backbone(backbone, images, names)(images), expected, rtol=1e-3, atol=1e-4)


def test_transfer_style_layer_used_by_two_names_is_accepted(backbone: Classifier) -> None:
    config = StyleTransferOptions(evaluations=2, layers=["layer1", "layer3"])
    assert "content at layer1" in transfer_style(make_image(0), [make_image(1)], backbone, options=config).loss_summary


@pytest.mark.parametrize(
    "config",
    [
        StyleTransferOptions(evaluations=12, strides="smooth"),
        StyleTransferOptions(evaluations=12, smooth_activations=True),
    ],
)
def test_transfer_style_smooth_strides_or_activations_change_the_image(
    backbone: Classifier, config: StyleTransferOptions
) -> None:
    content, style = make_image(0), make_image(1)
    result = transfer_style(content, [style], backbone, options=config)
    plain = transfer_style(content, [style], backbone, options=QUICK)
    assert (result.image - content).abs().mean() > 1e-3 and (result.image - plain.image).abs().mean() > 1e-3


def test_transfer_style_bfloat16_loss_is_near_that_of_float32(backbone: Classifier) -> None:
    reports: dict[str, list[OptimizationProgress]] = {"bf16": [], "fp32": []}
    for precision, of_precision in reports.items():
        config = StyleTransferOptions(evaluations=2, precision=precision)
        transfer_style(make_image(0), [make_image(1)], backbone, init="noise", options=config, tell=of_precision.append)
    bf16, fp32 = (of_precision[0] for of_precision in reports.values())
    assert bf16.values.dtype == torch.float32
    assert bf16.values.item() == pytest.approx(fp32.values.item(), rel=0.03)
    assert bf16.values.item() != fp32.values.item()


def test_transfer_style_few_evaluations_lower_the_loss_without_divergence(backbone: Classifier) -> None:
    """Catches: L-BFGS without a line search in its first steps, which diverges and needs dozens of steps to recover.

    In bfloat16, rounding disturbs the line search: one evaluation may diverge, and is not kept.
    """
    reports: list[OptimizationProgress] = []
    config = StyleTransferOptions(evaluations=20, style_weight=1000.0, precision="fp32")
    result = transfer_style(
        make_image(0, 96, 96), [make_image(1, 96, 96)], backbone, options=config, tell=reports.append
    )
    assert len(reports) == 20 and (result.image - make_image(0, 96, 96)).abs().max() > 0.05
    assert max(losses(reports)) < 3 * losses(reports)[0] and min(losses(reports)) < 0.3 * losses(reports)[0]
