"""Standard training of a classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.classifiers.adapters import ClassifierLike
from gap.classifiers.memory_format import check_training
from gap.classifiers.options import PretrainOptions
from gap.classifiers.provenance import data_fingerprints
from gap.classifiers.task import AttackTask
from gap.classifiers.trained import TrainedClassifier
from gap.classifiers.training import final_metrics, load_learner, save_classifier, train_copy
from gap.core.artifact import Artifact
from gap.training.runtime import allow_unused_weights, make_accelerator, preserve_process_state
from gap.training.task import Backward, OptimizedModule, TrainingTask, with_adamw
from gap.training.trainer import Callback, TrainingRun, TrainSchedule, train


class ClassifierTraining(TrainingTask):
    """Trains a classifier by cross-entropy on augmented images."""

    def __init__(self, module: OptimizedModule, label_smoothing: float, augmentation: nn.Module) -> None:
        self.modules = {"classifier": module}
        self.label_smoothing = label_smoothing
        self.augmentation = augmentation

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        module = self.modules["classifier"]
        logits = module.network(self.augmentation(images))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        module.update(loss, backward)
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.modules["classifier"].network(images)
        return {"accuracy": logits.argmax(dim=1) == labels}


@preserve_process_state()
def pretrain(
    model: ClassifierLike,
    data: Any = "mnist-5k",
    *,
    epochs: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **options: Any,
) -> TrainedClassifier:
    """Train a classifier by cross-entropy, without adversarial images.

    Args:
        model: a name, a folder, a `gap.Classifier` or any `nn.Module`, of which a copy is trained.
        data: a name such as "cifar10" or "folder:PATH", or images with labels: a pair of tensors, a torch Dataset or
            DataLoader, a Hugging Face dataset. 5% of it is the validation set.
        epochs: passes over the training images; by default those of `gap pretrain`.
        batch_size: images per step.
        seed: the seed of all random choices.
        device: the torch device; by default that of the model.
        out: a folder for the result, with checkpoints and logs. Without one, the result stays in memory.
        resume: whether an unfinished training in `out` is continued.
        overwrite: whether the files of an earlier training in `out` are replaced.
        callbacks: functions that are called with a `TrainingProgress` every 20 steps and after each epoch.
        progress: whether a progress bar is shown.
        **options: further options of `gap pretrain` by name: lr, weight_decay, label_smoothing, flip...

    Returns:
        The trained `classifier`, the metrics during the training (`history`), and `save`.

    Raises:
        GapError: when the classifier and the data do not match, or the data has no labels.
        TrainingInterrupted: after Ctrl-C or SIGTERM, with the state saved in `out`.
    """
    arguments = {"batch_size": batch_size, "seed": seed} | ({} if epochs is None else {"epochs": epochs})
    trained = train_copy(
        "pretrain", pretrain_from_options, PretrainOptions, model, data, arguments | options, device, out,
        resume=resume, overwrite=overwrite, callbacks=callbacks, progress=progress,
    )  # fmt: skip
    trained.classifier.name += " (trained)"
    return trained


def pretrain_from_options(
    options: PretrainOptions,
    folder: Path | str,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool = False,
    task: AttackTask | None = None,
) -> Artifact:
    """Train a classifier and save it as an artifact in `folder`, which the caller has prepared.

    `task` replaces the classifier and the data of the options.

    Raises GapError when the classifier and the data do not match, or the data has no labels.
    """
    run = TrainingRun(Path(folder), make_accelerator(options), callbacks, resume)
    classifier, data = load_learner(options, run.accelerator, task)
    if not check_training(classifier):
        allow_unused_weights(run.accelerator)
    training = ClassifierTraining(
        with_adamw(classifier, options.lr, options.weight_decay),
        options.label_smoothing,
        options.augmentation(classifier.spec.size),
    )
    schedule = TrainSchedule(options.epochs, options.batch_size, options.seed)
    last = train(training, data.train, data.validation, schedule, run, data_fingerprints(data))
    metrics = final_metrics(classifier, data, last)
    return save_classifier(run, classifier, data, metrics, options=options.to_dict())
