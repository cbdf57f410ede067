"""Evaluation of the robustness of a classifier, from models and data of the user to a report."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from gap.attacks.generator.options import DEFAULT_TRAINING_IMAGES
from gap.classifiers.adapters import ClassifierLike
from gap.classifiers.classifier import artifact_dir_of
from gap.classifiers.task import AttackTask, make_task, warn_if_any_at_chance, with_labels_of
from gap.core.artifact import open_artifact, update_card
from gap.core.errors import check_at_least
from gap.core.progress import print_progress
from gap.data.adapters import evaluation_data, is_data_name, training_data
from gap.data.registry import converted, load_data
from gap.evaluation.adaptive import adaptive_attacks
from gap.evaluation.benchmark import AttackLike, check_entries, make_attack, parse_attacks
from gap.evaluation.robustness import RobustnessReport, evaluate_robustness
from gap.threat import Budget, as_budget
from gap.training.callbacks import ProgressBar
from gap.training.options import RuntimeOptions
from gap.training.runtime import preserve_process_state
from gap.training.trainer import Callback

# The key of reports in a card.
EVALUATIONS = "robustness_evaluations"


def judge(
    model: ClassifierLike,
    data: Any,
    budget: Budget | str,
    *,
    images: int = 1000,
    fast: bool = False,
    surrogate: ClassifierLike | None = None,
    attacks: Sequence[AttackLike] = (),
    training: Any = None,
    adaptive_images: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
    callback: Callable[[str, float], None] = lambda name, accuracy: None,
    **options: Any,
) -> RobustnessReport:
    """Measure robust accuracy by AutoAttack, and look for signs of gradient masking.

    Args:
        model: a name, a folder, a `gap.Classifier` or any `nn.Module`.
        data: a name such as "cifar10" or "folder:PATH", or images with labels: a pair of tensors, a torch Dataset or
            DataLoader, a Hugging Face dataset.
        budget: the largest perturbation, such as "linf:8/255".
        images: the number of test images, which are the first ones.
        fast: whether only the two white-box attacks of AutoAttack run.
        surrogate: a classifier without adversarial training, for transfer attacks.
        attacks: further attacks: objects, names with options, folders.
        training: data in the same forms, for the training of attacks. It is not needed if `data` is a name.
        adaptive_images: the number of training images for the training of a generator and a universal perturbation
            against the model. By default 128,000 if there are training images, and 0 with `fast`.
        batch_size: images per batch.
        seed: the seed of all random choices.
        device: the torch device; by default that of the model.
        progress: whether the accuracy under each attack is printed on standard error as soon as it is known, and the
            training of attacks shows a progress bar.
        callback: a function that is called with the name of each attack and the accuracy under it, as soon as it is
            known; the first name is "clean".
        **options: further options of data by name: data_root, labels, input, mean, std.

    Returns:
        A report with `robust_accuracy`, `interval`, `checks`, `verdict` and `to_dict`, which prints itself.

    Raises:
        GapError: for a model, data and a budget that do not match.

    References:
        AutoAttack: Croce and Hein, 2020. Wilson, 1927, for the interval.
    """
    check_at_least(1, images=images, batch_size=batch_size)
    check_at_least(0, adaptive_images=adaptive_images)
    models = [model] if surrogate is None else [model, surrogate]
    with preserve_process_state():
        task = make_task(models, evaluation_data, data, device=device, **options)
        if training is not None:
            training_set = training_data(load_data(str(training)) if is_data_name(training) else training)
            training_set = converted(training_set, task.data.channels, task.data.size)
            training_set = with_labels_of(task, training_set, predicted=options.get("labels") == "predicted")
            task = replace(task, data=replace(task.data, train=training_set.train))
        machine = RuntimeOptions.read({"seed": seed, "device": str(task.classifiers[0].device)})
        return judge_task(
            task,
            as_budget(budget),
            machine,
            attacks=attacks,
            adaptive_images=adaptive_images,
            images=images,
            fast=fast,
            batch_size=batch_size,
            progress=progress,
            callback=callback,
        )


def judge_task(
    task: AttackTask,
    budget: Budget,
    machine: RuntimeOptions,
    *,
    attacks: Sequence[AttackLike],
    adaptive_images: int | None,
    images: int,
    fast: bool,
    batch_size: int,
    progress: bool = True,
    callback: Callable[[str, float], None] = lambda name, accuracy: None,
) -> RobustnessReport:
    """Evaluate the robustness of the first classifier of a task; the second, if any, is the surrogate.

    `progress` and `callback` are those of `judge`. If the classifier was loaded from a folder that gap wrote, the
    report is also added to the card there.
    """

    def tell(name: str, accuracy: float) -> None:
        if progress:
            print_progress(f"{name}: {accuracy:.2%}")
        callback(name, accuracy)

    def display(name: str) -> AbstractContextManager[Callback]:
        if progress:
            return ProgressBar(name)
        return nullcontext(lambda training_progress: None)

    classifier, surrogate = task.classifiers[0], task.classifiers[1] if len(task.classifiers) > 1 else None
    budget.check(classifier.spec.channels, *classifier.spec.size)
    entries = parse_attacks(attacks)
    check_entries(entries, replace(task, classifiers=[classifier]))
    warn_if_any_at_chance(task, batch_size)
    others, adaptive = (
        [
            make_attack(entry, budget, classifier, task, machine.seed)
            for entry in entries
            if entry.is_adaptive_to(classifier) == is_adaptive
        ]
        for is_adaptive in (False, True)
    )
    if adaptive_images is None:
        adaptive_images = 0 if fast else DEFAULT_TRAINING_IMAGES
    trained_here = (
        adaptive_attacks(classifier, task, budget, adaptive_images, machine, display) if adaptive_images else ()
    )
    report = evaluate_robustness(
        classifier,
        task.data.test,
        budget,
        images=images,
        fast=fast,
        surrogate=surrogate,
        others=others,
        adaptive=chain(adaptive, trained_here),
        batch_size=batch_size,
        seed=machine.seed,
        data=task.data.name,
        callback=tell,
    )
    if folder := artifact_dir_of(classifier):
        update_card(folder, EVALUATIONS, noted(report.to_dict(), open_artifact(folder).card.get(EVALUATIONS)))
    return report


def noted(report: Mapping[str, Any], earlier: Any) -> list[Any]:
    """The reports of a card with a new one, which replaces those with the same budget, suite, images and data."""
    remaining = (
        [evaluation for evaluation in earlier if _setting_of(evaluation) != _setting_of(report)]
        if isinstance(earlier, list)
        else []
    )
    return [*remaining, dict(report)]


def _setting_of(report: Any) -> list[Any] | None:
    keys = ("budget", "suite", "images", "data")
    return [report.get(key) for key in keys] if isinstance(report, Mapping) else None
