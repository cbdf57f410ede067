"""Networks of the user as classifiers: the images that they take, and that verbs leave them unchanged."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gap
from gap.classifiers.adapters import as_classifier, copied
from gap.classifiers.options import DataOptions
from gap.classifiers.task import load_task
from gap.core.errors import GapError, GapWarning
from gap.data.adapters import evaluation_data

SIDE = 12


class Flat(nn.Module):
    """A network for images of one shape only, because of its linear head."""

    def __init__(self, channels: int, kind: type[nn.Module] = nn.Conv2d) -> None:
        super().__init__()
        first: Any = kind
        self.conv = first(channels, 4, 3, padding=1) if kind is nn.Conv2d else first(4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * SIDE * SIDE, 3)
        self.moves: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).relu().flatten(1))

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self.moves.append("moved")
        return super()._apply(*arguments, **options)


class Perceptron(nn.Module):
    """A network without convolutions that show its channel count; other channels would mix the images of a batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.head = nn.Linear(channels * SIDE * SIDE, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.reshape(-1, self.channels * SIDE * SIDE))


def data(channels: int, count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 3


@pytest.mark.parametrize("wrap", [lambda net: net, gap.Classifier, lambda net: gap.Classifier(net, input_size=SIDE)])
@pytest.mark.parametrize("network", [Flat, Perceptron])
@pytest.mark.parametrize(("own_channels", "data_channels"), [(1, 3), (3, 1)])
def test_evaluate_images_with_other_channels_converts_them_with_a_warning(
    own_channels: int, data_channels: int, network: Any, wrap: Any
) -> None:
    """Catches: torch's own error about the channels of a convolution."""
    images, labels = data(data_channels)
    model = wrap(network(own_channels).eval())
    with pytest.warns(GapWarning, match=f"tensors is given to .* as {own_channels}x12x12"):
        row = gap.evaluate("noise", model, (images, labels), "linf:0.1").rows[0]
    task = load_task([model], DataOptions(), data=evaluation_data((images, labels)))
    ((batch, _),) = task.data.test.batches([torch.arange(2)])
    assert batch.shape[1] == own_channels and row["images"] == 8


def test_evaluate_inconvertible_channels_raises_a_one_line_error() -> None:
    images, labels = data(4)
    with pytest.raises(GapError, match="tensors has images of 4 channels, and only 1 or 3 become 3") as error:
        gap.evaluate("noise", Flat(3), (images, labels), "linf:0.1")
    assert "\n" not in str(error.value)


def test_as_classifier_wrong_input_size_raises_an_error_with_the_needed_options() -> None:
    with pytest.raises(GapError, match=r"of 1x20x20: .*gap\.Classifier\(model, input_size=\(H, W\), channels=C\)$"):
        as_classifier(Flat(1), channels=3, size=(20, 20))
    with pytest.raises(GapError, match=r"^Perceptron returns the shape .*; say which images it takes"):
        as_classifier(Perceptron(1), channels=1, size=(2 * SIDE, SIDE))


def test_as_classifier_lazy_network_in_training_mode_keeps_its_statistics() -> None:
    """Catches: a forward pass, for the shapes of the lazy layers, that changes the running statistics."""
    network = Flat(1, nn.LazyConv2d)
    classifier = as_classifier(network, channels=3, size=(SIDE, SIDE))
    assert classifier.spec.channels == network.conv.in_channels == 3
    assert network.training and not network.norm.num_batches_tracked and not network.norm.running_mean.any()


def test_as_classifier_second_normalizer_raises_gap_error() -> None:
    """Catches: a mean that is passed and ignored."""
    classifier = gap.Classifier(Flat(1), mean=0.5, std=0.25, input_size=SIDE)
    for normalizer in ({"mean": [0.1]}, {"std": [0.25]}, {"mean": [0.5], "std": [1.0]}):
        with pytest.raises(GapError, match="Flat has its own normalizer, or none; leave out `mean` and `std`"):
            as_classifier(classifier, **normalizer)
    assert as_classifier(classifier, mean=[0.5], std=[0.25]) is classifier
    with pytest.raises(GapError, match="leave out `mean` and `std`"):
        gap.evaluate("noise", classifier, data(1), "linf:0.1", mean=[0.1])
    with pytest.raises(GapError, match="leave out `mean` and `std`"):
        as_classifier("torchvision:squeezenet1_1@none", mean=[0.1])


def test_classifier_spec_and_one_of_its_fields_raises_gap_error() -> None:
    spec = as_classifier(Flat(1), channels=1, size=(SIDE, SIDE)).spec
    with pytest.raises(GapError, match="`spec` holds `mean`, "):
        gap.Classifier(Flat(1), spec, mean=0.5)


@pytest.mark.parametrize("names", [["a", "b"], list("abcd")])
def test_as_classifier_wrong_number_of_class_names_raises_gap_error(names: list[str]) -> None:
    with pytest.raises(GapError, match=f"Flat has 3 classes, and `class_names` has {len(names)} names"):
        as_classifier(gap.Classifier(Flat(1), class_names=names), channels=1, size=(SIDE, SIDE))


def test_classifier_text_as_class_names_raises_gap_error() -> None:
    with pytest.raises(GapError, match="`class_names` is a list of names, not 'abc'"):
        gap.Classifier(Flat(1), class_names="abc")


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: gap.Classifier(net, input_size=SIDE)])
def test_evaluate_on_another_device_leaves_the_network_of_the_user_in_place(
    wrap: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a network of the user that is moved for good. The only device here is mocked to be another one."""
    network = Flat(1)
    model = wrap(network)
    state = copy.deepcopy(network.state_dict())
    gap.evaluate("fgsm", model, data(1), "linf:0.1", device="cpu")
    monkeypatch.setattr("gap.classifiers.adapters.is_on", lambda network, device: False)
    task = load_task([model], DataOptions(), "cpu", data=evaluation_data(data(1)))
    inner = task.classifiers[0].network
    assert inner is not network and inner.moves and not network.moves
    assert network.training and all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("verb", ["evaluate", "judge", "train_generator", "harden", "pretrain"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_verbs_network_of_another_precision_is_left_unchanged(verb: str, dtype: torch.dtype) -> None:
    """Catches: a call that changes weights, mode, gradients or precision of the network of the user."""
    network = Flat(1).to(dtype)
    network.head.eval()
    network.moves.clear()
    state = copy.deepcopy(network.state_dict())
    images, labels = data(1, 40)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 10, "device": "cpu", "progress": False}
    calls: dict[str, Any] = {
        "evaluate": lambda: gap.evaluate("fgsm", network, (images, labels), "linf:0.1", device="cpu"),
        "judge": lambda: gap.judge(
            network, (images, labels), "linf:0.1", images=4, fast=True, device="cpu", progress=False
        ),
        "train_generator": lambda: gap.train_generator(network, (images, labels), "linf:0.1", **options),
        "harden": lambda: gap.harden(network, (images, labels), "linf:0.1", attacks=["fgsm"], **options),
        "pretrain": lambda: gap.pretrain(network, (images, labels), **options),
    }
    with pytest.warns(GapWarning, match="a copy of it in float32 is used"):
        calls[verb]()
    assert not network.moves and network.training and not network.head.training
    assert all(
        weight.dtype == dtype and weight.grad is None and weight.requires_grad for weight in network.parameters()
    )
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_copied_network_that_stores_its_outputs_raises_a_one_line_error() -> None:
    network = Flat(1)
    # A plain attribute, as people set it; the type of modules allows only tensors and modules.
    network.kept = network(torch.rand(2, 1, SIDE, SIDE))  # type: ignore[assignment]
    with pytest.raises(
        GapError, match=r"^Flat cannot be copied \(.*\); let it keep no outputs of its layers$"
    ) as error:
        copied(network)
    assert "\n" not in str(error.value)
