"""The parts that all trainings of a classifier share: loading, training a copy, metrics and saving."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gap.classifiers.adapters import ClassifierLike, copied, name_of
from gap.classifiers.classifier import Classifier
from gap.classifiers.memory_format import use_channels_last
from gap.classifiers.options import OWN_LABELS, ClassifierTrainingOptions
from gap.classifiers.task import AttackTask, accuracy, find_device, load_task, name_classes
from gap.classifiers.trained import TrainedClassifier
from gap.core.artifact import Artifact
from gap.core.errors import GapError
from gap.data.adapters import data_name, is_data_name, training_data
from gap.data.dataset import Dataset
from gap.training.run import Work, run_training
from gap.training.runtime import main_first
from gap.training.trainer import TrainingRun


def train_copy(
    name: str,
    work: Work,
    kind: type[ClassifierTrainingOptions],
    model: ClassifierLike,
    data: Any,
    given: dict[str, Any],
    device: torch.device | str | None,
    out: Path | str | None,
    **settings: Any,
) -> TrainedClassifier:
    """Train a copy of a user's model with `work`.

    `work` takes options of the class `kind`, and the copy with its data as `task`. `given` has options by name, and
    `settings` are further arguments of `run_training`. Raises GapError where `given` has `labels`.
    """
    if "labels" in given:
        raise GapError(OWN_LABELS)
    torch_device = find_device([model], device)
    defaults = {"classifier": name_of(model), "data": data_name(data), "device": str(torch_device)}
    options = kind.read(defaults, given)
    task = _load_labeled(copied(model), options, torch_device, None if is_data_name(data) else training_data(data))
    classifier = task.classifiers[0]
    use_channels_last(classifier)
    artifact, history = run_training(name, partial(work, task=task), options, out, **settings)
    artifact.fit(classifier.network)
    return TrainedClassifier(classifier.eval(), artifact, history)


def load_learner(
    options: ClassifierTrainingOptions, accelerator: Accelerator, task: AttackTask | None
) -> tuple[Classifier, Dataset]:
    """The classifier to train, with its class names, and its data: those of `task`, or else those of the options.

    The first process of each machine loads them before the other processes.
    """
    if task is None:
        with main_first(accelerator):
            task = _load_labeled(options.classifier, options, accelerator.device)
    name_classes(task.classifiers[0], task.data)
    return task.classifiers[0], task.data


def final_metrics(classifier: Classifier, data: Dataset, validation: dict[str, float]) -> dict[str, dict[str, float]]:
    """The last metrics on the validation images, and the accuracy on the test images, if any."""
    test = {"test": {"accuracy": accuracy(classifier.eval(), data.test, classifier.device)}} if len(data.test) else {}
    return {"validation": validation, **test}


def save_classifier(
    run: TrainingRun, classifier: Classifier, data: Dataset, metrics: dict[str, Any], **rest: Any
) -> Artifact:
    """Save a trained classifier as the artifact of a run; `rest` are further entries of its card."""
    card = {"classifier": classifier.describe(), "data": data.describe(), "metrics": metrics, **rest}
    return run.save("classifier", classifier.eval().network.state_dict(), card)


def _load_labeled(
    model: ClassifierLike, options: ClassifierTrainingOptions, device: torch.device | str, data: Dataset | None = None
) -> AttackTask:
    """A task with the data's own labels; `data` replaces the data of the options."""
    return load_task([model], options.model_copy(update={"labels": "data"}), device, data=data)
