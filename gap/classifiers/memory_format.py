"""The memory format of a network: channels last, which is faster for convolutions, where tests show that it works."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError, GapWarning, first_line
from gap.core.frozen import frozen
from gap.core.gradients import input_gradient
from gap.core.network import NetworkError, device_of, has_unsafe_convolution, output_types

# The largest rounding difference of outputs and gradients between two memory formats, relative to their L2 norm. The
# one of gradients is larger, because they are not continuous where a ReLU switches.
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 0.05

# A function from images N x C x H x W to outputs of a network, which must be the same in both memory formats.
Outputs = Callable[[Tensor], Sequence[Tensor]]


def use_channels_last(classifier: Classifier) -> None:
    """Put a classifier into channels-last format where that changes neither its logits nor their gradients.

    This is tested with one image and with two. A classifier that fails the test, for example because its forward uses
    `view`, stays in contiguous format.
    """
    batches = [random_images(classifier, count) for count in (1, 2)]
    use_channels_last_for(classifier, lambda images: [classifier(images)], batches)


def use_channels_last_for(classifier: Classifier, outputs: Outputs, batches: Sequence[Tensor]) -> None:
    """As `use_channels_last`, for any `outputs` of a classifier, compared on these batches of images."""
    if has_unsafe_convolution(classifier):
        return
    with frozen(classifier):
        try:
            expected = _results(outputs, batches)
        except GapError:  # the next caller of the network reports the error
            return
        classifier.use_memory_format(torch.channels_last)
        try:
            results = _results(outputs, batches)
        except GapError:
            results = []
        if len(results) != len(expected) or not all(map(_is_same, results, expected)):
            classifier.use_memory_format(torch.contiguous_format)


def check_training(classifier: Classifier) -> bool:
    """Try one forward and backward pass of training, and put the classifier into contiguous format if that is needed.

    Returns whether all weights got a gradient, which training in several processes needs to know. Weights, buffers,
    mode and random state do not change. Warns where the output in training mode is an object that contains the
    logits. Raises GapError where the classifier cannot be trained.
    """
    if not any(weight.requires_grad for weight in classifier.parameters()):
        raise GapError(f"{classifier.name} has no weights that can be trained")
    try:
        return _train_once(classifier)
    except GapError:
        if classifier.memory_format == torch.contiguous_format:
            raise
        classifier.use_memory_format(torch.contiguous_format)
        return _train_once(classifier)


def random_images(classifier: Classifier, count: int) -> Tensor:
    """`count` images of random pixels in the classifier's input size, on its device, from a fixed seed.

    Their memory format is that of images of a data set.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, classifier.spec.channels, *classifier.spec.size, generator=generator)
    return images.to(device_of(classifier)).clone(memory_format=torch.channels_last)


def _results(outputs: Outputs, batches: Sequence[Tensor]) -> list[tuple[Tensor, float]]:
    """The outputs for each batch and their gradient with respect to the images, if any, with their tolerances.

    The random state is the same at each call.
    """
    results: list[tuple[Tensor, float]] = []
    for batch in batches:
        images = batch.detach().clone().requires_grad_()
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            values = [output.float() for output in outputs(images)]
            differentiable = [value.square().sum() for value in values if value.requires_grad]
            results += [(value.detach(), OUTPUT_TOLERANCE) for value in values]
            if differentiable:
                gradient = input_gradient(torch.stack(differentiable).sum(), images)
                results.append((gradient, GRADIENT_TOLERANCE))
    return results


def _is_same(result: tuple[Tensor, float], expected: tuple[Tensor, float]) -> bool:
    """Whether two results are equal within the tolerance."""
    (value, _), (reference, tolerance) = result, expected
    return value.shape == reference.shape and bool((value - reference).norm() <= tolerance * reference.norm())


def _train_once(classifier: Classifier) -> bool:
    """Run one pass of training; return whether all weights got a gradient."""
    with _restored(classifier), output_types(classifier.network) as types, torch.enable_grad():
        classifier.train()
        logits = classifier(random_images(classifier, 2))
        try:
            logits.float().logsumexp(dim=1).sum().backward()
        except Exception as error:  # a foreign backward may raise anything
            raise NetworkError(
                f"{classifier.name} cannot be trained: {type(error).__name__}: {first_line(error)}"
            ) from error
        weights = [(name, weight) for name, weight in classifier.network.named_parameters() if weight.requires_grad]
        unused = [name for name, weight in weights if weight.grad is None]
    if unused:
        warnings.warn(
            f"{classifier.name}: {len(unused)} of {len(weights)} weights get no gradient and do not learn, {unused[0]}"
            " first; auxiliary heads and reentrant checkpoints do that",
            GapWarning,
            stacklevel=3,
        )
    if types and not issubclass(types[0], Tensor):
        warnings.warn(
            f"{classifier.name} returns a {types[0].__name__} in training mode; its logits are taken",
            GapWarning,
            stacklevel=3,
        )
    return not unused


@contextmanager
def _restored(classifier: nn.Module) -> Iterator[None]:
    """Restore buffers, gradients, mode and random state after the block."""
    modes = [(module, module.training) for module in classifier.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in classifier.buffers()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for weight in classifier.parameters():
            weight.grad = None
