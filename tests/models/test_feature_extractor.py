"""Layers are found by name in any network, and their outputs are those before a change in place."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from gap.models.classifiers import CifarResNet18
from gap.models.feature_extractor import (
    LOGITS,
    FeatureExtractor,
    last_layer_per_resolution,
    layer_aliases,
    map_layouts,
    with_average_pooling,
    with_padding,
    with_smooth_strides,
)
from torch import Tensor, nn

from gap.core.errors import GapError


class Overwriting(nn.Module):
    """A network that changes the output of its convolution in place, by a module and by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        out = self.relu(self.conv(images))
        out += 1.0
        return self.head(out.mean(dim=(2, 3)))


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
    )  # fmt: skip


def test_feature_extractor_output_changed_in_place_later_is_the_original() -> None:
    torch.manual_seed(0)
    network, images = Overwriting(), torch.rand(2, 3, 8, 8)
    conv = network.conv(images)
    outputs = FeatureExtractor(network, ["relu", "conv", LOGITS])(images)
    assert torch.equal(outputs["conv"], conv) and (conv < 0).any()
    assert torch.equal(outputs["relu"], conv.relu())
    assert torch.equal(outputs[LOGITS], network(images))
    assert list(outputs) == ["relu", "conv", LOGITS]


def test_feature_extractor_gradients_equal_those_of_the_network() -> None:
    torch.manual_seed(0)
    network, names = chain(), ["relu1_2", "conv2_1"]
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    outputs = FeatureExtractor(network, names)(images)
    (gradient,) = torch.autograd.grad(sum(output.square().sum() for output in outputs.values()), images)
    middle = network[:4](images)
    expected = middle.square().sum() + network[4:6](middle).square().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, images)[0])


def test_feature_extractor_runs_no_module_after_the_last_layer() -> None:
    ran: list[str] = []
    network = chain().eval()
    for name, module in network.named_children():
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    extractor = FeatureExtractor(network, ["relu1_1"])
    extractor(torch.rand(1, 3, 8, 8))
    ran.clear()
    extractor(torch.rand(1, 3, 8, 8))
    assert ran == ["0", "1"]
    assert not any(len(module._forward_hooks) > 1 for module in network)


def test_feature_extractor_module_called_twice_gives_its_last_output() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, images: Tensor) -> Tensor:
            return self.act(self.conv(self.act(images - 0.5)))

    network, images = Twice(), torch.rand(1, 3, 4, 4)
    extractor = FeatureExtractor(network, ["act"])
    for _ in range(2):
        assert torch.equal(extractor(images)["act"], network(images))


VGG = {"relu1_1": "features.1", "relu4_2": "features.20", "conv5_3": "features.28", "conv_2": "features.2"}
RESNET = {f"relu{stage + 1}_x": f"layer{stage}" for stage in range(1, 5)}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torchvision.models.vgg16(), VGG),
        (lambda: torchvision.models.vgg16_bn(), {"relu1_1": "features.2", "relu4_2": "features.29"}),
        (lambda: torchvision.models.alexnet(), {"conv_1": "features.0", "conv_4": "features.8"}),
        (lambda: torchvision.models.resnet50(), RESNET),
        (lambda: timm.create_model("resnet18"), RESNET),
        (lambda: CifarResNet18(3, 10, width=4), RESNET),
    ],
    ids=["vgg16", "vgg16_bn", "alexnet", "resnet50", "timm resnet18", "cifar resnet18"],
)
def test_layer_aliases_give_the_names_of_the_literature(
    make: Callable[[], nn.Module], expected: dict[str, str]
) -> None:
    with torch.device("meta"):
        network = make()
    aliases = layer_aliases(network)
    assert {name: aliases.get(name) for name in expected} == expected


def test_feature_extractor_unknown_layer_raises_with_the_nearest() -> None:
    with pytest.raises(GapError, match="unknown layer 'relu1_3'; did you mean relu1_2"):
        FeatureExtractor(chain(), ["relu1_3"])


@pytest.mark.parametrize("names", [["relu1_1", "1"], ["conv_2", "conv_2"]])
def test_feature_extractor_layer_named_twice_raises(names: list[str]) -> None:
    with pytest.raises(GapError, match=f"layer {names[0]} is named twice"):
        FeatureExtractor(chain(), names)


def test_feature_extractor_layer_that_never_runs_raises() -> None:
    network = chain()
    network.spare = nn.Identity()
    network.forward = network[:2].forward
    with pytest.raises(GapError, match="layer spare does not run"):
        FeatureExtractor(network, ["spare"])(torch.rand(1, 3, 8, 8))


def test_last_layer_per_resolution_gives_the_end_of_each_stage() -> None:
    network = CifarResNet18(3, 10, width=4).eval()
    assert last_layer_per_resolution(network, torch.rand(1, 3, 32, 32)) == ["layer1", "layer2", "layer3", "layer4"]
    assert last_layer_per_resolution(chain().eval(), torch.rand(1, 3, 8, 8)) == ["3", "7"]


def test_with_average_pooling_keeps_the_scale_of_each_pool() -> None:
    torch.manual_seed(0)
    pools = [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)]
    parts = [nn.Sequential(nn.Conv2d(width, 8, 3, padding=1), nn.ReLU()) for width in (3, 8)]
    network, images = nn.Sequential(parts[0], pools[0], parts[1], pools[1]).eval(), torch.rand(4, 3, 16, 16)
    swapped = with_average_pooling(network, images)
    for end in (2, 4):
        before, after = network[:end](images), swapped[:end](images)
        assert after.square().mean().item() == pytest.approx(before.square().mean().item(), rel=1e-4)
        assert not torch.allclose(before, after)
    assert network[1] is pools[0]
    plain = nn.functional.avg_pool2d(swapped[:1](images), 2)
    torch.testing.assert_close(swapped[:2](images), plain * swapped[1].factor)


def test_with_average_pooling_network_without_max_pooling_raises() -> None:
    with pytest.raises(GapError, match="no max pooling"):
        with_average_pooling(CifarResNet18(3, 10, width=4), torch.rand(1, 3, 32, 32))


def test_with_padding_reflect_gives_constant_outputs_for_a_constant_image() -> None:
    network = chain().eval()
    flat = torch.full((1, 3, 8, 8), 0.7)
    assert network[0](flat).flatten(2).std(dim=2).max() > 1e-2
    assert with_padding(network, "reflect")[0](flat).flatten(2).std(dim=2).max() < 1e-5


def test_feature_extractor_other_size_does_not_run_the_head() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    extractor = FeatureExtractor(network, ["0"])
    for side in (8, 12, 12):
        assert extractor(torch.rand(1, 3, side, side))["0"].shape == (1, 4, side, side)
    with pytest.raises(RuntimeError):
        FeatureExtractor(network, ["0", LOGITS])(torch.rand(1, 3, 12, 12))


def test_layer_aliases_several_chains_name_the_longest() -> None:
    short = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    network = nn.ModuleDict({"stem": short, "body": chain()})
    assert {path.partition(".")[0] for path in layer_aliases(network).values()} == {"body"}


def test_last_layer_per_resolution_leaves_out_maps_of_class_scores() -> None:
    with torch.device("meta"):
        network = torchvision.models.squeezenet1_1(num_classes=7)
    layers = last_layer_per_resolution(network.eval(), torch.rand(1, 3, 64, 64, device="meta"), classes=7)
    assert len(layers) > 2 and not {"classifier.1", "classifier.2", "classifier.3"} & set(layers)


@pytest.mark.parametrize("size", [32, 31])
def test_with_smooth_strides_keeps_sizes_and_depends_on_every_pixel(size: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1))
    smooth = with_smooth_strides(network)
    images = torch.rand(1, 3, size, size, requires_grad=True)
    for name in ("conv_1", "conv_2"):
        after, before = FeatureExtractor(smooth, [name])(images)[name], FeatureExtractor(network, [name])(images)[name]
        assert after.shape == before.shape
    (gradient,) = torch.autograd.grad(FeatureExtractor(smooth, ["conv_1"])(images)["conv_1"].sum(), images)
    assert (gradient[..., :30, :30] != 0).all()
    (gradient,) = torch.autograd.grad(FeatureExtractor(network, ["conv_1"])(images)["conv_1"].sum(), images)
    assert (gradient != 0).float().mean() < 0.3
    with pytest.raises(GapError, match="no strides"):
        with_smooth_strides(nn.Conv2d(3, 3, 3))


def small_convnext() -> nn.Module:
    blocks = [
        torchvision.models.convnext.CNBlockConfig(8, 16, 1),
        torchvision.models.convnext.CNBlockConfig(16, None, 1),
    ]
    return torchvision.models.ConvNeXt(blocks, num_classes=4).eval()


def small_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=4).eval()


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4).eval()


def test_map_layouts_distinguishes_channels_last_maps_from_channels_first_and_tokens() -> None:
    """Catches: a layout guessed from the number of dimensions, as of blocks of ConvNeXt, and stages of Swin."""
    images = torch.rand(1, 3, 32, 32)
    for network, expected in (
        (small_convnext(), {"features.1": "NCHW", "features.1.0.block.3": "NHWC", "classifier": None}),
        (small_swin(), {"features.1": "NHWC", "features.1.0.attn": "NHWC", "permute": "NCHW"}),
        (small_vit(), {"conv_proj": "NCHW", "encoder.layers": None}),
    ):
        layouts = map_layouts(network, dict(network.named_modules()), images)
        assert {path: layouts.get(path) for path in expected} == expected


def test_map_layouts_attention_weights_have_no_layout() -> None:
    """Catches: heads x tokens x tokens taken for channels x height x width."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(2).transpose(1, 2)
            self.weights((tokens @ tokens.transpose(1, 2))[:, None].softmax(dim=-1))
            return tokens.mean(dim=1)

    network = Attention()
    assert map_layouts(network, dict(network.named_modules()), torch.rand(1, 3, 8, 8)) == {}
    with pytest.raises(GapError, match="layer weights gives 1 x 64 x 64 values, of which no two are known to be"):
        FeatureExtractor(network, ["weights"]).read_as_maps(torch.rand(1, 3, 8, 8))


def test_feature_extractor_read_as_maps_gives_channels_first() -> None:
    network, images = small_swin(), torch.rand(2, 3, 32, 32)
    extractor = FeatureExtractor(network, ["features.1"])
    assert extractor(images)["features.1"].shape == (2, 16, 16, 8)
    before = extractor(images)["features.1"]
    extractor.read_as_maps(images)
    assert torch.equal(extractor(images)["features.1"], before.permute(0, 3, 1, 2))


def test_last_layer_per_resolution_transformers_give_only_layers_of_maps() -> None:
    images = torch.rand(1, 3, 32, 32)
    assert last_layer_per_resolution(small_swin(), images, 4) == ["features.1", "permute"]
    assert last_layer_per_resolution(small_convnext(), images, 4) == ["features.2.0", "features"]
    assert last_layer_per_resolution(small_vit(), images, 4) == ["conv_proj"]
