"""Harden a classifier, from options to artefact."""

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
from gap.classifiers.fuse import Folding
from gap.classifiers.memory_format import check_training
from gap.classifiers.provenance import identify
from gap.classifiers.task import DataOptions, accuracy, is_chance, load_setting, name_classes
from gap.core.artifact import Artefact, open_artefact, save_artefact
from gap.core.errors import GapError, GapWarning
from gap.core.options import Options
from gap.hardening.initializers import (
    FedGeneratorStart,
    Generators,
    GeneratorStart,
    RandomStart,
    Start,
    Universals,
    UniversalStart,
)
from gap.hardening.inner_attacks import (
    GENERATING,
    KEEPING,
    KINDS,
    MOST_GIVEN,
    STEPPING,
    Sparring,
    check_shares,
    parse_mix,
    parse_name,
)
from gap.hardening.task import HardenJob
from gap.models.generators import make_generator
from gap.threat import Budget
from gap.training.augmentation import AugmentationOptions
from gap.training.runtime import TrainingMachineOptions, allow_unused_weights, main_first, make_accelerator
from gap.training.task import Player, adam
from gap.training.trainer import Listener, Plan, train

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
    fold: Annotated[
        int, Field(ge=1, le=16, description="pixels folded into channels, each way, before the network")
    ] = 4


class HardenOptions(TrainingMachineOptions, AugmentationOptions, DataOptions):
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
        + ", ".join(KINDS),
    )
    steps: Annotated[int, Field(ge=1, le=MOST_GIVEN, description=f"gradient steps of {', '.join(STEPPING)}")] = 2
    generators: Annotated[int, Field(ge=1, description="how many generators share each batch that one attack gets")] = 1
    renew: Annotated[
        float, Field(ge=0, description="epochs after which a generator starts anew, each in its turn; 0 is never")
    ] = 0.0
    universals: Annotated[int, Field(ge=1, description="how many universal perturbations play")] = 8
    clean: Annotated[float, Field(ge=0, lt=1, description="the share of each batch that is left clean")] = 0.0
    watch: Annotated[
        bool,
        Field(
            description="where the probe shows a collapse, go back to the best weights and give attacks one more step"
        ),
    ] = True
    probed: Annotated[
        int,
        Field(
            ge=1,
            description="held-out images that the probe attacks after each epoch, to pick the weights that are kept",
        ),
    ] = 2000
    epochs: Annotated[float, Field(gt=0, description="passes over the training images")] = 20.0
    warmup: Annotated[float, Field(ge=0, lt=1, description="the share of training over which epsilon rises from 0")] = (
        0.2
    )
    batch_size: Annotated[int, Field(ge=1, description="images a step, over all processes")] = 128
    lr: Annotated[float, Field(gt=0, description="peak learning rate of the classifier's AdamW")] = 2e-3
    generator_lr: Annotated[
        float, Field(gt=0, description="peak learning rate of generators and universal perturbations")
    ] = 2e-3
    weight_decay: Annotated[float, Field(ge=0, description="of the classifier's AdamW")] = 0.0
    smoothing: Annotated[float, Field(ge=0, lt=1, description="label smoothing")] = 0.0
    average: Annotated[
        float, Field(gt=0, lt=1, description="the share of training that the average of the weights looks back over")
    ] = 0.02
    beta: Annotated[float, Field(gt=0, description="trades: the weight of keeping the clean prediction")] = 6.0
    generator: SmallGeneratorOptions = SmallGeneratorOptions()

    @model_validator(mode="after")
    def _consistent(self) -> "HardenOptions":
        Budget.parse(self.budget)
        if self.generators > 1 and any(parse_name(name).folder for name in parse_mix(self.attack)):
            raise GapError("--generators makes copies of one that comes from a folder; name a folder for each instead")
        self._check_used()
        if self.labels == "predicted":
            raise GapError("gap harden learns the data's own labels; leave out --labels predicted")
        return self

    def _check_used(self) -> None:
        """Raise GapError for an option that no attack of the mix takes."""
        named = [parse_name(name) for name in parse_mix(self.attack)]
        kinds = {each.kind for each in named}
        generating = bool(kinds & set(GENERATING))
        taken = {
            "steps": any(each.kind in STEPPING and each.steps is None for each in named),
            "generators": generating,
            "renew": generating,
            "generator_lr": generating or any(kind.startswith("universal") for kind in kinds),
            "universals": any(kind.startswith("universal") for kind in kinds),
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
    options: HardenOptions, folder: Path | str, listeners: Sequence[Listener] = (), *, resume: bool = False
) -> Artefact:
    """Harden a classifier and leave it as an artefact in `folder`, which the caller has made ready.

    Raises GapError when the classifier, the data and the budget do not fit, or the data has no labels.
    """
    folder = Path(folder)
    accelerator = make_accelerator(options)
    labelled = options.model_copy(update={"labels": "data"})
    with main_first(accelerator):
        setting = load_setting([options.classifier], labelled, accelerator.device)
    classifier, data = setting.classifiers[0], setting.data
    if not check_training(classifier.requires_grad_(True)):
        allow_unused_weights(accelerator)
    name_classes(classifier, data)
    Budget.parse(options.budget).check(classifier.facts.channels, *classifier.facts.size)
    if len(data.train):
        batch = min(options.batch_size, len(data.train)) // accelerator.num_processes
        check_shares(batch, options.clean, parse_mix(options.attack))
    told = classifier.describe()
    plan = Plan(options.epochs, options.batch_size, options.seed, judged=options.probed)
    job = make_job(options, classifier, steps=plan.steps(len(data.train)))
    identity = identify(data, [classifier])
    last = train(
        job, data.train, data.validation, plan, folder, accelerator, listeners, resume=resume, identity=identity
    )
    classifier.load_state_dict(job.best or job.averaged.module.state_dict())
    classifier.eval()
    test = accuracy(classifier, data.test, accelerator.device)
    if is_chance(test, classifier.facts.classes, data.test):
        warnings.warn(
            f"the classifier learned nothing within {options.budget}: it is right on {test:.1%} of the clean test"
            " images; try a smaller --budget, a longer --warmup or a smaller --lr",
            GapWarning,
            stacklevel=2,
        )
    elif job.best_figures and is_chance(job.best_probe, classifier.facts.classes, data.validation):
        warnings.warn(
            f"the classifier withstands nothing: {job.best_probe:.1%} left under the probe within {options.budget},"
            " no better than chance; give its attacks more --steps, or train for more --epochs",
            GapWarning,
            stacklevel=2,
        )
    card: dict[str, Any] = {
        "classifier": classifier.describe() | {"name": options.classifier},
        "hardened": {
            "from": told["fingerprint"],
            "budget": options.budget,
            "mix": parse_mix(options.attack),
            "steps": {sparring.name: sparring.steps for sparring in job.mix},
            "probe_accuracy": job.best_probe,
            "mended": job.mended,
        },
        "data": data.describe(),
        "figures": {
            "validation": job.best_figures or last,
            "test": {"accuracy": test},
        },
        "options": options.dump(),
    }
    if not accelerator.is_main_process:
        return Artefact(folder, {"kind": "classifier", **card})
    return save_artefact(folder, "classifier", classifier.network.state_dict(), card)


def make_job(options: HardenOptions, classifier: Classifier, steps: int) -> HardenJob:
    """The job that these options describe, for so many training steps, with fresh players from the global seed."""
    mix = [make_sparring(name, share, options, classifier) for name, share in parse_mix(options.attack).items()]
    return HardenJob(
        adam(classifier.requires_grad_(True), options.lr, options.weight_decay),
        mix,
        Budget.parse(options.budget),
        clean=options.clean,
        smoothing=options.smoothing,
        warmup=round(options.warmup * steps),
        last=steps,
        renewal=math.ceil(options.renew / options.epochs * steps),
        decay=1 - 1 / max(2.0, options.average * steps),
        watched=options.watch,
        augmentation=options.augmentation(classifier.facts.size),
        lean=Folding(classifier, classifier.facts.channels, classifier.facts.size).fresh,
    )


def make_sparring(name: str, share: float, options: HardenOptions, classifier: Classifier) -> Sparring:
    """The attack of that name, as it stands at the beginning of training."""
    facts = classifier.facts
    device = classifier.device

    named = parse_name(name)
    kind, folder = named.kind, named.folder
    steps = named.steps or options.steps

    def generators(channels: int) -> Player:
        def make() -> nn.Module:
            return _from_artefact(folder, channels) if folder else make_generator(channels, **options.generator.dump())

        population = Generators(make, options.generators)
        return adam(population.to(device).to(memory_format=torch.channels_last), options.generator_lr)

    def universals() -> Player:
        return adam(Universals(options.universals, facts.channels, facts.size).to(device), 10 * options.generator_lr)

    start: Start
    match kind:
        case "generator":
            start, count = GeneratorStart(generators(facts.channels)), 0
        case "generator-gradient":
            start, count = FedGeneratorStart(generators(2 * facts.channels)), 0
        case "generator-start" | "trades-start":
            start, count = GeneratorStart(generators(facts.channels), NOISE), steps
        case "universal":
            start, count = UniversalStart(universals()), 0
        case "universal-start":
            start, count = UniversalStart(universals(), NOISE), steps
        case "fgsm":
            start, count = RandomStart(reach=2.0), 1
        case _:
            start, count = RandomStart(), steps
    beta = options.beta if kind in KEEPING else None
    return Sparring(name, share, start, count, projected=kind != "fgsm", beta=beta)


def _from_artefact(folder: str, channels: int) -> nn.Module:
    """The generator that `gap train` left there, to learn on."""
    artefact = open_artefact(Path(folder), "thresholded generator")
    card = artefact.read(AttackCard)
    if card.channels != channels:
        raise GapError(f"{folder} takes {card.channels}-channel images, and the classifier {channels}-channel ones")
    return load_generator(artefact)
