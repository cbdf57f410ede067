"""Trained attacks: what a generator's network makes of images, and the artifact that holds it."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from gap.attacks.base import Attack, SavedAttack
from gap.attacks.names import ARTIFACT_KINDS
from gap.attacks.universal import Universal
from gap.classifiers.classifier import Classifier, ClassifierMetadata
from gap.classifiers.fuse import fuse_conv_bn
from gap.core.artifact import CARD, TENSORS, Artifact, Count, Side, open_artifact
from gap.core.device import pick_device
from gap.core.errors import GapError, GapWarning, first_line
from gap.core.frozen import frozen
from gap.core.safe_load import check_values
from gap.models.generators import make_generator
from gap.threat import Budget

# What building a network raises at options that are none.
BUILDING = (GapError, TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError)


class AttackCard(BaseModel):
    """What the card of a trained attack tells."""

    budget: str | None
    criterion: str
    channels: Count
    size: tuple[Side, Side]
    generator: dict[str, Any]
    classifiers: list[ClassifierMetadata] = Field(min_length=1)

    @property
    def source_names(self) -> str:
        """The names of the classifiers it was trained against."""
        return " and ".join(metadata.name for metadata in self.classifiers)

    def was_trained_on(self, classifier: Classifier) -> bool:
        """Whether this classifier, as it is, is among those."""
        return any(metadata.matches(classifier) for metadata in self.classifiers)


@dataclass(frozen=True, eq=False)
class BoundedGeneratorAttack(SavedAttack):
    """A per-image generator whose perturbation is tanh-bounded to a budget, added, and clamped to [0, 1]."""

    network: nn.Module
    budget: Budget
    name: str = "generator"

    @torch.no_grad()
    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with frozen(self.network):
            return self.budget.apply(images, self.network(images))


@dataclass(frozen=True, eq=False)
class DirectGeneratorAttack(SavedAttack):
    """A per-image generator that makes the image itself. With a budget, what it makes is projected onto that."""

    network: nn.Module
    budget: Budget | None = None
    name: str = "direct_generator"

    @torch.no_grad()
    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with frozen(self.network):
            made = direct_output(images, self.network(images))
        return made if self.budget is None else images + self.budget.project(made - images)


# The forms in which a trained attack comes.
TrainedAttack = BoundedGeneratorAttack | DirectGeneratorAttack | Universal


def direct_output(images: Tensor, raw: Tensor) -> Tensor:
    """The image that a network makes directly: its free output over an outermost skip from its input, in [0, 1].

    Nothing bounds how far it goes. Without the skip a network folded for speed spends its size on copying the image.
    """
    return (images + raw.float()).clamp(0, 1)


def load_attack(folder: Path | str, budget: Budget | None = None, device: torch.device | str = "cpu") -> Attack:
    """The attack in a folder that `gap train` left, at its own budget or at another.

    Raises GapError when the folder holds no attack or is cut short, and for a device that is not there.
    """
    return load_attack_artifact(open_artifact(Path(folder), *ARTIFACT_KINDS), budget, pick_device(device))


def load_attack_artifact(
    artifact: Artifact, budget: Budget | None = None, device: torch.device | str = "cpu", name: str | None = None
) -> TrainedAttack:
    """The attack that an artifact holds, on a device; named after its folder by default."""
    name, own = name or folder_name(artifact), trained_budget(artifact)
    if own and budget and own.norm != budget.norm:
        message = f"{name} was trained within {own}; within {budget} an attack trained for that norm would do better"
        warnings.warn(message, GapWarning, stacklevel=2)
    if artifact.kind == "direct_generator":
        return DirectGeneratorAttack(_network(artifact, device), budget, name, artifact=artifact)
    if own is None:
        raise GapError(f"{artifact.folder} does not say its budget")
    if artifact.kind == "universal_perturbation":
        universal = Universal(_perturbation(artifact), own, name, artifact=artifact)
        return universal if budget in (None, own) else universal.rescaled_to(budget)
    return BoundedGeneratorAttack(_network(artifact, device), budget or own, name, artifact=artifact)


def folder_name(artifact: Artifact) -> str:
    """The name of an artifact's folder, also where it was given as `.`."""
    return artifact.folder.resolve().name


def trained_budget(artifact: Artifact) -> Budget | None:
    """The budget an attack was trained at, where it was."""
    text = artifact.read(AttackCard).budget
    try:
        return None if text is None else Budget.parse(text)
    except GapError as error:
        raise GapError(f"{artifact.folder / CARD} is damaged at budget: {error}") from error


def _perturbation(artifact: Artifact) -> Tensor:
    card, tensors = artifact.read(AttackCard), artifact.tensors()
    source, remedy = artifact.folder / TENSORS, f"make {artifact.folder} again"
    if "perturbation" not in tensors:
        raise GapError(f"{source} holds no perturbation; {remedy}")
    perturbation, shape = tensors["perturbation"], (1, card.channels, *card.size)
    if tuple(perturbation.shape) != shape:
        shapes = ["x".join(map(str, each)) for each in (perturbation.shape, shape)]
        raise GapError(f"the perturbation in {source} is {shapes[0]}, and its card says {shapes[1]}; {remedy}")
    check_values({"perturbation": torch.zeros(shape)}, {"perturbation": perturbation}, source, remedy)
    return perturbation.float()


def load_generator(artifact: Artifact) -> nn.Module:
    """The network of a per-image generator as it was trained, to learn on."""
    card = artifact.read(AttackCard)
    artifact.check_sizes("generator", _sizes(card))
    try:
        network = make_generator(card.channels, **card.generator | {"weights": None})
    except BUILDING as error:
        raise GapError(
            f"{artifact.folder / CARD} is damaged at generator: {first_line(error)}; make it again"
        ) from error
    artifact.fit(network)
    return network


def _sizes(card: AttackCard) -> list[int]:
    """The sizes of a generator's tensors that its card says, those of them that are numbers."""
    decoder, pixel_unshuffle = card.generator.get("decoder"), card.generator.get("pixel_unshuffle")
    widths = [each for each in decoder if type(each) is int] if isinstance(decoder, list) else []
    return [*widths, card.channels * pixel_unshuffle * pixel_unshuffle] if type(pixel_unshuffle) is int else widths


def _network(artifact: Artifact, device: torch.device | str) -> nn.Module:
    card, network = artifact.read(AttackCard), load_generator(artifact)
    return fuse_conv_bn(network.eval().to(device).to(memory_format=torch.channels_last), card.channels, card.size)
