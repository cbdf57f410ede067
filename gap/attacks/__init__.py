"""Attacks, which turn images into adversarial images inside a budget. Each name is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gap.attacks.base import Attack as Attack
    from gap.attacks.deepfool import DeepFool as DeepFool
    from gap.attacks.generator.model import load_attack as load_attack
    from gap.attacks.gradient import FGSM as FGSM
    from gap.attacks.gradient import PGD as PGD
    from gap.attacks.losses import Criterion as Criterion
    from gap.attacks.noise import Checkerboard as Checkerboard
    from gap.attacks.noise import Noise as Noise
    from gap.attacks.registry import create_attack as create_attack
    from gap.attacks.registry import list_attacks as list_attacks
    from gap.attacks.universal import Universal as Universal

HOMES = {
    "Attack": "gap.attacks.base",
    "Checkerboard": "gap.attacks.noise",
    "Criterion": "gap.attacks.losses",
    "DeepFool": "gap.attacks.deepfool",
    "FGSM": "gap.attacks.gradient",
    "Noise": "gap.attacks.noise",
    "PGD": "gap.attacks.gradient",
    "Universal": "gap.attacks.universal",
    "create_attack": "gap.attacks.registry",
    "list_attacks": "gap.attacks.registry",
    "load_attack": "gap.attacks.generator.model",
}
__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'gap.attacks' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(HOMES)
