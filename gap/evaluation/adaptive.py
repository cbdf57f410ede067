"""Adaptive attackers: a generator and a universal perturbation that learn against the classifier that is judged."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gap.attacks.protocol import Attack
from gap.attacks.train import TrainOptions, train_against
from gap.attacks.trained import attack_from
from gap.budget import Budget
from gap.classifier import Classifier
from gap.evaluation.gate import differentiable
from gap.setting import Setting
from gap.training.loop import Listener
from gap.training.machine import MachineOptions, make_accelerator


def adaptive_attacks(
    classifier: Classifier,
    setting: Setting,
    budget: Budget,
    images: int,
    machine: MachineOptions,
    listening: Callable[[str], AbstractContextManager[Listener]],
) -> Iterator[Attack]:
    """A generator and a universal perturbation, each trained on that many of the setting's training images.

    `listening` makes what hears the training of each, by its name. Neither attack is kept; `gap train` keeps them.
    There are none against a classifier without gradients to learn from.
    """
    sample, _ = next(iter(setting.data.train.batches([torch.arange(1)], next(classifier.parameters()).device)))
    if not differentiable(classifier, sample):
        return
    alone = replace(setting, classifiers=[classifier])
    for name, universal in (("adaptive generator", False), ("adaptive universal", True)):
        options = TrainOptions.read(
            machine.model_dump(include=set(MachineOptions.model_fields)),
            {"classifier": [classifier.name], "budget": str(budget), "universal": universal},
            {"epochs": images / max(1, len(setting.data.train))},
        )
        with TemporaryDirectory() as folder, listening(name) as listener:
            artefact = train_against(alone, options, Path(folder), make_accelerator(options), [listener])
            yield attack_from(artefact, device=next(classifier.parameters()).device, name=name)
