"""fuse_conv_bn: the fused copy computes the same function; a network that cannot be fused is returned itself."""

from functools import partial
from typing import Any

import pytest
import torch
from gap.models.generators import make_generator
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier, ClassifierSpec, load_classifier
from gap.classifiers.fuse import FusedCopy, fuse_conv_bn


class Net(nn.Module):
    """Two convolutions, each with batch normalization; subclasses override `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.bn2(self.conv2(self.bn1(self.conv1(images)).relu())).relu().mean(dim=(2, 3)))


class UsesConvolutionOutputTwice(Net):
    def forward(self, images: Tensor) -> Tensor:
        before = self.conv1(images)
        return self.head((self.bn1(before) + before).mean(dim=(2, 3)))


class CallsConvolutionTwice(Net):
    def forward(self, images: Tensor) -> Tensor:
        once = self.bn2(self.conv2(self.conv1(images)))
        return self.head(self.conv2(once).mean(dim=(2, 3)))


class ReadsNormWeight(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.bn2.weight.mean()


class ScaledNorm(nn.BatchNorm2d):
    def forward(self, inputs: Tensor, scale: float) -> Tensor:
        return super().forward(inputs) * scale


class CallsNormWithScale(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn2 = ScaledNorm(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(
            self.bn2(self.conv2(images.mean(dim=1, keepdim=True).repeat(1, 8, 1, 1)), 2.0).mean(dim=(2, 3))
        )


def reparametrized(norm: Any) -> Net:
    network = Net()
    network.conv1, network.conv2 = norm(network.conv1), norm(network.conv2)
    return network


def without_statistics() -> Net:
    network = Net()
    network.bn1 = nn.BatchNorm2d(8, track_running_stats=False)
    network.bn2 = nn.BatchNorm2d(8, track_running_stats=False)
    return network


def make_classifier(network: nn.Module) -> Classifier:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.normal_(module.weight)
    return Classifier(network, ClassifierSpec(3, (16, 16), 5), name="net", architecture="net").eval()


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_fuse_conv_bn_gives_the_same_function_and_gradient_without_norms() -> None:
    torch.manual_seed(0)
    classifier = make_classifier(Net())
    fused = fuse_conv_bn(classifier, 3, classifier.spec.size)
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    values = [network(images).logsumexp(dim=1).sum() for network in (classifier, fused)]
    gradients = [torch.autograd.grad(value, images)[0] for value in values]
    assert count_norms(fused) == 0 and count_norms(classifier) == 2
    torch.testing.assert_close(fused(images), classifier(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        UsesConvolutionOutputTwice,
        CallsConvolutionTwice,
        ReadsNormWeight,
        CallsNormWithScale,
        without_statistics,
        pytest.param(partial(reparametrized, nn.utils.spectral_norm), id="old spectral norm"),
        pytest.param(partial(reparametrized, nn.utils.weight_norm), id="old weight norm"),
        pytest.param(partial(reparametrized, nn.utils.parametrizations.spectral_norm), id="spectral norm"),
        pytest.param(partial(reparametrized, nn.utils.parametrizations.weight_norm), id="weight norm"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_fuse_conv_bn_unfusable_network_is_returned_itself(kind: Any) -> None:
    torch.manual_seed(0)
    classifier = make_classifier(kind())
    assert fuse_conv_bn(classifier, classifier.spec.channels, classifier.spec.size) is classifier


def test_fuse_conv_bn_leaves_the_classifier_unchanged() -> None:
    classifier = make_classifier(Net()).train()
    classifier.network.bn1.eval()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    fuse_conv_bn(classifier, 3, (16, 16))
    assert classifier.training and not classifier.network.bn1.training
    assert all(weight.requires_grad for weight in classifier.parameters())
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_fuse_conv_bn_network_without_norms_is_returned_itself() -> None:
    classifier = load_classifier("mnist-cnn")
    assert fuse_conv_bn(classifier, classifier.spec.channels, classifier.spec.size) is classifier


@pytest.mark.parametrize("name", ["cifar-resnet18-narrow", "timm:mobilenetv3_small_050@none"])
def test_fuse_conv_bn_real_network_gives_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    classifier = make_classifier(load_classifier(name, channels=3, size=(32, 32), classes=5).network)
    images = torch.rand(2, 3, 32, 32)
    fused = fuse_conv_bn(classifier, 3, classifier.spec.size)
    assert count_norms(fused) == 0
    torch.testing.assert_close(fused(images), classifier(images), rtol=1e-2, atol=1e-3)


def test_fuse_conv_bn_generator_gives_the_same_output() -> None:
    torch.manual_seed(0)
    network = make_generator(1, encoder="strided-32", decoder=[16, 8], pixel_unshuffle=2)
    network(torch.rand(8, 1, 28, 28))
    fused = fuse_conv_bn(network.eval(), 1, (28, 28))
    images = torch.rand(3, 1, 28, 28)
    assert count_norms(network) > 0 == count_norms(fused)
    torch.testing.assert_close(fused(images), network(images), rtol=1e-3, atol=1e-4)


def test_fused_copy_refresh_after_training_gives_the_new_logits() -> None:
    torch.manual_seed(0)
    classifier = make_classifier(load_classifier("cifar-resnet18-narrow", channels=3, size=(32, 32), classes=5).network)
    fused_copy = FusedCopy(classifier, 3, (32, 32))
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    for _ in range(3):
        classifier.train()(torch.rand(8, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    images = torch.rand(2, 3, 32, 32)
    stale = fused_copy.lean(images)
    torch.testing.assert_close(fused_copy.refresh()(images), classifier.eval()(images), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(stale, classifier(images), rtol=1e-1, atol=1e-2)
