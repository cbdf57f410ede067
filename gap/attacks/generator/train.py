"""Train a perturbation generator against classifiers, from options to artifact."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator, PartialState
from gap.models.generators import Discriminator, UniversalGenerator, make_generator
from pydantic import Field, model_validator
from torch import Tensor, nn

from gap.attacks.criteria import find_criterion
from gap.attacks.generator.tasks import (
    AdversarialGeneratorTraining,
    BoundedGeneratorTraining,
    DirectGeneratorTraining,
    GeneratorTraining,
    UniversalGeneratorTraining,
)
from gap.attacks.losses import CONFIDENCE, find_loss
from gap.classifiers.fuse import fuse_conv_bn
from gap.classifiers.provenance import data_fingerprints
from gap.classifiers.task import AttackTask, DataOptions, load_task, warn_if_at_chance
from gap.core.artifact import PERTURBATION, Artifact, save_artifact
from gap.core.errors import GapError, GapWarning
from gap.core.frozen import frozen
from gap.core.options import Options
from gap.report.pictures import amplify, save_image, to_image
from gap.threat import Budget
from gap.training.augmentation import make_augmentation
from gap.training.runtime import TrainRuntimeOptions, main_first, make_accelerator
from gap.training.task import with_adamw
from gap.training.trainer import Callback, TrainSchedule, train

# How many images a generator sees where the user names no epochs: two and a half minutes of two cores on MNIST.
DEFAULT_TRAINING_IMAGES = 128_000
# More epochs than this by default are told: the data may be smaller than the user thinks.
EPOCHS_TO_WARN = 100


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
    pixel_unshuffle: Annotated[
        int, Field(ge=1, le=16, description="pixels folded into channels, each way, before the network")
    ] = 2


class TrainOptions(TrainRuntimeOptions, DataOptions):
    """Options of `gap train`: whom to attack, on what, in which form, and how long."""

    classifier: Annotated[
        list[str], Field(min_length=1, description="the classifier to attack; several are an ensemble")
    ]
    budget: Annotated[
        str | None, Field(description="largest perturbation, linf:8/255 or l2:2.4 (pixels in [0, 1])")
    ] = None
    universal: Annotated[bool, Field(description="one perturbation for all images")] = False
    candidates: Annotated[
        int, Field(ge=1, description="with --universal: how many noises to try, of which the best is kept")
    ] = 8
    unbounded: Annotated[bool, Field(description="the generator makes the image itself")] = False
    target_norm: Annotated[
        str | None, Field(description="with --unbounded: the mean perturbation to meet, as l2:2.7")
    ] = None
    discriminator: Annotated[bool, Field(description="with --unbounded: a discriminator in place of a target norm")] = (
        False
    )
    criterion: Annotated[str, Field(description="untargeted, least-likely or target:CLASS")] = "untargeted"
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
        float | None,
        Field(
            gt=0, description=f"passes over the training images; by default {DEFAULT_TRAINING_IMAGES:,} images' worth"
        ),
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="images a step, over all processes")] = 128
    lr: Annotated[float, Field(gt=0, description="peak learning rate of AdamW")] = 4e-3

    @model_validator(mode="after")
    def _consistent(self) -> "TrainOptions":
        find_loss(self.loss)
        if self.budget is not None:
            Budget.parse(self.budget)
        if self.unbounded:
            if self.universal:
                raise GapError("--unbounded and --universal exclude each other")
            if self.budget is not None:
                raise GapError("--unbounded takes --target-norm, a mean, not --budget, a bound")
            if self.discriminator == (self.target_norm is not None):
                raise GapError("--unbounded takes either --target-norm, for example l2:2.7, or --discriminator")
            if self.target_norm is not None:
                Budget.parse(self.target_norm)
        elif self.target_norm is not None or self.discriminator:
            raise GapError("--target-norm and --discriminator go with --unbounded")
        elif self.budget is None:
            raise GapError("a budget is missing; give --budget, for example linf:8/255 or l2:2.4")
        return self


def train_generator(
    options: TrainOptions, folder: Path | str, callbacks: Sequence[Callback] = (), *, resume: bool = False
) -> Artifact:
    """Train a generator and leave it as an artifact in `folder`, which the caller has made ready.

    Raises GapError for options that do not fit each other, the classifier or the data.
    """
    folder = Path(folder)
    accelerator = make_accelerator(options)
    device = accelerator.device
    with main_first(accelerator):
        task = load_task(options.classifier, options, device)
    spec = task.classifiers[0].spec
    for text in filter(None, (options.budget, options.target_norm)):
        Budget.parse(text).check(spec.channels, *spec.size)
    warn_if_at_chance(task.classifiers[0], task.data.trial_split, device, task.data.name)
    return train_against(task, options, folder, accelerator, callbacks, resume=resume)


def train_against(
    task: AttackTask,
    options: TrainOptions,
    folder: Path,
    accelerator: Accelerator,
    callbacks: Sequence[Callback] = (),
    *,
    resume: bool = False,
) -> Artifact:
    """The same against classifiers and on data that are there already, whatever the options name."""
    with frozen(*task.classifiers):
        epochs = options.epochs or _default_epochs(len(task.data.train))
        schedule = TrainSchedule(epochs, options.batch_size, options.seed)
        training = make_training(options, task, schedule.steps(len(task.data.train)))
        metrics = train(
            training,
            task.data.train,
            task.data.validation,
            schedule,
            folder,
            accelerator,
            callbacks,
            resume=resume,
            fingerprints=data_fingerprints(task.data, task.classifiers),
        )
        accelerator.wait_for_everyone()
        return _save(options, task, training, metrics, folder, accelerator)


def _default_epochs(images: int) -> float:
    epochs = DEFAULT_TRAINING_IMAGES / max(1, images)
    if epochs > EPOCHS_TO_WARN:
        warnings.warn(
            f"with {images} training images, {DEFAULT_TRAINING_IMAGES:,} images' worth are {epochs:.0f} epochs;"
            " --epochs says otherwise",
            GapWarning,
            stacklevel=3,
        )
    return epochs


def make_training(options: TrainOptions, task: AttackTask, steps: int) -> GeneratorTraining:
    """The training that these options describe, for so many training steps, with fresh networks by the global seed."""
    spec = task.classifiers[0].spec
    device = task.classifiers[0].device
    generator = make_generator(spec.channels, **options.generator.to_dict())
    network: nn.Module = generator
    if options.universal:
        each = max(1, options.batch_size // PartialState().num_processes)
        network = UniversalGenerator(generator, spec.channels, spec.size, min(options.candidates, each))
    module = with_adamw(network.to(device).to(memory_format=torch.channels_last), options.lr)
    rest = (
        module,
        [fuse_conv_bn(classifier, spec.channels, spec.size) for classifier in task.classifiers],
        find_criterion(options.criterion, task.classes),
        find_loss(options.loss, options.confidence),
        make_augmentation(spec.size, flip=options.flip, crop=options.crop),
    )
    if options.discriminator:
        discriminator = Discriminator(spec.channels).to(device).to(memory_format=torch.channels_last)
        return AdversarialGeneratorTraining(with_adamw(discriminator, options.lr / 4), *rest)
    if options.target_norm is not None:
        asked = Budget.parse(options.target_norm)
        return DirectGeneratorTraining(asked.norm, asked.epsilon, *rest)
    budget = Budget.parse(str(options.budget))
    return (
        UniversalGeneratorTraining(budget, steps, *rest)
        if options.universal
        else BoundedGeneratorTraining(budget, *rest)
    )


def _save(
    options: TrainOptions,
    task: AttackTask,
    training: GeneratorTraining,
    metrics: dict[str, float],
    folder: Path,
    accelerator: Accelerator,
) -> Artifact:
    network = accelerator.unwrap_model(training.modules["generator"].network)
    tensors: dict[str, Tensor] = dict(network.state_dict())
    if isinstance(training, UniversalGeneratorTraining):
        network.eval()
        with torch.no_grad():
            tensors["perturbation"] = training.perturbations()
        tensors["noise"] = network.noise[training.survivors]
        if accelerator.is_main_process:
            save_image(to_image(amplify(tensors["perturbation"].cpu())[0][0]), folder / PERTURBATION)
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
    if not accelerator.is_main_process:
        return Artifact(folder, {"kind": kind, **card})
    return save_artifact(folder, kind, tensors, card)
