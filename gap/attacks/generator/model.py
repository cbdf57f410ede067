"""Trained attacks: what a generator's network makes of images, and the artefact that holds it."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gap.models.generators import make_generator
from pydantic import BaseModel, Field
from torch import Tensor, nn

from gap.attacks.base import Attack
from gap.attacks.universal import Universal
from gap.classifiers.checkpoints import check_values
from gap.classifiers.classifier import Classifier, Told
from gap.classifiers.fuse import folded
from gap.core.artifact import CARD, TENSORS, Artefact, Count, Side, open_artefact
from gap.core.errors import GapError, GapWarning, first_line
from gap.core.frozen import frozen
from gap.threat import Budget

# What building a network raises at options that are none.
BUILDING = (GapError, TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError)
KINDS = ("thresholded generator", "direct generator", "universal perturbation")


class AttackCard(BaseModel):
    """What the card of a trained attack tells."""

    budget: str | None
    goal: str
    channels: Count
    size: tuple[Side, Side]
    generator: dict[str, Any]
    classifiers: list[Told] = Field(min_length=1)

    @property
    def made_on(self) -> str:
        """The names of the classifiers it was trained against."""
        return " and ".join(told.name for told in self.classifiers)

    def knows(self, classifier: Classifier) -> bool:
        """Whether this classifier, as it is, is among those."""
        return any(told.is_about(classifier) for told in self.classifiers)


@dataclass(frozen=True)
class Thresholded:
    """A per-image generator whose perturbation is tanh-bounded to a budget, added, and clamped to [0, 1]."""

    network: nn.Module
    budget: Budget
    name: str = "generator"

    @torch.no_grad()
    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with frozen(self.network):
            return self.budget.perturb(images, self.network(images))


@dataclass(frozen=True)
class Direct:
    """A per-image generator that makes the image itself. With a budget, what it makes is projected onto that."""

    network: nn.Module
    budget: Budget | None = None
    name: str = "direct generator"

    @torch.no_grad()
    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with frozen(self.network):
            made = make_image(images, self.network(images))
        return made if self.budget is None else images + self.budget.project(made - images)


def make_image(images: Tensor, raw: Tensor) -> Tensor:
    """The image that a network makes directly: its free output over an outermost skip from its input, in [0, 1].

    Nothing bounds how far it goes. Without the skip a network folded for speed spends its size on copying the image.
    """
    return (images + raw.float()).clamp(0, 1)


def load_attack(folder: Path | str, budget: Budget | None = None, device: torch.device | str = "cpu") -> Attack:
    """The attack in a folder that `gap train` left, at its own budget or at another.

    Raises GapError when the folder holds no attack or is cut short.
    """
    return attack_from(open_artefact(Path(folder), *KINDS), budget, device)


def attack_from(
    artefact: Artefact, budget: Budget | None = None, device: torch.device | str = "cpu", name: str | None = None
) -> Attack:
    """The attack that an artefact holds, on a device; named after its folder unless told otherwise."""
    name, own = name or folder_name(artefact), own_budget(artefact)
    if own and budget and own.norm != budget.norm:
        told = f"{name} was trained within {own}; within {budget} it shows less than one trained there would"
        warnings.warn(told, GapWarning, stacklevel=2)
    if artefact.kind == "direct generator":
        return Direct(_network(artefact, device), budget, name)
    if own is None:
        raise GapError(f"{artefact.folder} does not say its budget")
    if artefact.kind == "universal perturbation":
        universal = Universal(_perturbation(artefact), own, name)
        return universal if budget in (None, own) else universal.at(budget)
    return Thresholded(_network(artefact, device), budget or own, name)


def folder_name(artefact: Artefact) -> str:
    """The name of an artefact's folder, also where it was given as `.`."""
    return artefact.folder.resolve().name


def own_budget(artefact: Artefact) -> Budget | None:
    """The budget an attack was trained at, where it was."""
    told = artefact.read(AttackCard).budget
    try:
        return None if told is None else Budget.parse(told)
    except GapError as error:
        raise GapError(f"{artefact.folder / CARD} is damaged at budget: {error}") from error


def _perturbation(artefact: Artefact) -> Tensor:
    card, tensors = artefact.read(AttackCard), artefact.tensors()
    source, remedy = artefact.folder / TENSORS, f"make {artefact.folder} again"
    if "perturbation" not in tensors:
        raise GapError(f"{source} holds no perturbation; {remedy}")
    perturbation, shape = tensors["perturbation"], (1, card.channels, *card.size)
    if tuple(perturbation.shape) != shape:
        shapes = ["x".join(map(str, each)) for each in (perturbation.shape, shape)]
        raise GapError(f"the perturbation in {source} is {shapes[0]}, and its card says {shapes[1]}; {remedy}")
    check_values({"perturbation": torch.zeros(shape)}, {"perturbation": perturbation}, source, remedy)
    return perturbation.float()


def load_generator(artefact: Artefact) -> nn.Module:
    """The network of a per-image generator as it was trained, to learn on."""
    card = artefact.read(AttackCard)
    artefact.check_sizes("generator", _sizes(card))
    try:
        network = make_generator(card.channels, **card.generator | {"weights": None})
    except BUILDING as error:
        raise GapError(
            f"{artefact.folder / CARD} is damaged at generator: {first_line(error)}; make it again"
        ) from error
    artefact.fit(network)
    return network


def _sizes(card: AttackCard) -> list[int]:
    """The sizes of a generator's tensors that its card says, those of them that are numbers."""
    decoder, fold = card.generator.get("decoder"), card.generator.get("fold")
    widths = [each for each in decoder if type(each) is int] if isinstance(decoder, list) else []
    return [*widths, card.channels * fold * fold] if type(fold) is int else widths


def _network(artefact: Artefact, device: torch.device | str) -> nn.Module:
    card, network = artefact.read(AttackCard), load_generator(artefact)
    return folded(network.eval().to(device).to(memory_format=torch.channels_last), card.channels, card.size)
