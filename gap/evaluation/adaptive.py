"""Adaptive attacks: a generator and a universal perturbation, trained against the evaluated classifier."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gap.attacks.base import Attack
from gap.attacks.generator.model import load_attack_artifact
from gap.attacks.generator.options import TrainOptions
from gap.attacks.generator.train import EPOCHS_TO_WARN, train_against
from gap.classifiers.classifier import Classifier
from gap.classifiers.task import AttackTask
from gap.core.errors import GapError, GapWarning
from gap.evaluation.masking_checks import differentiable
from gap.threat import Budget
from gap.training.options import RuntimeOptions
from gap.training.runtime import make_accelerator
from gap.training.trainer import Callback, TrainingRun


def adaptive_attacks(
    classifier: Classifier,
    task: AttackTask,
    budget: Budget,
    images: int,
    machine: RuntimeOptions,
    listening: Callable[[str], AbstractContextManager[Callback]],
) -> Iterator[Attack]:
    """A generator and a universal perturbation, each trained on `images` training images of the task.

    There are at most 100 epochs, and the names of the attacks have the actual number of images. `listening` makes the
    callback of a training from its name. The attacks are not saved; `gap train` saves them. There are none against a
    classifier without gradients. An attack whose training fails is left out, with a warning.
    """
    device, train = classifier.device, task.data.train
    sample, _ = next(iter(task.data.test.batches([torch.arange(1)], device)))
    if not len(train) or not differentiable(classifier, sample):
        return
    single_task = replace(task, classifiers=[classifier])
    epochs = min(EPOCHS_TO_WARN, images / len(train))
    for kind, universal in (("generator", False), ("universal", True)):
        options = TrainOptions.read(
            machine.model_dump(include=set(RuntimeOptions.model_fields)),
            {"classifier": [classifier.name], "budget": str(budget), "universal": universal, "epochs": epochs},
        )
        name = f"adaptive {kind} ({round(epochs * len(train))} images)"
        with TemporaryDirectory() as folder, listening(f"adaptive {kind}") as callback:
            try:
                run = TrainingRun(Path(folder), make_accelerator(options), [callback])
                artifact = train_against(single_task, options, run)
            except GapError as error:
                warnings.warn(f"no adaptive {kind}: {error}", GapWarning, stacklevel=2)
                continue
            attack = load_attack_artifact(artifact, device=device, name=name)
        yield attack
