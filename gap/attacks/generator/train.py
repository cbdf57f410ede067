"""Train a perturbation generator against classifiers, from options to artifact."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from gap.attacks.criteria import find_criterion
from gap.attacks.generator.model import TrainedAttack, load_attack_artifact
from gap.attacks.generator.options import DEFAULT_TRAINING_IMAGES, TrainOptions
from gap.attacks.generator.tasks import (
    AdversarialGeneratorTraining,
    BoundedGeneratorTraining,
    DirectGeneratorTraining,
    GeneratorTraining,
    UniversalGeneratorTraining,
)
from gap.attacks.losses import Loss, find_loss
from gap.classifiers.adapters import ClassifierLike, name_of
from gap.classifiers.fuse import fuse_conv_bn
from gap.classifiers.provenance import data_fingerprints
from gap.classifiers.task import AttackTask, find_device, load_task, warn_if_any_at_chance
from gap.core.artifact import PERTURBATION, Artifact
from gap.core.errors import GapWarning
from gap.core.frozen import frozen
from gap.core.network import to_channels_last
from gap.data.adapters import data_name, is_data_name, training_data
from gap.models.generators import Discriminator, UniversalGenerator, make_generator
from gap.report.pictures import amplify, save_image, to_image
from gap.threat import Budget, as_budget
from gap.training.augmentation import make_augmentation
from gap.training.run import run_training
from gap.training.runtime import main_first, make_accelerator, preserve_process_state
from gap.training.task import with_adamw
from gap.training.trainer import Callback, TrainingRun, TrainSchedule, train

# A default of more epochs than this gives a warning: the data may be smaller than the user expects.
EPOCHS_TO_WARN = 100


@preserve_process_state()
def train_generator(
    model: ClassifierLike | Sequence[ClassifierLike],
    data: Any = "mnist-5k",
    budget: Budget | str | None = None,
    *,
    universal: bool = False,
    loss: str | Loss = "margin",
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
) -> TrainedAttack:
    """Train a network that perturbs any image so that a classifier misclassifies it.

    Args:
        model: the classifier to attack: a name, a folder, a `gap.Classifier` or any `nn.Module`. A list of several
            classifiers is attacked as an ensemble.
        data: a name such as "cifar10" or "folder:PATH", or images with labels: a pair of tensors, a torch Dataset or
            DataLoader, a Hugging Face dataset. 5% of it is the validation set.
        budget: the largest perturbation, such as "linf:8/255".
        universal: whether one perturbation is learned for all images.
        loss: a name of `gap.attacks.losses`, or a function of logits (N x K), clean logits and a `Criterion` that
            returns N values to minimize.
        epochs: passes over the training images; by default as many as make 128,000 images.
        batch_size: images per step.
        seed: the seed of all random choices.
        device: the torch device; by default that of the first model.
        out: a folder for the result, with checkpoints and logs. Without one, the result stays in memory.
        resume: whether an unfinished training in `out` is continued.
        overwrite: whether the files of an earlier training in `out` are replaced.
        callbacks: functions that are called with a `TrainingProgress` every 20 steps and after each epoch.
        progress: whether a progress bar is shown.
        **options: further options of `gap train` by name: criterion, lr, generator, candidates, unbounded,
            target_norm...

    Returns:
        An attack with a method `save`; `gap.load_attack` loads a saved attack. Its `history` has the metrics during
        the training.

    Raises:
        GapError: for options that do not match each other, the classifier or the data.
        TrainingInterrupted: after Ctrl-C or SIGTERM, with the state saved in `out`.

    References:
        Poursaeed et al., 2018 (GAP).
    """
    models = [model] if isinstance(model, nn.Module | str | os.PathLike) else list(model)
    user_loss = loss if callable(loss) else None
    device = find_device(models, device)
    train_options = TrainOptions.read(
        {
            "classifier": [name_of(classifier) for classifier in models],
            "data": data_name(data),
            "budget": None if budget is None else str(as_budget(budget)),
            "universal": universal,
            "loss": "margin" if callable(loss) else loss,
            "epochs": epochs,
            "batch_size": batch_size,
            "seed": seed,
            "device": str(device),
        },
        options,
    )
    task = load_task(models, train_options, device, data=None if is_data_name(data) else training_data(data))
    artifact, history = run_training(
        "train", partial(train_from_options, task=task, loss=user_loss), train_options, out,
        resume=resume, overwrite=overwrite, callbacks=callbacks, progress=progress,
    )  # fmt: skip
    attack = load_attack_artifact(artifact, device=device, name=artifact.folder.name)
    return replace(attack, history=history)


def train_from_options(
    options: TrainOptions,
    folder: Path | str,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool = False,
    task: AttackTask | None = None,
    loss: Loss | None = None,
) -> Artifact:
    """Train a generator and save it as an artifact in `folder`, which the caller has prepared.

    `task` replaces the classifiers and the data of the options, and `loss` their loss.

    Raises GapError for options that do not match each other, the classifier or the data.
    """
    run = TrainingRun(Path(folder), make_accelerator(options), callbacks, resume)
    device = run.accelerator.device
    if task is None:
        with main_first(run.accelerator):
            task = load_task(options.classifier, options, device)
    spec = task.classifiers[0].spec
    for text in filter(None, (options.budget, options.target_norm)):
        Budget.parse(text).check(spec.channels, *spec.size)
    warn_if_any_at_chance(task)
    return train_against(task, options, run, loss)


def train_against(task: AttackTask, options: TrainOptions, run: TrainingRun, loss: Loss | None = None) -> Artifact:
    """Train a generator as `train_from_options` does, with the classifiers and the data of `task`."""
    with frozen(*task.classifiers):
        epochs = options.epochs or _default_epochs(len(task.data.train))
        schedule = TrainSchedule(epochs, options.batch_size, options.seed)
        training = make_training(options, task, schedule.steps(len(task.data.train)), loss)
        fingerprints = data_fingerprints(task.data, task.classifiers)
        metrics = train(training, task.data.train, task.data.validation, schedule, run, fingerprints)
        run.accelerator.wait_for_everyone()
        return _save(options, task, training, metrics, run)


def _default_epochs(images: int) -> float:
    epochs = DEFAULT_TRAINING_IMAGES / max(1, images)
    if epochs > EPOCHS_TO_WARN:
        warnings.warn(
            f"with {images} training images, {DEFAULT_TRAINING_IMAGES:,} images' worth are {epochs:.0f} epochs;"
            " `epochs` says otherwise",
            GapWarning,
            stacklevel=3,
        )
    return epochs


def make_training(options: TrainOptions, task: AttackTask, steps: int, loss: Loss | None = None) -> GeneratorTraining:
    """The training of these options, for `steps` training steps. The networks' weights depend on the global seed."""
    spec = task.classifiers[0].spec
    device = task.classifiers[0].device
    generator = make_generator(spec.channels, **options.generator.to_dict())
    network: nn.Module = generator
    if options.universal:
        images_per_process = max(1, options.batch_size // PartialState().num_processes)
        network = UniversalGenerator(generator, spec.channels, spec.size, min(options.candidates, images_per_process))
    module = with_adamw(to_channels_last(network.to(device)), options.lr)
    arguments = (
        module,
        [fuse_conv_bn(classifier, spec.channels, spec.size) for classifier in task.classifiers],
        find_criterion(options.criterion, task.classes),
        loss or find_loss(options.loss, options.confidence),
        make_augmentation(spec.size, flip=options.flip, crop=options.crop),
    )
    if options.discriminator:
        discriminator = to_channels_last(Discriminator(spec.channels).to(device))
        return AdversarialGeneratorTraining(with_adamw(discriminator, options.lr / 4), *arguments)
    if options.target_norm is not None:
        target = Budget.parse(options.target_norm)
        return DirectGeneratorTraining(target.norm, target.epsilon, *arguments)
    budget = Budget.parse(str(options.budget))
    return (
        UniversalGeneratorTraining(budget, steps, *arguments)
        if options.universal
        else BoundedGeneratorTraining(budget, *arguments)
    )


def _save(
    options: TrainOptions,
    task: AttackTask,
    training: GeneratorTraining,
    metrics: dict[str, float],
    run: TrainingRun,
) -> Artifact:
    network = run.accelerator.unwrap_model(training.modules["generator"].network)
    tensors: dict[str, Tensor] = dict(network.state_dict())
    if isinstance(training, UniversalGeneratorTraining):
        network.eval()
        with torch.no_grad():
            tensors["perturbation"] = training.perturbations()
        tensors["noise"] = network.noise[training.survivors]
        if run.accelerator.is_main_process:
            save_image(to_image(amplify(tensors["perturbation"].cpu())[0][0]), run.folder / PERTURBATION)
    spec = task.classifiers[0].spec
    card: dict[str, Any] = {
        "budget": options.budget,
        "target_norm": options.target_norm,
        "criterion": options.criterion,
        "channels": spec.channels,
        "size": list(spec.size),
        "generator": options.generator.to_dict(),
        "classifiers": [classifier.describe() for classifier in task.classifiers],
        "data": task.data.describe(),
        "metrics": {"validation": metrics},
        "options": options.to_dict(),
    }
    kind = (
        "universal_perturbation"
        if options.universal
        else "direct_generator"
        if options.unbounded
        else "bounded_generator"
    )
    return run.save(kind, tensors, card)
