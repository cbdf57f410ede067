"""Adversarial training of a classifier, from options to artifact."""

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
from gap.core.errors import GapError, GapWarning, unknown_name_error
from gap.core.network import load_weights, to_channels_last
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
from gap.hardening.options import INNER_ATTACKS, KEEPING, HardenOptions
from gap.hardening.task import AdversarialTraining
from gap.models.generators import make_generator
from gap.threat import Budget, as_budget
from gap.training.runtime import allow_unused_weights, make_accelerator, preserve_process_state
from gap.training.task import OptimizedModule, with_adamw
from gap.training.trainer import Callback, TrainingRun, TrainSchedule, train

# The noise added to a trained initial point, as a share of the budget. Without it, the classifier overfits to the
# initializer.
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
    """Train a classifier on the adversarial images of attacks (adversarial training).

    Args:
        model: the classifier: a name, a folder, a `gap.Classifier` or any `nn.Module`, of which a copy is trained.
        data: a name such as "cifar10" or "folder:PATH", or images with labels: a pair of tensors, a torch Dataset or
            DataLoader, a Hugging Face dataset. 5% of it is the validation set.
        budget: the largest perturbation, such as "linf:8/255".
        attacks: the attacks that share each batch: names as in `gap harden --attack`, with weights as in "pgd=0.5",
            or attack objects, each with weight 1. The images of an object are projected onto the budget.
        loss: the loss that attacks with gradient steps minimize: a name of `gap.attacks.losses`, or a function of
            logits (N x K), clean logits and a `Criterion` that returns N values.
        epochs: passes over the training images.
        batch_size: images per step.
        seed: the seed of all random choices.
        device: the torch device; by default that of the model.
        out: a folder for the result, with checkpoints and logs. Without one, the result stays in memory.
        resume: whether an unfinished training in `out` is continued.
        overwrite: whether the files of an earlier training in `out` are replaced.
        callbacks: functions that are called with a `TrainingProgress` every 20 steps and after each epoch.
        progress: whether a progress bar is shown.
        **options: further options of `gap harden` by name: steps, lr, recover, ema_window, flip...

    Returns:
        The hardened `classifier`, the metrics during the training (`history`), and `save`.

    Raises:
        GapError: when the classifier, the data and the budget do not match, or the data has no labels.
        TrainingInterrupted: after Ctrl-C or SIGTERM, with the state saved in `out`.

    References:
        Madry et al., 2018 (adversarial training); Wong et al., 2020 (catastrophic overfitting).
    """
    attack_objects = [attack for attack in attacks if not isinstance(attack, str)]
    arguments = {
        "budget": str(as_budget(budget)),
        "attack": [attack for attack in attacks if isinstance(attack, str)],
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    work = partial(harden_from_options, attacks=attack_objects, loss=find_loss(loss))
    trained = train_copy(
        "harden", work, HardenOptions, model, data, arguments | options, device, out,
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
    """Harden a classifier and save it as an artifact in `folder`, which the caller has prepared.

    `task` replaces the classifier and the data of the options. `attacks` are attack objects in addition to the attacks
    of the options.

    Raises GapError when the classifier, the data and the budget do not match, or the data has no labels.
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
            f"the classifier learned nothing within {options.budget}: its accuracy on clean test images is"
            f" {test:.1%}; try a smaller `budget`, a longer `epsilon_warmup` or a smaller `lr`",
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
    """The training of these options, for `steps` steps. The modules' weights depend on the global seed."""
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
    """The inner attack of that name, as at the beginning of the training."""
    spec = classifier.spec
    device = classifier.device

    attack_spec = parse_inner_attack(name)
    kind, folder = attack_spec.kind, attack_spec.folder
    steps = attack_spec.steps or options.steps

    def make_generators(channels: int) -> OptimizedModule:
        def make_member() -> nn.Module:
            return (
                _from_artifact(folder, channels) if folder else make_generator(channels, **options.generator.to_dict())
            )

        population = GeneratorPopulation(make_member, options.num_generators)
        return with_adamw(to_channels_last(population.to(device)), options.generator_lr)

    def make_perturbations() -> OptimizedModule:
        return with_adamw(
            PerturbationBank(options.num_universal, spec.channels, spec.size).to(device), 10 * options.generator_lr
        )

    start: Initializer
    match kind:
        case "generator":
            start, count = GeneratorInit(make_generators(spec.channels)), 0
        case "generator-gradient":
            start, count = GradientGeneratorInit(make_generators(2 * spec.channels)), 0
        case "generator-start" | "trades-start":
            start, count = GeneratorInit(make_generators(spec.channels), NOISE), steps
        case "universal":
            start, count = UniversalInit(make_perturbations()), 0
        case "universal-start":
            start, count = UniversalInit(make_perturbations(), NOISE), steps
        case "fgsm":
            start, count = RandomInit(radius_scale=2.0), 1
        case "pgd" | "trades":
            start, count = RandomInit(), steps
        case _:
            raise unknown_name_error("attack", kind, INNER_ATTACKS)
    beta = options.beta if kind in KEEPING else None
    return InnerAttack(name, share, start, count, projected=kind != "fgsm", beta=beta)


def _from_artifact(folder: str, channels: int) -> nn.Module:
    """The generator in a folder that `gap train` wrote, to train it further."""
    artifact = open_artifact(Path(folder), "bounded_generator")
    card = artifact.read(AttackCard)
    if card.channels != channels:
        raise GapError(f"{folder} takes {card.channels}-channel images, and the classifier {channels}-channel ones")
    return load_generator(artifact)
