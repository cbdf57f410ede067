"""Generative adversarial perturbations: attack a classifier, harden it, draw with it.

The names below are the whole tour; each is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gap.attacks.named import named_attack as named_attack
    from gap.attacks.train import TrainOptions as TrainOptions
    from gap.attacks.train import train_generator as train_generator
    from gap.attacks.trained import load_attack as load_attack
    from gap.budget import Budget as Budget
    from gap.classifier import Classifier as Classifier
    from gap.classifier import load_classifier as load_classifier
    from gap.data.named import load_data as load_data
    from gap.errors import GapError as GapError
    from gap.evaluation.evaluate import evaluate as evaluate
    from gap.evaluation.judge import judge as judge
    from gap.hardening.harden import HardenOptions as HardenOptions
    from gap.hardening.harden import harden as harden
    from gap.imagery.stylize import Manner as Manner
    from gap.imagery.stylize import stylize as stylize
    from gap.imagery.stylize import texture as texture
    from gap.imagery.stylizer import load_stylizer as load_stylizer
    from gap.imagery.train_stylizer import StylizerOptions as StylizerOptions
    from gap.imagery.train_stylizer import train_stylizer as train_stylizer
    from gap.imagery.traverse import traverse as traverse
    from gap.imagery.visualize import Feature as Feature
    from gap.imagery.visualize import visualize as visualize
    from gap.training.standard import PretrainOptions as PretrainOptions
    from gap.training.standard import pretrain as pretrain

HOMES = {
    "Budget": "gap.budget",
    "Classifier": "gap.classifier",
    "Feature": "gap.imagery.visualize",
    "GapError": "gap.errors",
    "HardenOptions": "gap.hardening.harden",
    "Manner": "gap.imagery.stylize",
    "PretrainOptions": "gap.training.standard",
    "StylizerOptions": "gap.imagery.train_stylizer",
    "TrainOptions": "gap.attacks.train",
    "evaluate": "gap.evaluation.evaluate",
    "harden": "gap.hardening.harden",
    "judge": "gap.evaluation.judge",
    "load_attack": "gap.attacks.trained",
    "load_classifier": "gap.classifier",
    "load_data": "gap.data.named",
    "load_stylizer": "gap.imagery.stylizer",
    "named_attack": "gap.attacks.named",
    "pretrain": "gap.training.standard",
    "stylize": "gap.imagery.stylize",
    "texture": "gap.imagery.stylize",
    "train_generator": "gap.attacks.train",
    "train_stylizer": "gap.imagery.train_stylizer",
    "traverse": "gap.imagery.traverse",
    "visualize": "gap.imagery.visualize",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'gap' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(HOMES)
