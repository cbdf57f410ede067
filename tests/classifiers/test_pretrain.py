"""Training of classifiers: accuracy, one step, class names."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from gap.classifiers.classifier import load_classifier
from gap.classifiers.options import DataOptions, PretrainOptions
from gap.classifiers.pretrain import ClassifierTraining, pretrain_from_options
from gap.classifiers.task import load_task
from gap.core.errors import GapError
from gap.data.registry import load_data
from gap.training.augmentation import make_augmentation
from gap.training.options import TrainRuntimeOptions
from gap.training.runtime import make_accelerator
from gap.training.task import with_adamw
from gap.training.trainer import TrainingRun, TrainSchedule, train


def test_classifier_training_on_digits_reaches_80_percent_accuracy(tmp_path) -> None:
    accelerator = make_accelerator(TrainRuntimeOptions(device="cpu", precision="fp32"))
    data = load_data("mnist-5k")
    classifier = load_classifier("mnist-cnn")
    training = ClassifierTraining(
        with_adamw(classifier, 3e-3), label_smoothing=0.05, augmentation=make_augmentation((28, 28), shift=1)
    )
    metrics = train(
        training,
        data.train,
        data.validation,
        TrainSchedule(epochs=0.6, batch_size=64),
        TrainingRun(tmp_path, accelerator),
    )
    assert set(metrics) == {"accuracy"}
    assert metrics["accuracy"] > 0.8


def test_classifier_training_step_gives_loss_and_accuracy_and_changes_the_weights() -> None:
    torch.manual_seed(0)
    classifier = load_classifier("mnist-cnn")
    images, labels = torch.rand(8, 1, 28, 28), torch.arange(8)
    with torch.no_grad():
        logits = classifier(images)
    training = ClassifierTraining(with_adamw(classifier, 1e-3), label_smoothing=0.1, augmentation=torch.nn.Identity())
    before = classifier.fingerprint()
    metrics = training.training_step(images, labels, torch.Tensor.backward)
    log_probabilities = logits.log_softmax(dim=1)
    expected = -(0.9 * log_probabilities[torch.arange(8), labels] + 0.1 * log_probabilities.mean(dim=1)).mean()
    assert metrics["loss"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert metrics["accuracy"].item() == (logits.argmax(dim=1) == labels).float().mean().item()
    assert classifier.fingerprint() != before


def class_folders(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.effect_noise((28, 28), 80).save(root / name / f"{number}.png")
    return f"folder:{root}"


def test_pretrain_class_folders_saves_a_classifier_with_their_names(tmp_path: Path) -> None:
    pets = class_folders(tmp_path / "pets", "10", "9")
    options = PretrainOptions(classifier="mnist-cnn", data=pets, epochs=1.0, device="cpu", precision="fp32")
    card = pretrain_from_options(options, tmp_path / "made").card
    assert card["classifier"]["class_names"] == ["9", "10"]
    folder = str(tmp_path / "made")
    assert load_classifier(folder).spec.class_names == ("9", "10")
    with pytest.raises(GapError, match="made does not know '11' "):
        load_task([folder], DataOptions(data=class_folders(tmp_path / "other", "9", "11")))
