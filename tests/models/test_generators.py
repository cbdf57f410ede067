from typing import Any

import pytest
import torch
from gap.models.generators import Discriminator, Generator, UniversalGenerator, encoder_names, make_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gap.core.errors import GapError

UNIVERSAL: dict[str, Any] = {"encoder": "strided-32", "decoder": [16, 8], "pixel_unshuffle": 2}


class IdentityRecorder(nn.Module):
    """A body that returns its input, and stores it."""

    def forward(self, images: Tensor) -> Tensor:
        self.inputs = images
        return images


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    pixel_unshuffle=st.sampled_from([1, 2, 3, 4]),
    architecture=st.sampled_from(["unet", "autoencoder"]),
)
def test_output_has_the_shape_of_the_input(
    channels: int, height: int, width: int, pixel_unshuffle: int, architecture: str
) -> None:
    network = make_generator(
        channels, architecture=architecture, encoder="strided-32", decoder=[8, 8], pixel_unshuffle=pixel_unshuffle
    )
    images = torch.rand(2, channels, height, width)
    output = network(images)
    assert output.shape == images.shape
    assert output.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    pixel_unshuffle=st.sampled_from([1, 2, 4]),
    stride=st.sampled_from([1, 4]),
)
def test_generator_output_is_cropped_to_the_region_of_the_image(
    height: int, width: int, pixel_unshuffle: int, stride: int
) -> None:
    images = torch.rand(2, 3, height, width)
    network = Generator(IdentityRecorder(), pixel_unshuffle, stride)
    assert torch.equal(network(images), images * 2 - 1)


@pytest.mark.parametrize("size", [(5, 7), (8, 9), (13, 4)])
def test_generator_padding_replicates_the_edge_and_is_cropped(size: tuple[int, int]) -> None:
    """An image that was padded before, to a size that needs no padding, gives the same output in its region."""
    torch.manual_seed(0)
    network = make_generator(1, encoder="strided-32", decoder=[16, 8], pixel_unshuffle=2).eval()
    images = torch.rand(2, 1, *size)
    height, width = size
    above, left = (-height % 8) // 2, (-width % 8) // 2
    padded = F.pad(images, (left, -width % 8 - left, above, -height % 8 - above), mode="replicate")
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    with torch.no_grad():
        whole, cropped = network(padded), network(images)
    assert torch.allclose(whole[..., above : above + height, left : left + width], cropped, atol=1e-5)


def test_generator_pixel_unshuffle_turns_pixels_into_channels() -> None:
    body = IdentityRecorder()
    Generator(body, pixel_unshuffle=2, stride=2)(torch.rand(1, 3, 6, 8))
    assert body.inputs.shape == (1, 12, 4, 4)


every_network = pytest.mark.parametrize(
    "options",
    [
        {},
        {"architecture": "autoencoder"},
        {"encoder": "strided-64", "decoder": [64, 64, 32], "pixel_unshuffle": 2},
        {"encoder": "resnet18", "decoder": [16, 8], "pixel_unshuffle": 2},
        {"encoder": "mobilenet_v2", "decoder": [16, 8], "pixel_unshuffle": 1},
        {"encoder": "efficientnet-b0", "decoder": [16, 8, 8], "pixel_unshuffle": 2},
        {"encoder": "tu-mobilenetv3_small_050", "decoder": [16, 8], "pixel_unshuffle": 2},
        {"encoder": "tu-mobilenetv3_small_050", "decoder": [16, 8, 8], "pixel_unshuffle": 2},
    ],
    ids=lambda options: options.get("encoder") or options.get("architecture") or "default",
)


@every_network
def test_make_generator_every_trainable_weight_gets_a_gradient(options: dict) -> None:
    network = make_generator(1, **options)
    images = torch.rand(2, 1, 28, 28)
    output = network(images)
    assert output.shape == images.shape
    output.square().sum().backward()
    assert [name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None] == []
    assert sum(weight.requires_grad for weight in network.parameters()) > 8


def test_make_generator_unused_encoder_stages_are_removed() -> None:
    shallow, deep = (make_generator(3, encoder="resnet18", decoder=[8] * depth) for depth in (2, 5))
    sizes = [sum(weight.numel() for weight in network.parameters()) for network in (shallow, deep)]
    assert sizes[0] < 400_000 < 11_000_000 < sizes[1]


def test_make_generator_has_untouched_statistics_and_a_loadable_state() -> None:
    """Catches: batch statistics or gradients left by the forward pass that finds the unused modules."""
    torch.manual_seed(1)
    first = make_generator(1, encoder="resnet18", decoder=[8, 8])
    torch.manual_seed(1)
    with torch.no_grad():
        second = make_generator(1, encoder="resnet18", decoder=[8, 8])
    assert first.training and all(module.training for module in first.modules())
    assert all(weight.grad is None for weight in first.parameters())
    norms = [module for module in first.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.num_batches_tracked == 0 and norm.running_mean.abs().max() == 0 for norm in norms)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert [w.requires_grad for w in first.parameters()] == [w.requires_grad for w in second.parameters()]


def test_universal_generator_gives_one_perturbation_in_training_and_eval_mode() -> None:
    torch.manual_seed(0)
    network = UniversalGenerator(make_generator(3, **UNIVERSAL), 3, (21, 18))
    in_training, in_eval = network.train()(), network.eval()()
    assert in_training.shape == (1, 3, 21, 18)
    assert torch.equal(in_training, in_eval)
    assert torch.equal(in_training, network())
    assert not any(module.training for module in network.train().modules())


@every_network
def test_universal_generator_of_any_network_gets_finite_gradients(options: dict) -> None:
    torch.manual_seed(0)
    network = UniversalGenerator(make_generator(1, **options), 1, (28, 28))
    perturbation = network()
    assert perturbation.shape == (1, 1, 28, 28)
    perturbation.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters() if weight.requires_grad)


def test_universal_generator_state_dict_includes_its_noise() -> None:
    torch.manual_seed(0)
    source = UniversalGenerator(make_generator(1, **UNIVERSAL), 1, (12, 12))
    target = UniversalGenerator(make_generator(1, **UNIVERSAL), 1, (12, 12))
    assert source.noise.min() >= 0 and source.noise.max() <= 1 and source.noise.std() > 0.2
    assert not torch.equal(source(), target())
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(), target())


def test_universal_generator_norms_use_the_statistics_of_the_noise() -> None:
    torch.manual_seed(0)
    network = UniversalGenerator(make_generator(1, **UNIVERSAL), 1, (32, 32))
    outputs: list[Tensor] = []
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    with torch.no_grad():
        network()
    assert outputs
    for output in outputs:
        assert output.mean(dim=(0, 2, 3)).abs().max() < 1e-4
        assert output.var(dim=(0, 2, 3), correction=0).max() < 1.001


def test_universal_generator_image_smaller_than_the_stride_is_supported() -> None:
    torch.manual_seed(0)
    network = UniversalGenerator(make_generator(1, **UNIVERSAL), 1, (3, 5))
    assert network().shape == (1, 1, 3, 5)
    assert network().std() > 0


def test_discriminator_gives_one_logit_for_each_image() -> None:
    assert Discriminator(3, width=4)(torch.rand(5, 3, 17, 12)).shape == (5,)


@pytest.mark.parametrize("name", ["strided-32", "strided-64", "resnet18", "mobilenet_v2"])
def test_encoders_are_listed(name: str) -> None:
    assert name in encoder_names()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet81"}, "unknown encoder 'resnet81'; did you mean .*resnet18"),
        ({"encoder": "tu-no_such_network"}, "cannot build a U-Net on the encoder 'tu-no_such_network'"),
        ({"encoder": "resnet18", "weights": "imaginet"}, "encoder 'resnet18' .weights imaginet."),
        ({"encoder": "resnet18", "decoder": [8] * 6}, "cannot build a U-Net on the encoder 'resnet18'"),
        ({"pixel_unshuffle": 0}, "pixel_unshuffle >= 1"),
        ({"decoder": []}, "positive decoder widths"),
        ({"decoder": [16, 0]}, "positive decoder widths"),
    ],
)
def test_make_generator_invalid_options_raise_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(GapError, match=message) as error:
        make_generator(1, **options)
    assert "\n" not in str(error.value)
