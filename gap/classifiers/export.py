"""Export of classifiers as TorchScript, ONNX or a state dict, with a check of the exported network."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from gap.classifiers.classifier import Classifier
from gap.core.errors import GapError, first_line
from gap.core.files import atomic_write
from gap.core.safe_load import tensors_of

# The largest error of an exported network's logits, relative to the standard deviation of the logits.
TOLERANCE = 1e-3


def export(classifier: Classifier, path: Path) -> str:
    """Write a classifier to a file in the format of its suffix. Returns a line that describes the content.

    `.onnx` and `.ts` (TorchScript) map pixels in [0, 1], N x C x H x W with any N, to logits, with the normalizer
    included. Before the file is renamed to `path`, its logits on random pixels are compared with those of the
    classifier. `.safetensors` and `.pt` contain the state dict of the network without the normalizer, with the
    keys of its own library. Raises GapError for any other suffix, where a package for ONNX is missing, and where the
    exported network gives other logits.
    """
    if path.suffix not in FORMATS:
        raise GapError(f"{path.name or path} says no format; end it in {', '.join(FORMATS)}")
    own = copy.deepcopy(classifier).cpu().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    with atomic_write(path) as part:
        return FORMATS[path.suffix](own, part)


def _onnx(classifier: Classifier, path: Path) -> str:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch needs it, and its own error is less clear
    except ImportError as error:
        raise GapError(f"ONNX needs {error.name}; pip install 'gap-toolkit[onnx]'") from error
    with _conversion_errors(classifier, "ONNX"):
        program: Any = torch.onnx.export(
            classifier,
            (_random_images(classifier, 2),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("images")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _check_logits(classifier, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))
    return "ONNX, pixels in [0, 1] to logits"


def _torchscript(classifier: Classifier, path: Path) -> str:
    with _conversion_errors(classifier, "TorchScript"):
        traced: Any = torch.jit.trace(classifier, _random_images(classifier, 2))
    traced.save(str(path))
    with _conversion_errors(classifier, "TorchScript"):
        loaded = torch.jit.load(str(path))
    _check_logits(classifier, loaded)
    return "TorchScript, pixels in [0, 1] to logits"


def _safetensors(classifier: Classifier, path: Path) -> str:
    safetensors.torch.save_file(_state_tensors(classifier.network), path)
    return _describe_state_dict(classifier)


def _state_dict(classifier: Classifier, path: Path) -> str:
    torch.save(_state_tensors(classifier.network), path)
    return _describe_state_dict(classifier)


FORMATS: dict[str, Callable[[Classifier, Path], str]] = {
    ".onnx": _onnx,
    ".ts": _torchscript,
    ".safetensors": _safetensors,
    ".pt": _state_dict,
}


def _state_tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in tensors_of(network).items()}


def _describe_state_dict(classifier: Classifier) -> str:
    spec = classifier.spec
    if spec.mean is None and spec.std is None:
        return "a state dict"
    return f"a state dict; the network wants its pixels normalized by mean {spec.mean}, std {spec.std}"


@contextmanager
def _conversion_errors(classifier: Classifier, format_name: str) -> Iterator[None]:
    """Turn the errors of a conversion into a GapError. Warnings are ignored: the check of the logits replaces them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # converters and a user's network may raise anything; it becomes one line
        raise GapError(f"torch cannot make {format_name} of {classifier.name}: {first_line(error)}") from error


def _random_images(classifier: Classifier, images: int) -> Tensor:
    shape = (images, classifier.spec.channels, *classifier.spec.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(images))


@torch.no_grad()
def _check_logits(classifier: Classifier, exported: Callable[[Tensor], Tensor]) -> None:
    """Raise GapError where the exported network gives other logits, for another batch size than in its export."""
    images = _random_images(classifier, 5)
    expected = classifier(images)
    try:
        actual = exported(images)
    except Exception as error:  # onnxruntime's errors share no base but Exception; it becomes one line
        raise GapError(
            f"what was exported of {classifier.name} fails on {len(images)} images: {first_line(error)}"
        ) from error
    if expected.shape != actual.shape or not (expected - actual).abs().max() <= TOLERANCE * expected.std():
        raise GapError(f"what was exported of {classifier.name} gives other logits than the network itself")
