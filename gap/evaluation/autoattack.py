"""AutoAttack (Croce and Hein, 2020), as pyautoattack runs it, attack by attack."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier
from gap.classifiers.fuse import fuse_conv_bn
from gap.core.errors import first_line, is_out_of_memory
from gap.core.frozen import frozen
from gap.core.network import NetworkError
from gap.threat import Budget

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
FAST = ("apgd-ce", "apgd-t")
# The loss of targeted APGD means nothing with fewer classes; targeted FAB stands in for it.
LEAST_CLASSES, STAND_IN = 4, "fab-t"
# Of those, the one that never looks at a gradient, and how often it asks the classifier.
BLACK_BOX, QUERIES = "square", 5000
# Where it lowers the accuracy by more than this, AutoAttack doubts its own result.
SQUARE_WARNING_THRESHOLD = 0.002


def supports_targeted(classes: int) -> bool:
    """Whether targeted APGD can aim at one of so many classes."""
    return classes >= LEAST_CLASSES


def fast_attacks(classes: int) -> tuple[str, ...]:
    """FAST; the cross-entropy alone would be blind to a classifier that is merely sure."""
    return FAST if supports_targeted(classes) else ("apgd-ce", STAND_IN)


def supports_square(budget: Budget, height: int, width: int) -> bool:
    """Whether Square can search such pictures: in L2 and L1 it covers them with tiles, which do not fit every size."""
    tile = height // 5
    fits = tile > 0 and all(_covered(side, tile, height) <= side for side in (height, width))
    return budget.norm.per_value or tile == 1 or fits


def _covered(side: int, tile: int, height: int) -> int:
    """How far tiles reach that begin where pyautoattack begins them, which depends on the height alone."""
    return (height - 5 * tile) // 2 + side // tile * tile


@dataclass
class AutoAttackResult:
    """What is left of a classifier: which images (N booleans), the accuracy after each attack, which images each
    attack broke and those before it had not, AutoAttack's flags.

    `doubt` is its flag about black-box search: how often that finds what gradients missed.
    """

    right: Tensor
    accuracy: dict[str, float] = field(default_factory=dict)
    broken: dict[str, Tensor] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)

    @property
    def doubt(self) -> str | None:
        found = self.broken[BLACK_BOX].double().mean().item() if BLACK_BOX in self.broken else 0.0
        return (
            f"{BLACK_BOX} lowers the accuracy by {found:.1%}, more than {SQUARE_WARNING_THRESHOLD:.1%}"
            if found > SQUARE_WARNING_THRESHOLD
            else None
        )


def auto_attack(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    budget: Budget,
    *,
    attacks: tuple[str, ...] = STANDARD,
    queries: int = QUERIES,
    batch_size: int = 250,
    seed: int = 0,
    tell: Callable[[str, float], None] = lambda name, accuracy: None,
) -> AutoAttackResult:
    """Run AutoAttack on images N x C x H x W in [0, 1]; each attack takes the images that those before it left.

    The attacks look at the classifier with its norms folded, and count an image that either of the two misclassifies.
    `accuracy` begins with `clean`. Targeted attacks aim at no more classes than there are; with fewer than four, where
    their loss has no meaning, they are left out, and so is Square where it cannot search. It asks `queries` times.
    `tell` hears the accuracy after each attack. Raises NetworkError where a network does not allow AutoAttack's way to
    ask for gradients.
    """
    with frozen(classifier):
        with torch.no_grad():
            predicted = torch.cat([classifier(part).argmax(dim=1) for part in images.split(batch_size)])
        found = AutoAttackResult(predicted == labels)
        _note(found, "clean", tell)
        lean = fuse_conv_bn(classifier, classifier.spec.channels, classifier.spec.size)
        runner = AutoAttack(
            _ContiguousGradients(lean),
            norm=budget.norm.title,
            eps=budget.epsilon,
            seed=seed,
            device=str(images.device),
            version="standard",
        )
        runner.square.n_queries = queries
        targets = min(9, classifier.spec.classes - 1)
        runner.apgd_targeted.n_target_classes = runner.fab.n_target_classes = targets
        for name in attacks:
            if name == "apgd-t" and not supports_targeted(classifier.spec.classes):
                continue
            if name == BLACK_BOX and not supports_square(budget, images.shape[2], images.shape[3]):
                continue
            before = found.right.clone()
            standing = before.nonzero().squeeze(1)
            if len(standing):
                runner.attacks_to_run = [name]
                with _flags() as flags, _errors_told(classifier.name):
                    adversarial, _ = runner.run_standard_evaluation(
                        images[standing].contiguous(), labels[standing], batch_size=batch_size
                    )
                found.flags += [flag for flag in flags if flag not in found.flags]
                with torch.no_grad():
                    for reader in (classifier, lean):
                        after = torch.cat([reader(part).argmax(dim=1) for part in adversarial.split(batch_size)])
                        found.right[standing] &= after == labels[standing]
            found.broken[name] = before & ~found.right
            _note(found, name, tell)
    return found


class _ContiguousGradients(nn.Module):
    """A classifier whose gradients lie row by row, as pyautoattack takes them to in L2, whatever its own layout."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images = images.clone()  # a hook on what was handed in would stay with it
            images.register_hook(lambda gradient: gradient.contiguous())
        logits: Tensor = self.classifier(images)
        return logits


def _note(found: AutoAttackResult, name: str, tell: Callable[[str, float], None]) -> None:
    found.accuracy[name] = found.right.double().mean().item()
    tell(name, found.accuracy[name])


@contextmanager
def _errors_told(name: str) -> Iterator[None]:
    """Turn an error of torch's, such as a reentrant checkpoint's at `torch.autograd.grad`, into a NetworkError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise NetworkError(
            f"AutoAttack cannot attack {name}: {first_line(error)}; change that in the network, or measure it with"
            " gap evaluate"
        ) from error


class _WarningCollector(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@contextmanager
def _flags() -> Iterator[list[str]]:
    """What AutoAttack warns of: randomised, dynamic, zero gradients, probabilities for logits."""
    heard: list[str] = []
    handler = _WarningCollector(heard)
    logger = logging.getLogger("auto-attack")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
