"""Trained attacks: what a generator's network makes of images, and the artefact that holds it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from gap.models.generators import make_generator
from torch import Tensor, nn

from gap.artefact import Artefact, open_artefact
from gap.attacks.protocol import Attack
from gap.attacks.universal import Universal
from gap.budget import Budget
from gap.errors import GapError
from gap.frozen import frozen

KINDS = ("thresholded generator", "direct generator", "universal perturbation")


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


def load_attack(folder: Path | str, budget: Budget | None = None) -> Attack:
    """The attack in a folder that `gap train` left, at its own budget or at another.

    Raises GapError when the folder holds no attack or is cut short.
    """
    return attack_from(open_artefact(Path(folder), *KINDS), budget)


def attack_from(artefact: Artefact, budget: Budget | None = None, device: torch.device | str = "cpu") -> Attack:
    """The attack that an artefact holds, on a device; named after its folder."""
    card, tensors, name = artefact.card, artefact.tensors(), artefact.folder.name
    own = Budget.parse(card["budget"]) if card.get("budget") else None
    if artefact.kind == "universal perturbation":
        if own is None:
            raise GapError(f"{artefact.folder} does not say its budget")
        universal = Universal(tensors["perturbation"], own, name)
        return universal if budget in (None, own) else universal.at(budget)
    network = make_generator(card["channels"], **card["generator"] | {"weights": None})
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise GapError(f"the tensors in {artefact.folder} do not fit its card: {str(error).splitlines()[0]}") from error
    network.eval().to(device).to(memory_format=torch.channels_last)
    if artefact.kind == "direct generator":
        return Direct(network, budget, name)
    if own is None:
        raise GapError(f"{artefact.folder} does not say its budget")
    return Thresholded(network, budget or own, name)
