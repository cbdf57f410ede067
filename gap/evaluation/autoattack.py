"""AutoAttack (Croce and Hein, 2020), by pyautoattack, one attack at a time."""

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
# The loss of targeted APGD needs this many classes. With fewer, targeted FAB replaces it.
MIN_TARGETED_CLASSES, TARGETED_FALLBACK = 4, "fab-t"
# The attack of AutoAttack that uses no gradients, and its number of queries.
BLACK_BOX, QUERIES = "square", 5000
# Where Square lowers the accuracy by more than this, AutoAttack warns that gradients may be masked.
SQUARE_WARNING_THRESHOLD = 0.002


def supports_targeted(classes: int) -> bool:
    """Whether targeted APGD works with this number of classes."""
    return classes >= MIN_TARGETED_CLASSES


def fast_attacks(classes: int) -> tuple[str, ...]:
    """The attacks of the fast suite. One is targeted: cross-entropy alone fails on overconfident classifiers."""
    return FAST if supports_targeted(classes) else ("apgd-ce", TARGETED_FALLBACK)


def supports_square(budget: Budget, height: int, width: int) -> bool:
    """Whether Square works with images of this size: in L2 and L1 it covers them with tiles."""
    tile = height // 5
    fits = tile > 0 and all(_covered_side(side, tile, height) <= side for side in (height, width))
    return budget.norm.per_value or tile == 1 or fits


def _covered_side(side: int, tile: int, height: int) -> int:
    """The part of a side that pyautoattack's tiles cover. Their start depends on the height alone."""
    return (height - 5 * tile) // 2 + side // tile * tile


@dataclass
class AutoAttackResult:
    """The robustness of a classifier to AutoAttack.

    Attributes:
        right: which images are classified correctly under all attacks so far, N booleans.
        accuracy: the accuracy after each attack, by its name.
        broken: for each attack, which images it fooled of those that the earlier attacks did not fool.
        flags: the warnings of AutoAttack.
    """

    right: Tensor
    accuracy: dict[str, float] = field(default_factory=dict)
    broken: dict[str, Tensor] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)

    @property
    def doubt(self) -> str | None:
        """AutoAttack's warning that black-box search fools images which gradients did not; None without it."""
        fraction = self.broken[BLACK_BOX].double().mean().item() if BLACK_BOX in self.broken else 0.0
        return (
            f"{BLACK_BOX} lowers the accuracy by {fraction:.1%}, more than {SQUARE_WARNING_THRESHOLD:.1%}"
            if fraction > SQUARE_WARNING_THRESHOLD
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
    """Run AutoAttack on images N x C x H x W in [0, 1]; each attack gets the images that no earlier attack fooled.

    The attacks run on a copy of the classifier with fused norms. An image counts as fooled if the classifier or the
    copy misclassifies it. The first entry of `accuracy` is `clean`. Targeted APGD is left out with fewer than four
    classes, and Square where it does not support the image size. Square makes `queries` queries. `tell` is called with
    the name of each attack and the accuracy after it. Raises NetworkError where a network does not support the gradient
    computation of AutoAttack.
    """
    with frozen(classifier):
        with torch.no_grad():
            predicted = torch.cat([classifier(part).argmax(dim=1) for part in images.split(batch_size)])
        result = AutoAttackResult(predicted == labels)
        _record_accuracy(result, "clean", tell)
        fused = fuse_conv_bn(classifier, classifier.spec.channels, classifier.spec.size)
        runner = AutoAttack(
            _ContiguousGradients(fused),
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
            before = result.right.clone()
            active = before.nonzero().squeeze(1)
            if len(active):
                runner.attacks_to_run = [name]
                with _collect_flags() as flags, _reraise_torch_errors(classifier.name):
                    adversarial, _ = runner.run_standard_evaluation(
                        images[active].contiguous(), labels[active], batch_size=batch_size
                    )
                result.flags += [flag for flag in flags if flag not in result.flags]
                with torch.no_grad():
                    for network in (classifier, fused):
                        predicted_after = torch.cat(
                            [network(part).argmax(dim=1) for part in adversarial.split(batch_size)]
                        )
                        result.right[active] &= predicted_after == labels[active]
            result.broken[name] = before & ~result.right
            _record_accuracy(result, name, tell)
    return result


class _ContiguousGradients(nn.Module):
    """A classifier with contiguous gradients, which pyautoattack expects in L2."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images = images.clone()  # a hook on the caller's tensor would stay there
            images.register_hook(lambda gradient: gradient.contiguous())
        logits: Tensor = self.classifier(images)
        return logits


def _record_accuracy(result: AutoAttackResult, name: str, callback: Callable[[str, float], None]) -> None:
    result.accuracy[name] = result.right.double().mean().item()
    callback(name, result.accuracy[name])


@contextmanager
def _reraise_torch_errors(name: str) -> Iterator[None]:
    """Turn errors of torch into a NetworkError, such as that of a reentrant checkpoint in `torch.autograd.grad`."""
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
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _collect_flags() -> Iterator[list[str]]:
    """Collect the warnings of AutoAttack: randomized or dynamic classifiers, zero gradients, probabilities."""
    messages: list[str] = []
    handler = _WarningCollector(messages)
    logger = logging.getLogger("auto-attack")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
