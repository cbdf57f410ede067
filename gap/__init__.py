"""Generative adversarial perturbations: attack a classifier, harden it, draw with it.

The names below are the main functions and classes; each is imported when it is first used. The attacks are in
`gap.attacks`.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gap import attacks as attacks
    from gap.attacks.generator.model import load_attack as load_attack
    from gap.attacks.generator.train import train_generator as train_generator
    from gap.attacks.registry import create_attack as create_attack
    from gap.classifiers.adapters import as_classifier as as_classifier
    from gap.classifiers.classifier import Classifier as Classifier
    from gap.classifiers.classifier import load_classifier as load_classifier
    from gap.classifiers.pretrain import pretrain as pretrain
    from gap.core.errors import GapError as GapError
    from gap.core.errors import GapWarning as GapWarning
    from gap.data.registry import load_data as load_data
    from gap.evaluation.benchmark import evaluate as evaluate
    from gap.evaluation.judge import judge as judge
    from gap.hardening.train import harden as harden
    from gap.imagery.drawings import invert as invert
    from gap.imagery.drawings import stylize as stylize
    from gap.imagery.drawings import texture as texture
    from gap.imagery.drawings import traverse as traverse
    from gap.imagery.drawings import visualize as visualize
    from gap.imagery.feature_visualization import Feature as Feature
    from gap.imagery.feed_forward.stylizer import load_stylizer as load_stylizer
    from gap.imagery.feed_forward.train import train_stylizer as train_stylizer
    from gap.threat import Budget as Budget

HOMES = {
    "Budget": "gap.threat",
    "Classifier": "gap.classifiers.classifier",
    "Feature": "gap.imagery.feature_visualization",
    "GapError": "gap.core.errors",
    "GapWarning": "gap.core.errors",
    "as_classifier": "gap.classifiers.adapters",
    "create_attack": "gap.attacks.registry",
    "evaluate": "gap.evaluation.benchmark",
    "harden": "gap.hardening.train",
    "judge": "gap.evaluation.judge",
    "load_attack": "gap.attacks.generator.model",
    "load_classifier": "gap.classifiers.classifier",
    "load_data": "gap.data.registry",
    "load_stylizer": "gap.imagery.feed_forward.stylizer",
    "pretrain": "gap.classifiers.pretrain",
    "invert": "gap.imagery.drawings",
    "stylize": "gap.imagery.drawings",
    "texture": "gap.imagery.drawings",
    "train_generator": "gap.attacks.generator.train",
    "train_stylizer": "gap.imagery.feed_forward.train",
    "traverse": "gap.imagery.drawings",
    "visualize": "gap.imagery.drawings",
}
__all__ = ["attacks", *HOMES]

try:
    __version__ = version("gap-toolkit")
except PackageNotFoundError:  # gap runs from its source without being installed
    __version__ = "source"


def __getattr__(name: str) -> Any:
    if name == "attacks":
        return import_module("gap.attacks")
    if name not in HOMES:
        raise AttributeError(f"module 'gap' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
