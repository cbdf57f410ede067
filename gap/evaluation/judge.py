"""How robust a classifier is, from whatever the user holds to a report."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from gap.attacks.generator.options import DEFAULT_TRAINING_IMAGES
from gap.classifiers.adapters import ClassifierLike
from gap.classifiers.classifier import artifact_dir_of
from gap.classifiers.task import AttackTask, make_task, with_labels_of
from gap.core.artifact import open_artifact, update_card
from gap.core.errors import check_at_least
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

# The key of a card under which reports are kept.
EVALUATIONS = "robustness_evaluations"

Display = Callable[[str], AbstractContextManager[Callback]]


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
        images: how many test images, from the first on.
        fast: whether only the two white-box attacks of AutoAttack run.
        surrogate: a classifier trained without hardening, for attacks that transfer from it.
        attacks: more attacks: objects, names with options, folders.
        training: data in the same forms, for attacks that learn. Where `data` is a name, it has training images.
        adaptive_images: how many training images a generator and a universal perturbation learn from, to attack the
            model. None takes 128,000 where there are training images, and 0 with `fast`.
        batch_size: images a batch.
        seed: of every random choice.
        device: what torch calls it; None takes the one that the model is on.
        progress: whether the training of attacks shows its progress.
        callback: is called with the name of each attack and the accuracy under it.
        **options: more options of data by name: data_root, labels, input, mean, std.

    Returns:
        A report that prints itself, with `robust_accuracy`, `interval`, `checks`, `verdict` and `to_dict`.

    Raises:
        GapError: for a model, data and a budget that do not fit.

    References:
        AutoAttack: Croce and Hein, 2020. Wilson, 1927, for the interval.
    """
    check_at_least(1, images=images, batch_size=batch_size)
    check_at_least(0, adaptive_images=adaptive_images)
    models = [model] if surrogate is None else [model, surrogate]
    with preserve_process_state():
        task = make_task(models, evaluation_data, data, device=device, **options)
        if training is not None:
            given = training_data(load_data(str(training)) if is_data_name(training) else training)
            given = converted(given, task.data.channels, task.data.size)
            given = with_labels_of(task, given, predicted=options.get("labels") == "predicted")
            task = replace(task, data=replace(task.data, train=given.train))
        machine = RuntimeOptions.read({"seed": seed, "device": str(task.classifiers[0].device)})
        display: Display = ProgressBar if progress else lambda name: nullcontext(lambda progress: None)
        return judge_task(
            task,
            as_budget(budget),
            machine,
            attacks=attacks,
            adaptive_images=adaptive_images,
            display=display,
            images=images,
            fast=fast,
            batch_size=batch_size,
            callback=callback,
        )


def judge_task(
    task: AttackTask,
    budget: Budget,
    machine: RuntimeOptions,
    *,
    attacks: Sequence[AttackLike],
    adaptive_images: int | None,
    display: Display,
    images: int,
    fast: bool,
    batch_size: int,
    callback: Callable[[str, float], None],
) -> RobustnessReport:
    """Judge the first classifier of a task; the second, where there is one, is the surrogate.

    `display` makes, of a name, what shows the progress of a training. The report is also noted in the card of a folder
    that gap left with this very classifier.
    """
    classifier, surrogate = task.classifiers[0], task.classifiers[1] if len(task.classifiers) > 1 else None
    budget.check(classifier.spec.channels, *classifier.spec.size)
    entries = parse_attacks(attacks)
    check_entries(entries, replace(task, classifiers=[classifier]))
    others, adaptive = (
        [
            make_attack(entry, budget, classifier, task, machine.seed)
            for entry in entries
            if entry.is_adaptive_to(classifier) == learns
        ]
        for learns in (False, True)
    )
    if adaptive_images is None:
        adaptive_images = 0 if fast else DEFAULT_TRAINING_IMAGES
    learning = adaptive_attacks(classifier, task, budget, adaptive_images, machine, display) if adaptive_images else ()
    report = evaluate_robustness(
        classifier,
        task.data.test,
        budget,
        images=images,
        fast=fast,
        surrogate=surrogate,
        others=others,
        adaptive=chain(adaptive, learning),
        batch_size=batch_size,
        seed=machine.seed,
        data=task.data.name,
        callback=callback,
    )
    if folder := artifact_dir_of(classifier):
        update_card(folder, EVALUATIONS, noted(report.to_dict(), open_artifact(folder).card.get(EVALUATIONS)))
    return report


def noted(report: Mapping[str, Any], earlier: Any) -> list[Any]:
    """The reports of a card with a new one, in place of an earlier one of the same budget, suite, images and data."""
    kept = [each for each in earlier if _question(each) != _question(report)] if isinstance(earlier, list) else []
    return [*kept, dict(report)]


def _question(report: Any) -> list[Any] | None:
    keys = ("budget", "suite", "images", "data")
    return [report.get(key) for key in keys] if isinstance(report, Mapping) else None
