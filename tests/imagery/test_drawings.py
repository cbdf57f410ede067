"""The public drawing functions: their arguments, their errors, and their results compared with the inner functions."""

from pathlib import Path

import pytest
import torch
from gap.models.classifiers import CifarResNet18
from PIL import Image
from torch import Tensor

import gap
from gap.classifiers.classifier import Classifier, ClassifierSpec
from gap.core.errors import GapError, GapWarning
from gap.imagery.drawings import group_features
from gap.imagery.feature_visualization import Feature
from gap.imagery.losses import Channel
from gap.imagery.options import StyleTransferOptions
from gap.imagery.style_transfer import transfer_style


def make_network(channels: int = 3) -> Classifier:
    torch.manual_seed(0)
    small = CifarResNet18(channels, 10, width=4)
    return Classifier(small, ClassifierSpec(channels, (32, 32), 10), name="net", architecture="net").eval()


def random_image(seed: int, height: int = 40, width: int = 32) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_stylize_options_by_name_give_the_image_of_the_options_object() -> None:
    """Catches: an option that does not reach the drawing."""
    options = {"evaluations": 3, "style_loss": "moments", "style_weight": 7.0, "layers": ["relu2_x"]}
    content, style = (random_image(seed).mul(255).round() / 255 for seed in (0, 1))
    result = gap.stylize(content, style, backbone=make_network(), size=None, progress=False, **options)
    expected = transfer_style(content, [style], make_network(), options=StyleTransferOptions.read(options))
    assert (result.image - expected.image).abs().max() < 1e-5


def test_stylize_unknown_option_raises_with_the_nearest() -> None:
    with pytest.raises(GapError, match="unknown option 'style_wieght'; did you mean style_weight"):
        gap.stylize(random_image(0), random_image(1), backbone=make_network(), progress=False, style_wieght=3)


def test_stylize_mask_of_other_aspect_ratio_is_refused() -> None:
    """Catches: a mask that is stretched over the content without an error."""
    with pytest.raises(GapError, match="of another shape than the content"):
        gap.stylize(
            random_image(0),
            random_image(1),
            backbone=make_network(),
            masks=[torch.ones(1, 10, 40)],
            evaluations=1,
            progress=False,
        )


def test_stylize_mask_of_other_size_is_resized() -> None:
    result = gap.stylize(
        random_image(0),
        random_image(1),
        backbone=make_network(),
        masks=[torch.ones(1, 20, 16)],
        size=None,
        evaluations=1,
        progress=False,
    )
    assert result.image.shape == (3, 40, 32)


def test_stylize_gray_network_warns_of_lost_colors(tmp_path: Path) -> None:
    path = tmp_path / "colors.png"
    Image.new("RGB", (24, 24), (200, 30, 90)).save(path)
    with pytest.warns(GapWarning, match="colors.png loses its colors"):
        gap.stylize(path, path, backbone=make_network(1), size=None, evaluations=1, progress=False)


def test_invert_each_layer_is_drawn_and_more_steps_lower_the_error() -> None:
    """Catches: target activations that are not those of the given image."""
    image = random_image(0, 32, 32)
    sheet = gap.invert(make_network(), image, ["layer1", "layer2"], steps=2, progress=False)
    assert sheet.captions == ["layer1", "layer2"] and sheet.images[0].shape == (3, 32, 32)
    errors = [
        (gap.invert(make_network(), image, "layer1", steps=steps, progress=False).images[0] - image).square().mean()
        for steps in (1, 40)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_visualize_samples_are_drawn_together_and_differ() -> None:
    sheet = gap.visualize(make_network(), "layer1:0-1", samples=2, steps=2, progress=False)
    assert sheet.captions == ["layer1:0", "layer1:0", "layer1:1", "layer1:1"]
    assert not torch.equal(sheet.images[0], sheet.images[1])
    with pytest.raises(GapError, match="`diversity` is among several drawings"):
        gap.visualize(make_network(), Feature("layer1", 0), diversity=1.0, steps=1, progress=False)


def test_visualize_unknown_layer_raises_before_the_first_drawing() -> None:
    """Catches: minutes of drawing before a misspelled layer is refused."""
    steps: list[int] = []
    with pytest.raises(GapError, match="unknown layer"):
        gap.visualize(
            make_network(),
            ["layer1:0", "layer9:0"],
            steps=2,
            progress=False,
            callback=lambda progress: steps.append(progress.step),
        )
    assert steps == []


def test_group_features_list_in_list_is_one_group() -> None:
    first, second = Feature("layer1", 0), Feature("layer1", 1)
    assert group_features(make_network(), [first, [first, second]]) == [[first], [first, second]]
    assert group_features(make_network(), [[first, second]], samples=2) == [[first, first], [second, second]]


def test_visualize_objective_with_arguments_of_features_is_refused() -> None:
    """Catches: a prior or an initial image that is ignored without a word."""
    objective = Channel("layer1", torch.tensor([0]))
    with pytest.raises(GapError, match="does not go with `prior`, `samples`"):
        gap.visualize(make_network(), objective, prior="natural", samples=2, steps=1, progress=False)


def test_visualize_initial_image_gets_the_size_asked_for() -> None:
    sheet = gap.visualize(make_network(), "layer1:0", init=random_image(0, 80, 64), size=40, steps=1, progress=False)
    assert sheet.images[0].shape == (3, 40, 32)
