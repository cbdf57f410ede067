"""Trained attacks: those with generator networks, and how they are loaded from artifacts."""

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
from gap.core.network import to_channels_last
from gap.core.safe_load import check_values
from gap.models.generators import make_generator
from gap.threat import Budget, as_budget

# The errors of building a network from invalid options.
BUILDING = (GapError, TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError)


class AttackCard(BaseModel):
    """The card of a trained attack."""

    budget: str | None
    criterion: str
    channels: Count
    size: tuple[Side, Side]
    generator: dict[str, Any]
    classifiers: list[ClassifierMetadata] = Field(min_length=1)

    @property
    def source_names(self) -> str:
        """The names of the classifiers that the attack was trained against."""
        return " and ".join(metadata.name for metadata in self.classifiers)

    def was_trained_on(self, classifier: Classifier) -> bool:
        """Whether the attack was trained against this classifier with its present weights."""
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
    """A per-image generator that outputs the image itself. With a budget, its output is projected onto that."""

    network: nn.Module
    budget: Budget | None = None
    name: str = "direct_generator"

    @torch.no_grad()
    def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with frozen(self.network):
            adversarial = direct_output(images, self.network(images))
        return adversarial if self.budget is None else images + self.budget.project(adversarial - images)


# The classes of trained attacks.
TrainedAttack = BoundedGeneratorAttack | DirectGeneratorAttack | Universal


def direct_output(images: Tensor, raw: Tensor) -> Tensor:
    """The adversarial image of a network without a bound: the input plus the network's output, clamped to [0, 1].

    Without this skip connection, a network that uses pixel unshuffling spends its capacity on copying the image.
    """
    return (images + raw.float()).clamp(0, 1)


def load_attack(folder: Path | str, budget: Budget | str | None = None, device: torch.device | str = "cpu") -> Attack:
    """The attack in a folder that `gap train` wrote, at the budget of its training or at another one.

    Raises GapError when the folder holds no attack or is incomplete, and for a device that is not available.
    """
    wanted = None if budget is None else as_budget(budget)
    return load_attack_artifact(open_artifact(Path(folder), *ARTIFACT_KINDS), wanted, pick_device(device))


def load_attack_artifact(
    artifact: Artifact, budget: Budget | None = None, device: torch.device | str = "cpu", name: str | None = None
) -> TrainedAttack:
    """The attack of an artifact, on a device. By default its name is that of the folder."""
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
    """The name of an artifact's folder, also where its path is `.`."""
    return artifact.folder.resolve().name


def trained_budget(artifact: Artifact) -> Budget | None:
    """The budget that an attack was trained with; None for an attack without one."""
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
        shapes = ["x".join(map(str, sizes)) for sizes in (perturbation.shape, shape)]
        raise GapError(f"the perturbation in {source} is {shapes[0]}, and its card says {shapes[1]}; {remedy}")
    check_values({"perturbation": torch.zeros(shape)}, {"perturbation": perturbation}, source, remedy)
    return perturbation.float()


def load_generator(artifact: Artifact) -> nn.Module:
    """The network of a per-image generator, not fused, so that it can be trained further."""
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
    """The sizes of a generator's tensors according to its card, without values that are not integers."""
    decoder, pixel_unshuffle = card.generator.get("decoder"), card.generator.get("pixel_unshuffle")
    widths = [width for width in decoder if type(width) is int] if isinstance(decoder, list) else []
    return [*widths, card.channels * pixel_unshuffle * pixel_unshuffle] if type(pixel_unshuffle) is int else widths


def _network(artifact: Artifact, device: torch.device | str) -> nn.Module:
    card, network = artifact.read(AttackCard), load_generator(artifact)
    return fuse_conv_bn(to_channels_last(network.eval().to(device)), card.channels, card.size)
