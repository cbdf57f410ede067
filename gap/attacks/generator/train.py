"""Train a perturbation generator against classifiers, from options to artefact."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator, PartialState
from gap.models.generators import Discriminator, UniversalGenerator, make_generator
from pydantic import Field, model_validator
from torch import Tensor, nn

from gap.attacks.criteria import find_goal
from gap.attacks.generator.tasks import AttackJob, DirectJob, DiscriminatorJob, ThresholdedJob, UniversalJob
from gap.attacks.losses import CONFIDENCE, find_loss
from gap.classifiers.fuse import folded
from gap.classifiers.provenance import identify
from gap.classifiers.task import DataOptions, Setting, load_setting, warn_if_chance
from gap.core.artifact import PERTURBATION, Artefact, save_artefact
from gap.core.errors import GapError, GapWarning
from gap.core.frozen import frozen
from gap.core.options import Options
from gap.report.pictures import amplify, save_image, to_image
from gap.threat import Budget
from gap.training.augmentation import make_augmentation
from gap.training.runtime import TrainingMachineOptions, main_first, make_accelerator
from gap.training.task import adam
from gap.training.trainer import Listener, Plan, train

# How many images a generator sees where the user names no epochs: two and a half minutes of two cores on MNIST.
IMAGES = 128_000
# More epochs than this by default are told: the data may be smaller than the user thinks.
MANY = 100


class GeneratorOptions(Options):
    """The network: a U-Net of segmentation-models-pytorch, or the plain autoencoder beside it."""

    group = "Generator"
    architecture: Annotated[Literal["unet", "autoencoder"], Field(description="the network: unet or autoencoder")] = (
        "unet"
    )
    encoder: Annotated[str, Field(description="any encoder of smp (segmentation models), or tu-NAME from timm")] = (
        "strided-64"
    )
    weights: Annotated[str | None, Field(description="pretrained encoder weights, such as imagenet")] = None
    decoder: Annotated[
        tuple[int, ...], Field(min_length=1, description="widths of the decoder, from the bottom up")
    ] = (64, 64, 32)
    fold: Annotated[
        int, Field(ge=1, le=16, description="pixels folded into channels, each way, before the network")
    ] = 2


class TrainOptions(TrainingMachineOptions, DataOptions):
    """Options of `gap train`: whom to attack, on what, in which form, and how long."""

    classifier: Annotated[
        list[str], Field(min_length=1, description="the classifier to attack; several are an ensemble")
    ]
    budget: Annotated[
        str | None, Field(description="largest perturbation, linf:8/255 or l2:2.4 (pixels in [0, 1])")
    ] = None
    universal: Annotated[bool, Field(description="one perturbation for all images")] = False
    noises: Annotated[
        int, Field(ge=1, description="with --universal: how many noises to try, of which the best is kept")
    ] = 8
    direct: Annotated[bool, Field(description="the generator makes the image itself")] = False
    magnitude: Annotated[str | None, Field(description="with --direct: the mean perturbation to meet, as l2:2.7")] = (
        None
    )
    discriminator: Annotated[bool, Field(description="with --direct: a discriminator in place of the magnitude")] = (
        False
    )
    goal: Annotated[str, Field(description="untargeted, least-likely or target:CLASS")] = "untargeted"
    loss: Annotated[str, Field(description="margin, relativistic, log-cross-entropy or capped-cross-entropy")] = (
        "margin"
    )
    confidence: Annotated[
        float,
        Field(
            ge=0,
            description="logits by which the margin loss wants each image misread; raise it where images are few",
        ),
    ] = CONFIDENCE
    generator: GeneratorOptions = GeneratorOptions()
    flip: Annotated[bool, Field(description="augmentation: mirror half of the pictures, left to right")] = False
    crop: Annotated[
        float, Field(gt=0, le=1, description="augmentation: cut pictures to at least this share of each side")
    ] = 1.0
    epochs: Annotated[
        float | None, Field(gt=0, description=f"passes over the training images; by default {IMAGES:,} images' worth")
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="images a step, over all processes")] = 128
    lr: Annotated[float, Field(gt=0, description="peak learning rate of AdamW")] = 4e-3

    @model_validator(mode="after")
    def _consistent(self) -> "TrainOptions":
        find_loss(self.loss)
        if self.budget is not None:
            Budget.parse(self.budget)
        if self.direct:
            if self.universal:
                raise GapError("--direct and --universal exclude each other")
            if self.budget is not None:
                raise GapError("--direct takes --magnitude, a mean, not --budget, a bound")
            if self.discriminator == (self.magnitude is not None):
                raise GapError("--direct takes either --magnitude, for example l2:2.7, or --discriminator")
            if self.magnitude is not None:
                Budget.parse(self.magnitude)
        elif self.magnitude is not None or self.discriminator:
            raise GapError("--magnitude and --discriminator go with --direct")
        elif self.budget is None:
            raise GapError("a budget is missing; give --budget, for example linf:8/255 or l2:2.4")
        return self


def train_generator(
    options: TrainOptions, folder: Path | str, listeners: Sequence[Listener] = (), *, resume: bool = False
) -> Artefact:
    """Train a generator and leave it as an artefact in `folder`, which the caller has made ready.

    Raises GapError for options that do not fit each other, the classifier or the data.
    """
    folder = Path(folder)
    accelerator = make_accelerator(options)
    device = accelerator.device
    with main_first(accelerator):
        setting = load_setting(options.classifier, options, device)
    facts = setting.classifiers[0].facts
    for text in filter(None, (options.budget, options.magnitude)):
        Budget.parse(text).check(facts.channels, *facts.size)
    warn_if_chance(setting.classifiers[0], setting.data.trial_split, device, setting.data.name)
    return train_against(setting, options, folder, accelerator, listeners, resume=resume)


def train_against(
    setting: Setting,
    options: TrainOptions,
    folder: Path,
    accelerator: Accelerator,
    listeners: Sequence[Listener] = (),
    *,
    resume: bool = False,
) -> Artefact:
    """The same against classifiers and on data that are there already, whatever the options name."""
    with frozen(*setting.classifiers):
        epochs = options.epochs or _default_epochs(len(setting.data.train))
        plan = Plan(epochs, options.batch_size, options.seed)
        job = make_job(options, setting, plan.steps(len(setting.data.train)))
        figures = train(
            job,
            setting.data.train,
            setting.data.validation,
            plan,
            folder,
            accelerator,
            listeners,
            resume=resume,
            identity=identify(setting.data, setting.classifiers),
        )
        accelerator.wait_for_everyone()
        return _save(options, setting, job, figures, folder, accelerator)


def _default_epochs(images: int) -> float:
    epochs = IMAGES / max(1, images)
    if epochs > MANY:
        told = (
            f"with {images} training images, {IMAGES:,} images' worth are {epochs:.0f} epochs; --epochs says otherwise"
        )
        warnings.warn(told, GapWarning, stacklevel=3)
    return epochs


def make_job(options: TrainOptions, setting: Setting, steps: int) -> AttackJob:
    """The job that these options describe, for so many training steps, with fresh networks from the global seed."""
    facts = setting.classifiers[0].facts
    device = setting.classifiers[0].device
    generator = make_generator(facts.channels, **options.generator.dump())
    network: nn.Module = generator
    if options.universal:
        each = max(1, options.batch_size // PartialState().num_processes)
        network = UniversalGenerator(generator, facts.channels, facts.size, min(options.noises, each))
    player = adam(network.to(device).to(memory_format=torch.channels_last), options.lr)
    rest = (
        player,
        [folded(classifier, facts.channels, facts.size) for classifier in setting.classifiers],
        find_goal(options.goal, setting.classes),
        find_loss(options.loss, options.confidence),
        make_augmentation(facts.size, flip=options.flip, crop=options.crop),
    )
    if options.discriminator:
        judge = Discriminator(facts.channels).to(device).to(memory_format=torch.channels_last)
        return DiscriminatorJob(adam(judge, options.lr / 4), *rest)
    if options.magnitude is not None:
        asked = Budget.parse(options.magnitude)
        return DirectJob(asked.norm, asked.epsilon, *rest)
    budget = Budget.parse(str(options.budget))
    return UniversalJob(budget, steps, *rest) if options.universal else ThresholdedJob(budget, *rest)


def _save(
    options: TrainOptions,
    setting: Setting,
    job: AttackJob,
    figures: dict[str, float],
    folder: Path,
    accelerator: Accelerator,
) -> Artefact:
    network = accelerator.unwrap_model(job.players["generator"].network)
    tensors: dict[str, Tensor] = dict(network.state_dict())
    if isinstance(job, UniversalJob):
        network.eval()
        with torch.no_grad():
            tensors["perturbation"] = job.perturbations()
        tensors["noise"] = network.noise[job.standing]
        if accelerator.is_main_process:
            save_image(to_image(amplify(tensors["perturbation"].cpu())[0][0]), folder / PERTURBATION)
    facts = setting.classifiers[0].facts
    card: dict[str, Any] = {
        "budget": options.budget,
        "magnitude": options.magnitude,
        "goal": options.goal,
        "channels": facts.channels,
        "size": list(facts.size),
        "generator": options.generator.dump(),
        "classifiers": [classifier.describe() for classifier in setting.classifiers],
        "data": setting.data.describe(),
        "figures": {"validation": figures},
        "options": options.dump(),
    }
    kind = (
        "universal perturbation"
        if options.universal
        else "direct generator"
        if options.direct
        else "thresholded generator"
    )
    if not accelerator.is_main_process:
        return Artefact(folder, {"kind": kind, **card})
    return save_artefact(folder, kind, tensors, card)
