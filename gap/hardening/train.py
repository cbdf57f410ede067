"""Harden a classifier, from options to artifact."""

import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gap.attacks.base import Attack
from gap.attacks.generator.model import AttackCard, load_generator
from gap.attacks.losses import Loss, capped_cross_entropy, find_loss
from gap.classifiers.adapters import ClassifierLike
from gap.classifiers.classifier import Classifier
from gap.classifiers.fuse import FusedCopy
from gap.classifiers.memory_format import check_training
from gap.classifiers.provenance import data_fingerprints
from gap.classifiers.task import AttackTask, is_at_chance_level
from gap.classifiers.trained import TrainedClassifier
from gap.classifiers.training import final_metrics, load_learner, save_classifier, train_copy
from gap.core.artifact import Artifact, open_artifact
from gap.core.errors import GapError, GapWarning
from gap.core.network import load_weights
from gap.hardening.initializers import (
    AttackInit,
    GeneratorInit,
    GeneratorPopulation,
    GradientGeneratorInit,
    Initializer,
    PerturbationBank,
    RandomInit,
    UniversalInit,
)
from gap.hardening.inner_attacks import InnerAttack, check_mixture, parse_inner_attack, parse_mixture
from gap.hardening.options import KEEPING, HardenOptions
from gap.hardening.task import AdversarialTraining
from gap.models.generators import make_generator
from gap.threat import Budget, as_budget
from gap.training.runtime import allow_unused_weights, make_accelerator, preserve_process_state
from gap.training.task import OptimizedModule, with_adamw
from gap.training.trainer import Callback, TrainingRun, TrainSchedule, train

# The noise mixed into a start that is learned, as a share of the budget: alone, the start is too easy to foresee.
NOISE = 0.5


@preserve_process_state()
def harden(
    model: ClassifierLike,
    data: Any,
    budget: Budget | str,
    *,
    attacks: Sequence[str | Attack] = ("generator-start",),
    loss: str | Loss = "capped-cross-entropy",
    epochs: float = 20.0,
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
    """Adversarial training: a classifier learns to be correct on what attacks make of its images.

    Args:
        model: the classifier: a name, a folder, a `gap.Classifier` or any `nn.Module`, of which a copy is trained.
        data: a name such as "cifar10" or "folder:PATH", or images with labels: a pair of tensors, a torch Dataset or
            DataLoader, a Hugging Face dataset. A twentieth of it is held out for validation.
        budget: the largest perturbation, such as "linf:8/255".
        attacks: what each batch is shared out among: names as of `gap harden --attack`, with weights as in "pgd=0.5",
            or attack objects, each of weight 1. An object's images are projected onto the budget.
        loss: what attacks with gradient steps lower: a name of `gap.attacks.losses`, or a function of logits (N x K),
            clean logits and a `Criterion` that gives N values.
        epochs: passes over the training images.
        batch_size: images a step.
        seed: of every random choice.
        device: what torch calls it; None takes the one that the model is on.
        out: a folder for the result, with checkpoints and logs; None keeps the result in memory.
        resume: whether an unfinished training in `out` goes on.
        overwrite: whether what an earlier training left in `out` is replaced.
        callbacks: functions that are called with a `TrainingProgress` every 20 steps and after each epoch.
        progress: whether a progress bar is shown.
        **options: more options of `gap harden` by name: steps, lr, recover, ema_window, flip...

    Returns:
        The hardened `classifier`, the metrics along the way (`history`), and `save`.

    Raises:
        GapError: when the classifier, the data and the budget do not fit, or the data has no labels.
        TrainingInterrupted: after Ctrl-C or SIGTERM, with the work saved in `out`.

    References:
        Madry et al., 2018 (adversarial training); Wong et al., 2020 (catastrophic overfitting).
    """
    own = [attack for attack in attacks if not isinstance(attack, str)]
    given = {
        "budget": str(as_budget(budget)),
        "attack": [attack for attack in attacks if isinstance(attack, str)],
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    work = partial(harden_from_options, attacks=own, loss=find_loss(loss))
    trained = train_copy(
        "harden", work, HardenOptions, model, data, given | options, device, out,
        resume=resume, overwrite=overwrite, callbacks=callbacks, progress=progress,
    )  # fmt: skip
    trained.classifier.name += " (hardened)"
    return trained


def harden_from_options(
    options: HardenOptions,
    folder: Path | str,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool = False,
    task: AttackTask | None = None,
    attacks: Sequence[Attack] = (),
    loss: Loss = capped_cross_entropy,
) -> Artifact:
    """Harden a classifier and leave it as an artifact in `folder`, which the caller has made ready.

    `task` is taken in place of the classifier and the data that the options name; `attacks` are attack objects beside
    those that they name.

    Raises GapError when the classifier, the data and the budget do not fit, or the data has no labels.
    """
    run = TrainingRun(Path(folder), make_accelerator(options), callbacks, resume)
    classifier, data = load_learner(options, run.accelerator, task)
    if not check_training(classifier.requires_grad_(True)):
        allow_unused_weights(run.accelerator)
    Budget.parse(options.budget).check(classifier.spec.channels, *classifier.spec.size)
    if len(data.train):
        batch = min(options.batch_size, len(data.train)) // run.accelerator.num_processes
        check_mixture(batch, options.clean_fraction, parse_mixture(options.attack, [attack.name for attack in attacks]))
    base_fingerprint = classifier.fingerprint()
    schedule = TrainSchedule(options.epochs, options.batch_size, options.seed, validation_images=options.val_images)
    training = make_training(options, classifier, schedule.steps(len(data.train)), attacks, loss)
    fingerprints = data_fingerprints(data, [classifier])
    last = train(training, data.train, data.validation, schedule, run, fingerprints)
    load_weights(classifier, training.best or training.averaged.module.state_dict())
    metrics = final_metrics(classifier, data, training.best_metrics or last)
    classes = classifier.spec.classes
    if len(data.test) and is_at_chance_level(test := metrics["test"]["accuracy"], classes, data.test):
        warnings.warn(
            f"the classifier learned nothing within {options.budget}: it is right on {test:.1%} of the clean test"
            " images; try a smaller `budget`, a longer `epsilon_warmup` or a smaller `lr`",
            GapWarning,
            stacklevel=2,
        )
    elif training.best_metrics and is_at_chance_level(training.best_probe, classes, data.validation):
        warnings.warn(
            f"the classifier is not robust: {training.best_probe:.1%} accuracy under the validation PGD within"
            f" {options.budget}, no better than chance; give its attacks more `steps`, or train for more `epochs`",
            GapWarning,
            stacklevel=2,
        )
    adversarial_training = {
        "base_fingerprint": base_fingerprint,
        "budget": options.budget,
        "attacks": {inner_attack.name: inner_attack.share for inner_attack in training.mixture},
        "steps": {inner_attack.name: inner_attack.steps for inner_attack in training.mixture},
        "validation_pgd_accuracy": training.best_probe,
        "recoveries": training.recoveries,
    }
    return save_classifier(
        run, classifier, data, metrics, adversarial_training=adversarial_training, options=options.to_dict()
    )


def make_training(
    options: HardenOptions,
    classifier: Classifier,
    steps: int,
    attacks: Sequence[Attack] = (),
    loss: Loss = capped_cross_entropy,
) -> AdversarialTraining:
    """The training that these options describe, for so many steps, with fresh modules from the global seed."""
    objects = {attack.name: attack for attack in attacks}
    mixture = [
        InnerAttack(name, share, AttackInit(objects[name]), steps=0)
        if name in objects
        else make_inner_attack(name, share, options, classifier)
        for name, share in parse_mixture(options.attack, list(objects)).items()
    ]
    return AdversarialTraining(
        with_adamw(classifier.requires_grad_(True), options.lr, options.weight_decay),
        mixture,
        Budget.parse(options.budget),
        loss=loss,
        clean_fraction=options.clean_fraction,
        label_smoothing=options.label_smoothing,
        epsilon_warmup=round(options.epsilon_warmup * steps),
        last=steps,
        reset_interval=math.ceil(options.reset_every / options.epochs * steps),
        decay=1 - 1 / max(2.0, options.ema_window * steps),
        recover=options.recover,
        augmentation=options.augmentation(classifier.spec.size),
        fused_classifier=FusedCopy(classifier, classifier.spec.channels, classifier.spec.size).refresh,
    )


def make_inner_attack(name: str, share: float, options: HardenOptions, classifier: Classifier) -> InnerAttack:
    """The attack of that name, as it stands at the beginning of training."""
    spec = classifier.spec
    device = classifier.device

    named = parse_inner_attack(name)
    kind, folder = named.kind, named.folder
    steps = named.steps or options.steps

    def generators(channels: int) -> OptimizedModule:
        def make() -> nn.Module:
            return (
                _from_artifact(folder, channels) if folder else make_generator(channels, **options.generator.to_dict())
            )

        population = GeneratorPopulation(make, options.num_generators)
        return with_adamw(population.to(device).to(memory_format=torch.channels_last), options.generator_lr)

    def universals() -> OptimizedModule:
        return with_adamw(
            PerturbationBank(options.num_universal, spec.channels, spec.size).to(device), 10 * options.generator_lr
        )

    start: Initializer
    match kind:
        case "generator":
            start, count = GeneratorInit(generators(spec.channels)), 0
        case "generator-gradient":
            start, count = GradientGeneratorInit(generators(2 * spec.channels)), 0
        case "generator-start" | "trades-start":
            start, count = GeneratorInit(generators(spec.channels), NOISE), steps
        case "universal":
            start, count = UniversalInit(universals()), 0
        case "universal-start":
            start, count = UniversalInit(universals(), NOISE), steps
        case "fgsm":
            start, count = RandomInit(radius_scale=2.0), 1
        case _:
            start, count = RandomInit(), steps
    beta = options.beta if kind in KEEPING else None
    return InnerAttack(name, share, start, count, projected=kind != "fgsm", beta=beta)


def _from_artifact(folder: str, channels: int) -> nn.Module:
    """The generator that `gap train` left there, to learn on."""
    artifact = open_artifact(Path(folder), "bounded_generator")
    card = artifact.read(AttackCard)
    if card.channels != channels:
        raise GapError(f"{folder} takes {card.channels}-channel images, and the classifier {channels}-channel ones")
    return load_generator(artifact)
