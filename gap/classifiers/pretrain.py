"""Standard training of a classifier, so that there is something to attack."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.classifiers.adapters import ClassifierLike, copied, name_of
from gap.classifiers.memory_format import check_training, use_channels_last
from gap.classifiers.options import PretrainOptions
from gap.classifiers.provenance import data_fingerprints
from gap.classifiers.task import AttackTask, accuracy, find_device, load_task, name_classes
from gap.classifiers.trained import TrainedClassifier
from gap.core.artifact import Artifact, save_artifact
from gap.core.errors import GapError
from gap.data.adapters import data_name, is_data_name, training_data
from gap.training.run import run_training
from gap.training.runtime import allow_unused_weights, main_first, make_accelerator
from gap.training.task import Backward, OptimizedModule, TrainingTask, with_adamw
from gap.training.trainer import Callback, TrainSchedule, train


class ClassifierTraining(TrainingTask):
    """Cross-entropy on augmented images."""

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
    """Train a classifier in the standard way.

    Args:
        model: a name, a folder, a `gap.Classifier` or any `nn.Module`, of which a copy is trained.
        data: a name such as "cifar10" or "folder:PATH", or images with labels: a pair of tensors, a torch Dataset or
            DataLoader, a Hugging Face dataset. A twentieth of it is held out for validation.
        epochs: passes over the training images; None takes the default of `gap pretrain`.
        batch_size: images a step.
        seed: of every random choice.
        device: what torch calls it; None takes the one that the model is on.
        out: a folder for the result, with checkpoints and logs; None keeps the result in memory.
        resume: whether an unfinished training in `out` goes on.
        overwrite: whether what an earlier training left in `out` is replaced.
        callbacks: functions that are called with a `TrainingProgress` every 20 steps and after each epoch.
        progress: whether a progress bar is shown.
        **options: more options of `gap pretrain` by name: lr, weight_decay, label_smoothing, flip...

    Returns:
        The trained `classifier`, the metrics along the way (`history`), and `save`.

    Raises:
        GapError: when the classifier and the data do not fit, or the data has no labels.
        TrainingInterrupted: after Ctrl-C or SIGTERM, with the work saved in `out`.
    """
    device = torch.device(device) if device else find_device([model])
    given = {"classifier": name_of(model), "data": data_name(data), "batch_size": batch_size, "seed": seed}
    read = PretrainOptions.read(
        given | {"device": str(device)} | ({"epochs": epochs} if epochs is not None else {}), options
    )
    adapted = None if is_data_name(data) else training_data(data)
    task = load_task([copied(model)], read.model_copy(update={"labels": "data"}), device, data=adapted)
    use_channels_last(task.classifiers[0])
    work = partial(pretrain_from_options, task=task)
    artifact, history = run_training(
        "pretrain", work, read, out, resume=resume, overwrite=overwrite, callbacks=callbacks, progress=progress
    )
    classifier = task.classifiers[0]
    artifact.fit(classifier.network)
    classifier.name += " (trained)"
    return TrainedClassifier(classifier.eval(), artifact, history)


def pretrain_from_options(
    options: PretrainOptions,
    folder: Path | str,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool = False,
    task: AttackTask | None = None,
) -> Artifact:
    """Train a classifier and leave it as an artifact in `folder`, which the caller has made ready.

    `task` is taken in place of the classifier and the data that the options name.

    Raises GapError when the classifier and the data do not fit, or the data has no labels.
    """
    folder = Path(folder)
    accelerator = make_accelerator(options)
    if options.labels == "predicted":
        raise GapError("gap pretrain learns the data's own labels; leave out `labels` predicted")
    if task is None:
        labeled = options.model_copy(update={"labels": "data"})
        with main_first(accelerator):
            task = load_task([options.classifier], labeled, accelerator.device)
    classifier, data = task.classifiers[0], task.data
    if not check_training(classifier):
        allow_unused_weights(accelerator)
    name_classes(classifier, data)
    augmentation = options.augmentation(classifier.spec.size)
    training = ClassifierTraining(
        with_adamw(classifier, options.lr, options.weight_decay), options.label_smoothing, augmentation
    )
    schedule = TrainSchedule(options.epochs, options.batch_size, options.seed)
    metrics = train(
        training,
        data.train,
        data.validation,
        schedule,
        folder,
        accelerator,
        callbacks,
        resume=resume,
        fingerprints=data_fingerprints(data),
    )
    classifier.eval()
    card = {
        "classifier": classifier.describe(),
        "data": data.describe(),
        "metrics": {"validation": metrics}
        | ({"test": {"accuracy": accuracy(classifier, data.test, accelerator.device)}} if len(data.test) else {}),
        "options": options.to_dict(),
    }
    if not accelerator.is_main_process:
        return Artifact(folder, {"kind": "classifier", **card})
    return save_artifact(folder, "classifier", classifier.network.state_dict(), card)
