"""Foreign networks: each gives the same results as its plain twin wherever gap calls a network."""

from pathlib import Path

import foreign
import pytest
import torch
from foreign import CHANNELS, CLASSES, SAME_AS, SIDE
from torch import Tensor, nn

from gap.attacks.gradient import FGSM, PGD
from gap.attacks.registry import create_attack
from gap.classifiers.classifier import Classifier, load_classifier
from gap.classifiers.memory_format import check_training, use_channels_last
from gap.classifiers.registry import ClassifierSpec
from gap.core.errors import GapError, GapWarning
from gap.core.network import NetworkError, device_of, to_channels_last
from gap.data.dataset import InMemorySplit
from gap.evaluation.evaluate import evaluate_attack
from gap.evaluation.layer_robustness import layer_robustness
from gap.evaluation.robustness import evaluate_robustness
from gap.imagery.feature_visualization import Feature, visualize_features
from gap.imagery.options import StyleTransferOptions
from gap.imagery.style_transfer import transfer_style
from gap.imagery.traversal import traverse_images
from gap.threat import Budget

BUDGET = Budget("linf", 0.1)
PAIRS = pytest.mark.parametrize("network", SAME_AS, ids=lambda network: network.__name__)


def classifier_of(network: type[nn.Module], **spec) -> Classifier:
    known = ClassifierSpec(CHANNELS, (SIDE, SIDE), CLASSES, **spec)
    classifier = Classifier(network(), known, name=network.__name__, architecture="test").eval()
    use_channels_last(classifier)
    return classifier


def sample(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, CHANNELS, SIDE, SIDE, generator=generator).mul(255).round() / 255
    with torch.no_grad():
        return images, foreign.Plain()(images).argmax(dim=1)


def pixels() -> InMemorySplit:
    images, labels = sample(60)
    return InMemorySplit((images * 255).round().to(torch.uint8), labels)


@PAIRS
@pytest.mark.parametrize("wrapped", [True, False], ids=["classifier", "bare module"])
@pytest.mark.parametrize(
    "spec", ["pgd:steps=4", "fgsm", "deepfool", "noise", "uap:images_seen=12", "uap-sgd:images_seen=24"]
)
def test_attack_foreign_network_gives_the_result_of_its_twin(
    network: type[nn.Module], spec: str, wrapped: bool
) -> None:
    """Catches: images changed in place, a layout that the network cannot take, logits that are not unpacked."""
    images, labels = sample()

    def attacked(kind: type[nn.Module]) -> Tensor:
        torch.manual_seed(0)
        target = classifier_of(kind) if wrapped else kind().eval()
        attack = create_attack(spec, BUDGET, target, lambda: iter([(images, labels)]))
        inputs = images.clone(memory_format=torch.channels_last) if wrapped else images.clone()
        result = attack(target, inputs, labels)
        assert torch.equal(inputs, images)
        return result

    result, expected = attacked(network), attacked(SAME_AS[network])
    assert BUDGET.norm_of(result - images).max() <= BUDGET.epsilon + 1e-6
    assert (result - expected).abs().mean() < 1e-4


@PAIRS
def test_evaluate_attack_foreign_network_gives_the_accuracies_of_its_twin(network: type[nn.Module]) -> None:
    rows = [
        evaluate_attack(PGD(BUDGET, steps=4), classifier_of(kind), pixels(), batch_size=59).row
        for kind in (network, SAME_AS[network])
    ]
    for key in ("clean_accuracy", "accuracy_under_attack"):
        assert rows[0][key] == pytest.approx(rows[1][key], abs=0.04)


@pytest.mark.parametrize("network", [foreign.InPlace, foreign.Squeezing, foreign.Constant])
def test_evaluate_robustness_foreign_network_gives_the_accuracy_of_its_twin(network: type[nn.Module]) -> None:
    results = [
        evaluate_robustness(classifier_of(kind), pixels(), BUDGET, images=11, batch_size=10, fast=True)
        for kind in (network, SAME_AS[network])
    ]
    assert results[0].robust_accuracy == pytest.approx(results[1].robust_accuracy, abs=0.1)


def test_evaluate_robustness_reentrant_checkpoint_is_refused_with_the_reason() -> None:
    with pytest.raises(NetworkError, match=r"AutoAttack cannot attack Checkpointed: .*use_reentrant=False"):
        evaluate_robustness(classifier_of(foreign.Checkpointed), pixels(), BUDGET, images=4, fast=True)


@PAIRS
def test_drawing_foreign_network_gives_the_image_of_its_twin(network: type[nn.Module]) -> None:
    content, style = sample()[0][:2]
    if network in (foreign.Constant, foreign.Checkpointed):
        return  # neither has a layer that can be drawn with; the tests of errors below say what happens
    drawings = []
    for kind in (network, SAME_AS[network]):
        backbone = classifier_of(kind)
        config = StyleTransferOptions(
            layers=["conv1", "conv2"], content_layers=["conv1"], evaluations=4, precision="fp32"
        )
        drawings.append(transfer_style(content, [style], backbone, options=config).image)
        drawings.append(visualize_features(backbone, [Feature("conv2", 1)], steps=3)[0])
        drawings.append(visualize_features(backbone, [Feature("logits", 1)], steps=3)[0])
        drawings.append(traverse_images(backbone, content[None], torch.tensor([1]), steps=3).images[-1, 0])
    half = len(drawings) // 2
    for drawing, expected in zip(drawings[:half], drawings[half:], strict=True):
        assert (drawing - expected).abs().mean() < 1e-3


@PAIRS
def test_layer_robustness_foreign_network_gives_the_value_of_its_twin(network: type[nn.Module]) -> None:
    images, _ = sample(4)
    values = [
        layer_robustness(classifier_of(kind), ["logits"], images, BUDGET, steps=2)[0].value
        for kind in (network, SAME_AS[network])
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


@PAIRS
def test_check_training_foreign_network_gets_the_gradients_of_its_twin(network: type[nn.Module]) -> None:
    if network is foreign.Constant:
        with pytest.raises(GapError, match="Constant has no weights that can be trained"):
            check_training(classifier_of(network))
        return
    images, labels = sample()
    gradients = []
    for kind in (network, SAME_AS[network]):
        classifier = classifier_of(kind)
        state = {name: value.clone() for name, value in classifier.state_dict().items()}
        check_training(classifier)
        assert not classifier.training
        assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
        classifier.train()
        nn.functional.cross_entropy(classifier(images), labels).backward()
        gradients.append(classifier.network.fc.weight.grad)
    assert torch.allclose(*gradients, atol=1e-4)


@pytest.mark.parametrize("network", [foreign.GrayViewing, foreign.GrayStrided])
def test_attack_gray_images_of_a_split_have_the_memory_format_of_the_network(network: type[nn.Module]) -> None:
    """Catches: strides of channels last, which images of one channel keep through `contiguous` and `clone`."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(256, (40, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        labels = foreign.Gray()(images / 255).argmax(dim=1)
    split = InMemorySplit(images, labels)
    classifier = Classifier(
        network(), ClassifierSpec(1, (SIDE, SIDE), CLASSES), name="gray", architecture="test"
    ).eval()
    use_channels_last(classifier)
    assert classifier.memory_format == torch.contiguous_format
    assert evaluate_attack(FGSM(BUDGET), classifier, split, batch_size=39).row["clean_accuracy"] == 1
    batch, own = next(iter(split.batches([torch.arange(40)])))
    expected = FGSM(BUDGET)(foreign.Gray().eval(), batch.contiguous(), own)
    assert (FGSM(BUDGET)(network().eval(), batch, own) - expected).abs().mean() < 1e-4


def test_deepfool_no_image_fooled_never_calls_the_network_with_an_empty_batch() -> None:
    class NeverEmpty(foreign.Plain):
        def forward(self, images: Tensor) -> Tensor:
            assert len(images)
            return super().forward(images)

    images, labels = sample()
    result = create_attack("deepfool:steps=1", Budget("linf", 1e-6))(NeverEmpty().eval(), images, labels)
    assert (result - images).abs().max() <= 2e-6


def test_load_classifier_torchscript_and_lazy_networks_are_loaded(source: Path) -> None:
    source.write_text(source.read_text() + UNUSUAL)
    images, _ = sample(3)
    assert torch.allclose(load(source, "scripted")(images), foreign.Plain()(images), atol=1e-5)
    assert load(source, "lazy")(images).shape == (3, CLASSES)


def test_transfer_style_network_that_resizes_its_input_gives_a_finite_image() -> None:
    content, style = sample()[0][:2]
    config = StyleTransferOptions(layers=["conv1", "conv2"], content_layers=["conv2"], evaluations=2, precision="fp32")
    assert transfer_style(content, [style], classifier_of(foreign.Resizing), options=config).image.isfinite().all()


def test_evaluate_attack_network_that_returns_nan_warns_with_the_count() -> None:
    class Sometimes(foreign.Plain):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return torch.where(images[:, :1, 0, 0] < 0.2, torch.nan, logits)

    with pytest.warns(GapWarning, match=r"Sometimes returns NaN for \d+ of 60 images"):
        evaluate_attack(create_attack("noise", BUDGET), classifier_of(Sometimes), pixels())


def test_attack_out_of_memory_is_not_reported_as_a_network_error() -> None:
    class Large(foreign.Plain):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with pytest.raises(RuntimeError, match=r"can't allocate memory"):
        FGSM(BUDGET)(Large().eval(), *sample())


def test_use_channels_last_is_set_only_where_the_outputs_stay_equal() -> None:
    layouts = {kind: classifier_of(kind).memory_format for kind in (foreign.Plain, foreign.Viewing, foreign.Strided)}
    assert layouts == {
        foreign.Plain: torch.channels_last,
        foreign.Viewing: torch.contiguous_format,
        foreign.Strided: torch.contiguous_format,
    }


def test_check_training_strided_convolution_of_one_pixel_keeps_the_contiguous_format() -> None:
    """Catches: a memory format in which oneDNN writes outside of its memory: wrong gradients, or the end of Python."""
    classifier = classifier_of(foreign.PixelStride)
    assert classifier.memory_format == torch.contiguous_format and check_training(classifier.requires_grad_(True))


def test_to_channels_last_strided_convolution_of_one_pixel_gets_contiguous_inputs() -> None:
    """Catches: a generator whose encoder oneDNN miscomputes, on images of a data set, which are in channels last."""
    network = to_channels_last(foreign.PixelStride())
    formats: list[bool] = []
    network.conv1.register_forward_pre_hook(lambda module, inputs: formats.append(inputs[0].is_contiguous()))
    network(torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    plain = to_channels_last(foreign.Plain())
    assert formats == [True] and plain.conv2.weight.is_contiguous(memory_format=torch.channels_last)


UNUSUAL = """
def scripted():
    return torch.jit.trace(Plain().eval(), torch.rand(2, 3, 8, 8))


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
"""
SOURCE = "import sys; sys.path.insert(0, {folder!r})\nfrom foreign import *\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(SOURCE.format(folder=str(Path(foreign.__file__).parent)))
    return path


def load(source: Path, name: str) -> Classifier:
    return load_classifier(f"{source}:{name}", channels=CHANNELS, size=(SIDE, SIDE), classes=CLASSES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("InTuple", "returns a tuple; its logits are taken"),
        ("InDictionary", "returns a dict; its logits are taken"),
        ("InObject", "returns a SimpleNamespace; its logits are taken"),
        ("Half", "has weights in bfloat16; it is used in float32"),
        ("Double", "has weights in float64; it is used in float32"),
    ],
)
def test_load_classifier_unusual_outputs_or_dtype_warns_once(source: Path, name: str, message: str) -> None:
    with pytest.warns(GapWarning, match=message) as warned:
        classifier = load(source, name)
    assert len(warned) == 1
    images, _ = sample(3)
    assert torch.allclose(classifier(images), foreign.Plain()(images), atol=0.1)


def test_check_training_weights_without_gradient_warns_with_their_names() -> None:
    """Catches: a network with a reentrant checkpoint of which only the head is trained, without a warning."""
    with pytest.warns(GapWarning, match=r"4 of 6 weights get no gradient and do not learn, conv1\.weight"):
        assert not check_training(classifier_of(foreign.Checkpointed))


def test_check_training_auxiliary_outputs_warns() -> None:
    with pytest.warns(GapWarning, match="InTupleInTraining returns a Outputs in training mode; its logits are taken"):
        check_training(classifier_of(foreign.InTupleInTraining))


def test_load_classifier_network_that_fails_on_one_image_is_refused(source: Path) -> None:
    with pytest.raises(NetworkError, match="NormalizedByBatch fails on one image of 3x8x8: ValueError: Expected more"):
        load(source, "NormalizedByBatch")


def test_load_classifier_network_that_raises_is_refused_with_shape_and_error(source: Path) -> None:
    with pytest.raises(NetworkError, match="Raising fails on 2 images of 3x8x8: KeyError: 'a key of its own'") as error:
        load(source, "Raising")
    assert isinstance(error.value.__cause__, KeyError)


def test_attack_network_that_raises_during_it_gives_an_error_of_one_line() -> None:
    class Moody(foreign.Plain):
        def forward(self, images: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("shapes cannot be\nmultiplied")
            return super().forward(images)

    images, labels = sample()
    for target in (Moody().eval(), classifier_of(Moody)):
        with pytest.raises(NetworkError, match=r"Moody fails on 12 images of 3x8x8: RuntimeError: shapes cannot be$"):
            FGSM(BUDGET)(target, images, labels)


def test_attack_gradient_of_nan_warns_with_the_count() -> None:
    images, labels = sample()
    for spec in ("pgd:steps=2", "fgsm", "deepfool"):
        attack = create_attack(spec, BUDGET)
        with pytest.warns(GapWarning, match="gradient is NaN or infinite for 12 of 12 images"):
            result = attack(foreign.UndefinedGradient().eval(), images, labels)
        assert result.isfinite().all()


def test_evaluate_robustness_gradient_of_nan_fails_the_masking_checks() -> None:
    with pytest.warns(GapWarning, match="NaN or infinite"):
        result = evaluate_robustness(classifier_of(foreign.UndefinedGradient), pixels(), BUDGET, images=10, fast=True)
    checks = {check.name: check for check in result.checks}
    for name in ("losses are not flat", "gradients tell how the margin changes"):
        assert not checks[name].passed
        assert "NaN or infinite" in checks[name].details
    assert result.verdict == "masked"


def test_visualize_features_gradient_of_nan_raises_with_the_reason() -> None:
    with pytest.raises(GapError, match=r"the gradient of .* is NaN or infinite"):
        visualize_features(classifier_of(foreign.UndefinedGradient), [Feature("conv2", 1)], steps=3)


@pytest.mark.parametrize("network", [foreign.Checkpointed, foreign.Detached])
def test_transfer_style_layer_without_gradient_is_refused_by_name(network: type[nn.Module]) -> None:
    """Catches: a style that is silently left out, since the colors alone still pass a gradient."""
    content, style = sample()[0][:2]
    config = StyleTransferOptions(layers=["conv1"], content_layers=["conv2"], evaluations=4)
    with pytest.raises(GapError, match="style at conv1 passes no gradient to the image"):
        transfer_style(content, [style], classifier_of(network), options=config)


def test_device_of_network_without_parameters_is_the_device_of_its_buffers() -> None:
    assert device_of(foreign.Constant()) == torch.device("cpu")
    assert device_of(nn.Flatten()) == torch.device("cpu")
    assert device_of(foreign.Constant().to("meta")) == torch.device("meta")
