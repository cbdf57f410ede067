import pytest
import torch

from gap.classifier import load_classifier
from gap.data.named import load_data
from gap.training.job import adam
from gap.training.loop import Plan, train
from gap.training.machine import MachineOptions, make_accelerator
from gap.training.standard import StandardJob, make_augmentation


@pytest.mark.parametrize("size", [(28, 28), (5, 9), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("shift", "flip"), [(0, False), (2, False), (2, True), (0, True)])
def test_augmentation_keeps_shape_and_range(size: tuple[int, int], channels: int, shift: int, flip: bool) -> None:
    torch.manual_seed(0)
    images = torch.rand(6, channels, *size)
    augmented = make_augmentation(shift, flip, size)(images)
    assert augmented.shape == images.shape
    assert augmented.min() >= 0
    assert augmented.max() <= 1


def test_no_augmentation_changes_nothing() -> None:
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(make_augmentation(0, False, (8, 8))(images), images)


def test_shift_moves_no_further_than_asked() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 21, 31)
    image[..., 10, 15] = 1
    moved = make_augmentation(3, False, (21, 31))(image.expand(200, -1, -1, -1))
    assert moved.sum(dim=(1, 2, 3)).sub(1).abs().max() < 1e-3
    rows = (moved.sum(dim=(1, 3)) @ torch.arange(21.0)) - 10
    columns = (moved.sum(dim=(1, 2)) @ torch.arange(31.0)) - 15
    for offsets in (rows, columns):
        assert 2.5 < offsets.abs().max() <= 3 + 1e-3
        assert offsets.min() < 0 < offsets.max()


def test_flip_mirrors_about_half() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 1, 4, 6).expand(200, -1, -1, -1)
    flipped = make_augmentation(0, True, (4, 6))(images)
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    kept = (flipped == images).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~kept)
    assert 60 < mirrored.sum() < 140


def test_a_classifier_learns_digits(tmp_path) -> None:
    machine = make_accelerator(MachineOptions(device="cpu", precision="fp32"))
    data = load_data("mnist-5k")
    classifier = load_classifier("mnist-cnn")
    job = StandardJob(adam(classifier, 3e-3), smoothing=0.05, augmentation=make_augmentation(1, False, (28, 28)))
    figures = train(job, data.train, data.validation, Plan(epochs=0.6, batch_size=64), tmp_path, machine)
    assert set(figures) == {"accuracy"}
    assert figures["accuracy"] > 0.8


def test_one_step_reports_loss_and_accuracy_and_moves_the_weights() -> None:
    torch.manual_seed(0)
    classifier = load_classifier("mnist-cnn")
    images, labels = torch.rand(8, 1, 28, 28), torch.arange(8)
    with torch.no_grad():
        logits = classifier(images)
    job = StandardJob(adam(classifier, 1e-3), smoothing=0.1, augmentation=torch.nn.Identity())
    before = classifier.fingerprint()
    figures = job.step(images, labels, torch.Tensor.backward)
    logs = logits.log_softmax(dim=1)
    expected = -(0.9 * logs[torch.arange(8), labels] + 0.1 * logs.mean(dim=1)).mean()
    assert figures["loss"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert figures["accuracy"].item() == (logits.argmax(dim=1) == labels).float().mean().item()
    assert classifier.fingerprint() != before
