"""Generative adversarial perturbations: attack a classifier, harden it, draw with it.

The names below are the whole tour; each is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gap.attacks.generator.model import load_attack as load_attack
    from gap.attacks.generator.train import TrainOptions as TrainOptions
    from gap.attacks.generator.train import train_generator as train_generator
    from gap.attacks.registry import create_attack as create_attack
    from gap.classifiers.classifier import Classifier as Classifier
    from gap.classifiers.classifier import load_classifier as load_classifier
    from gap.classifiers.pretrain import PretrainOptions as PretrainOptions
    from gap.classifiers.pretrain import pretrain as pretrain
    from gap.core.errors import GapError as GapError
    from gap.data.registry import load_data as load_data
    from gap.evaluation.evaluate import evaluate as evaluate
    from gap.evaluation.robustness import judge as judge
    from gap.hardening.train import HardenOptions as HardenOptions
    from gap.hardening.train import harden as harden
    from gap.imagery.feature_visualization import Feature as Feature
    from gap.imagery.feature_visualization import visualize as visualize
    from gap.imagery.feed_forward.stylizer import load_stylizer as load_stylizer
    from gap.imagery.feed_forward.train import StylizerOptions as StylizerOptions
    from gap.imagery.feed_forward.train import train_stylizer as train_stylizer
    from gap.imagery.style_transfer import StyleTransferConfig as StyleTransferConfig
    from gap.imagery.style_transfer import stylize as stylize
    from gap.imagery.style_transfer import texture as texture
    from gap.imagery.traversal import traverse as traverse
    from gap.threat import Budget as Budget

HOMES = {
    "Budget": "gap.threat",
    "Classifier": "gap.classifiers.classifier",
    "Feature": "gap.imagery.feature_visualization",
    "GapError": "gap.core.errors",
    "HardenOptions": "gap.hardening.train",
    "StyleTransferConfig": "gap.imagery.style_transfer",
    "PretrainOptions": "gap.classifiers.pretrain",
    "StylizerOptions": "gap.imagery.feed_forward.train",
    "TrainOptions": "gap.attacks.generator.train",
    "evaluate": "gap.evaluation.evaluate",
    "harden": "gap.hardening.train",
    "judge": "gap.evaluation.robustness",
    "load_attack": "gap.attacks.generator.model",
    "load_classifier": "gap.classifiers.classifier",
    "load_data": "gap.data.registry",
    "load_stylizer": "gap.imagery.feed_forward.stylizer",
    "create_attack": "gap.attacks.registry",
    "pretrain": "gap.classifiers.pretrain",
    "stylize": "gap.imagery.style_transfer",
    "texture": "gap.imagery.style_transfer",
    "train_generator": "gap.attacks.generator.train",
    "train_stylizer": "gap.imagery.feed_forward.train",
    "traverse": "gap.imagery.traversal",
    "visualize": "gap.imagery.feature_visualization",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'gap' has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(HOMES)
