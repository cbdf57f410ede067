"""The public drawing functions: what they take, what they refuse, and that they draw what the inner functions draw."""

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
from gap.imagery.options import StyleTransferOptions
from gap.imagery.style_transfer import transfer_style


def network(channels: int = 3) -> Classifier:
    torch.manual_seed(0)
    small = CifarResNet18(channels, 10, width=4)
    return Classifier(small, ClassifierSpec(channels, (32, 32), 10), name="net", architecture="net").eval()


def picture(seed: int, height: int = 40, width: int = 32) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_stylize_options_by_name_equal_options_object() -> None:
    """Catches: an option that does not reach the drawing."""
    chosen = {"evaluations": 3, "style_loss": "moments", "style_weight": 7.0, "layers": ["relu2_x"]}
    content, style = (picture(seed).mul(255).round() / 255 for seed in (0, 1))
    drawn = gap.stylize(content, style, backbone=network(), size=None, progress=False, **chosen)
    inner = transfer_style(content, [style], network(), options=StyleTransferOptions.read(chosen))
    assert (drawn.image - inner.image).abs().max() < 1e-5


def test_stylize_unknown_option_names_the_nearest() -> None:
    with pytest.raises(GapError, match="unknown option 'style_wieght'; did you mean style_weight"):
        gap.stylize(picture(0), picture(1), backbone=network(), progress=False, style_wieght=3)


def test_stylize_mask_of_other_shape_is_refused() -> None:
    """Catches: a mask that is stretched over the content without a word."""
    with pytest.raises(GapError, match="of another shape than the content"):
        gap.stylize(
            picture(0), picture(1), backbone=network(), masks=[torch.ones(1, 10, 40)], evaluations=1, progress=False
        )


def test_stylize_mask_of_other_size_is_resized() -> None:
    drawn = gap.stylize(
        picture(0),
        picture(1),
        backbone=network(),
        masks=[torch.ones(1, 20, 16)],
        size=None,
        evaluations=1,
        progress=False,
    )
    assert drawn.image.shape == (3, 40, 32)


def test_stylize_gray_network_warns_of_lost_colors(tmp_path: Path) -> None:
    path = tmp_path / "colors.png"
    Image.new("RGB", (24, 24), (200, 30, 90)).save(path)
    with pytest.warns(GapWarning, match="colors.png loses its colors"):
        gap.stylize(path, path, backbone=network(1), size=None, evaluations=1, progress=False)


def test_invert_draws_each_layer_and_comes_nearer_with_steps() -> None:
    """Catches: a target that is not that of the image."""
    image = picture(0, 32, 32)
    sheet = gap.invert(network(), image, ["layer1", "layer2"], steps=2, progress=False)
    assert sheet.captions == ["layer1", "layer2"] and sheet.images[0].shape == (3, 32, 32)
    errors = [
        (gap.invert(network(), image, "layer1", steps=steps, progress=False).images[0] - image).square().mean()
        for steps in (1, 40)
    ]
    assert errors[1] < 0.7 * errors[0]


def test_visualize_samples_are_drawn_together_and_differ() -> None:
    sheet = gap.visualize(network(), "layer1:0-1", samples=2, steps=2, progress=False)
    assert sheet.captions == ["layer1:0", "layer1:0", "layer1:1", "layer1:1"]
    assert not torch.equal(sheet.images[0], sheet.images[1])
    with pytest.raises(GapError, match="`diversity` is among several drawings"):
        gap.visualize(network(), Feature("layer1", 0), diversity=1.0, steps=1, progress=False)


def test_visualize_checks_all_features_before_the_first_is_drawn() -> None:
    """Catches: minutes of drawing before a misspelled layer is named."""
    steps: list[int] = []
    with pytest.raises(GapError, match="unknown layer"):
        gap.visualize(
            network(),
            ["layer1:0", "layer9:0"],
            steps=2,
            progress=False,
            callback=lambda progress: steps.append(progress.step),
        )
    assert steps == []


def test_group_features_list_in_list_is_one_group() -> None:
    first, second = Feature("layer1", 0), Feature("layer1", 1)
    assert group_features(network(), [first, [first, second]]) == [[first], [first, second]]
    assert group_features(network(), [[first, second]], samples=2) == [[first, first], [second, second]]
