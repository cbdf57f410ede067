"""Harden a classifier, from options to artifact."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import nn

from gap.attacks.generator.model import AttackCard, load_generator
from gap.attacks.generator.train import GeneratorOptions
from gap.classifiers.classifier import Classifier
from gap.classifiers.fuse import FusedCopy
from gap.classifiers.memory_format import check_training
from gap.classifiers.provenance import data_fingerprints
from gap.classifiers.task import DataOptions, accuracy, is_at_chance_level, load_task, name_classes
from gap.core.artifact import Artifact, open_artifact, save_artifact
from gap.core.errors import GapError, GapWarning
from gap.core.options import Options
from gap.hardening.initializers import (
    GeneratorInit,
    GeneratorPopulation,
    GradientGeneratorInit,
    Initializer,
    PerturbationBank,
    RandomInit,
    UniversalInit,
)
from gap.hardening.inner_attacks import (
    GENERATING,
    INNER_ATTACKS,
    KEEPING,
    MAX_INITIAL_STEPS,
    STEPPING,
    InnerAttack,
    check_mixture,
    parse_inner_attack,
    parse_mixture,
)
from gap.hardening.task import AdversarialTraining
from gap.models.generators import make_generator
from gap.threat import Budget
from gap.training.augmentation import AugmentationOptions
from gap.training.runtime import TrainRuntimeOptions, allow_unused_weights, main_first, make_accelerator
from gap.training.task import OptimizedModule, with_adamw
from gap.training.trainer import Callback, TrainSchedule, train

# The noise mixed into a start that is learned, as a share of the budget: alone, the start is too easy to foresee.
NOISE = 0.5


class SmallGeneratorOptions(GeneratorOptions):
    """A generator whose pass costs no more than one of a small classifier: it plays in every step."""

    encoder: Annotated[str, Field(description="any encoder of smp (segmentation models), or tu-NAME from timm")] = (
        "strided-32"
    )
    decoder: Annotated[
        tuple[int, ...], Field(min_length=1, description="widths of the decoder, from the bottom up")
    ] = (32, 32)
    pixel_unshuffle: Annotated[
        int, Field(ge=1, le=16, description="pixels folded into channels, each way, before the network")
    ] = 4


class HardenOptions(TrainRuntimeOptions, AugmentationOptions, DataOptions):
    """Options of `gap harden`: which classifier, against what, within which budget, and how long."""

    classifier: Annotated[
        str,
        Field(
            description="the classifier to harden: fresh, pretrained or a folder",
            json_schema_extra={"positional": True},
        ),
    ]
    budget: Annotated[str, Field(description="the perturbations to withstand, linf:0.3 or l2:2.0 (pixels in [0, 1])")]
    attack: list[str] = Field(
        default_factory=lambda: ["generator-start"],
        min_length=1,
        description="an attack to train against, NAME, NAME=WEIGHT, NAME:steps=3=WEIGHT or NAME@FOLDER: "
        + ", ".join(INNER_ATTACKS),
    )
    steps: Annotated[int, Field(ge=1, le=MAX_INITIAL_STEPS, description=f"gradient steps of {', '.join(STEPPING)}")] = 2
    num_generators: Annotated[
        int, Field(ge=1, description="how many generators share each batch that one attack gets")
    ] = 1
    reset_every: Annotated[
        float, Field(ge=0, description="epochs after which a generator starts anew, each in its turn; 0 is never")
    ] = 0.0
    num_universal: Annotated[int, Field(ge=1, description="how many universal perturbations play")] = 8
    clean_fraction: Annotated[float, Field(ge=0, lt=1, description="the share of each batch that is left clean")] = 0.0
    recover: Annotated[
        bool,
        Field(
            description="where the probe shows a collapse, go back to the best weights and give attacks one more step"
        ),
    ] = True
    val_images: Annotated[
        int,
        Field(
            ge=1,
            description="held-out images that the probe attacks after each epoch, to pick the weights that are kept",
        ),
    ] = 2000
    epochs: Annotated[float, Field(gt=0, description="passes over the training images")] = 20.0
    epsilon_warmup: Annotated[
        float, Field(ge=0, lt=1, description="the share of training over which epsilon rises from 0")
    ] = 0.2
    batch_size: Annotated[int, Field(ge=1, description="images a step, over all processes")] = 128
    lr: Annotated[float, Field(gt=0, description="peak learning rate of the classifier's AdamW")] = 2e-3
    generator_lr: Annotated[
        float, Field(gt=0, description="peak learning rate of generators and universal perturbations")
    ] = 2e-3
    weight_decay: Annotated[float, Field(ge=0, description="of the classifier's AdamW")] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="label smoothing")] = 0.0
    ema_window: Annotated[
        float, Field(gt=0, lt=1, description="the share of training that the average of the weights looks back over")
    ] = 0.02
    beta: Annotated[float, Field(gt=0, description="trades: the weight of keeping the clean prediction")] = 6.0
    generator: SmallGeneratorOptions = SmallGeneratorOptions()

    @model_validator(mode="after")
    def _consistent(self) -> "HardenOptions":
        Budget.parse(self.budget)
        if self.num_generators > 1 and any(parse_inner_attack(name).folder for name in parse_mixture(self.attack)):
            raise GapError(
                "--num-generators makes copies of one that comes from a folder; name a folder for each instead"
            )
        self._check_used()
        if self.labels == "predicted":
            raise GapError("gap harden learns the data's own labels; leave out --labels predicted")
        return self

    def _check_used(self) -> None:
        """Raise GapError for an option that no attack of the mixture takes."""
        named = [parse_inner_attack(name) for name in parse_mixture(self.attack)]
        kinds = {each.kind for each in named}
        generating = bool(kinds & set(GENERATING))
        taken = {
            "steps": any(each.kind in STEPPING and each.steps is None for each in named),
            "num_generators": generating,
            "reset_every": generating,
            "generator_lr": generating or any(kind.startswith("universal") for kind in kinds),
            "num_universal": any(kind.startswith("universal") for kind in kinds),
            "beta": bool(kinds & set(KEEPING)),
        }
        unused = [option for option in _changed(self) if not taken.get(option, True)]
        if not any(each.kind in GENERATING and not each.folder for each in named):
            unused += _changed(self.generator)
        for option in unused:
            raise GapError(f"--{option.replace('_', '-')} does nothing: no attack of {', '.join(self.attack)} takes it")


def _changed(options: Options) -> list[str]:
    """The options that are not what they are by default."""
    return [name for name, field in type(options).model_fields.items() if getattr(options, name) != field.default]


def harden(
    options: HardenOptions, folder: Path | str, callbacks: Sequence[Callback] = (), *, resume: bool = False
) -> Artifact:
    """Harden a classifier and leave it as an artifact in `folder`, which the caller has made ready.

    Raises GapError when the classifier, the data and the budget do not fit, or the data has no labels.
    """
    folder = Path(folder)
    accelerator = make_accelerator(options)
    labeled = options.model_copy(update={"labels": "data"})
    with main_first(accelerator):
        task = load_task([options.classifier], labeled, accelerator.device)
    classifier, data = task.classifiers[0], task.data
    if not check_training(classifier.requires_grad_(True)):
        allow_unused_weights(accelerator)
    name_classes(classifier, data)
    Budget.parse(options.budget).check(classifier.spec.channels, *classifier.spec.size)
    if len(data.train):
        batch = min(options.batch_size, len(data.train)) // accelerator.num_processes
        check_mixture(batch, options.clean_fraction, parse_mixture(options.attack))
    told = classifier.describe()
    schedule = TrainSchedule(options.epochs, options.batch_size, options.seed, validation_images=options.val_images)
    training = make_training(options, classifier, steps=schedule.steps(len(data.train)))
    fingerprints = data_fingerprints(data, [classifier])
    last = train(
        training,
        data.train,
        data.validation,
        schedule,
        folder,
        accelerator,
        callbacks,
        resume=resume,
        fingerprints=fingerprints,
    )
    classifier.load_state_dict(training.best or training.averaged.module.state_dict())
    classifier.eval()
    test = accuracy(classifier, data.test, accelerator.device)
    if is_at_chance_level(test, classifier.spec.classes, data.test):
        warnings.warn(
            f"the classifier learned nothing within {options.budget}: it is right on {test:.1%} of the clean test"
            " images; try a smaller --budget, a longer --epsilon-warmup or a smaller --lr",
            GapWarning,
            stacklevel=2,
        )
    elif training.best_metrics and is_at_chance_level(training.best_probe, classifier.spec.classes, data.validation):
        warnings.warn(
            f"the classifier withstands nothing: {training.best_probe:.1%} left under the probe within"
            f" {options.budget}, no better than chance; give its attacks more --steps, or train for more --epochs",
            GapWarning,
            stacklevel=2,
        )
    card: dict[str, Any] = {
        "classifier": classifier.describe() | {"name": options.classifier},
        "adversarial_training": {
            "base_fingerprint": told["fingerprint"],
            "budget": options.budget,
            "attacks": parse_mixture(options.attack),
            "steps": {inner_attack.name: inner_attack.steps for inner_attack in training.mixture},
            "val_pgd_accuracy": training.best_probe,
            "recoveries": training.recoveries,
        },
        "data": data.describe(),
        "metrics": {
            "validation": training.best_metrics or last,
            "test": {"accuracy": test},
        },
        "options": options.to_dict(),
    }
    if not accelerator.is_main_process:
        return Artifact(folder, {"kind": "classifier", **card})
    return save_artifact(folder, "classifier", classifier.network.state_dict(), card)


def make_training(options: HardenOptions, classifier: Classifier, steps: int) -> AdversarialTraining:
    """The training that these options describe, for so many steps, with fresh modules from the global seed."""
    mixture = [
        make_inner_attack(name, share, options, classifier) for name, share in parse_mixture(options.attack).items()
    ]
    return AdversarialTraining(
        with_adamw(classifier.requires_grad_(True), options.lr, options.weight_decay),
        mixture,
        Budget.parse(options.budget),
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
