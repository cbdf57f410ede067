"""Classifiers for use elsewhere: TorchScript, ONNX or a plain state dict, checked against their network."""

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

# How far an exported network's logits may be from ours, as a share of how far ours spread.
TOLERANCE = 1e-3


def export(classifier: Classifier, path: Path) -> str:
    """Write a classifier to a file of the kind that its suffix says, and say in a line what was written.

    `.onnx` and `.ts` (TorchScript) take pixels in [0, 1], N x C x H x W with any N, to logits, normalizer inside, and
    are run beside the classifier on random pixels before they are kept. `.safetensors` and `.pt` hold the state dict of
    the network without the normalizer, by the names its own library knows. Raises GapError for any other suffix, where
    a package for ONNX is missing, and when what was written gives other logits.
    """
    if path.suffix not in FORMATS:
        raise GapError(f"{path.name or path} says no format; end it in {', '.join(FORMATS)}")
    own = copy.deepcopy(classifier).cpu().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    with atomic_write(path) as part:
        return FORMATS[path.suffix](own, part)


def _onnx(classifier: Classifier, path: Path) -> str:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch needs it, and says so less plainly
    except ImportError as error:
        raise GapError(f"ONNX needs {error.name}; pip install 'gap-toolkit[onnx]'") from error
    with _converting(classifier, "ONNX"):
        program: Any = torch.onnx.export(
            classifier,
            (_pixels(classifier, 2),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("images")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _check(classifier, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))
    return "ONNX, pixels in [0, 1] to logits"


def _torchscript(classifier: Classifier, path: Path) -> str:
    with _converting(classifier, "TorchScript"):
        traced: Any = torch.jit.trace(classifier, _pixels(classifier, 2))
    traced.save(str(path))
    with _converting(classifier, "TorchScript"):
        loaded = torch.jit.load(str(path))
    _check(classifier, loaded)
    return "TorchScript, pixels in [0, 1] to logits"


def _safetensors(classifier: Classifier, path: Path) -> str:
    safetensors.torch.save_file(_state(classifier.network), path)
    return _with_normalization(classifier)


def _state_dict(classifier: Classifier, path: Path) -> str:
    torch.save(_state(classifier.network), path)
    return _with_normalization(classifier)


FORMATS: dict[str, Callable[[Classifier, Path], str]] = {
    ".onnx": _onnx,
    ".ts": _torchscript,
    ".safetensors": _safetensors,
    ".pt": _state_dict,
}


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in tensors_of(network).items()}


def _with_normalization(classifier: Classifier) -> str:
    spec = classifier.spec
    if spec.mean is None and spec.std is None:
        return "a state dict"
    return f"a state dict; the network wants its pixels normalized by mean {spec.mean}, std {spec.std}"


@contextmanager
def _converting(classifier: Classifier, form: str) -> Iterator[None]:
    """Turn whatever a conversion stumbles on in a network into a line; what it warns of, the check would show."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # converters and a user's network may raise anything; it becomes one line
        raise GapError(f"torch cannot make {form} of {classifier.name}: {first_line(error)}") from error


def _pixels(classifier: Classifier, images: int) -> Tensor:
    shape = (images, classifier.spec.channels, *classifier.spec.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(images))


@torch.no_grad()
def _check(classifier: Classifier, exported: Callable[[Tensor], Tensor]) -> None:
    """Raise GapError where the exported network gives other logits, for a number of images it was not made with."""
    images = _pixels(classifier, 5)
    ours = classifier(images)
    try:
        theirs = exported(images)
    except Exception as error:  # onnxruntime's errors share no base but Exception; it becomes one line
        raise GapError(
            f"what was exported of {classifier.name} fails on {len(images)} images: {first_line(error)}"
        ) from error
    if ours.shape != theirs.shape or not (ours - theirs).abs().max() <= TOLERANCE * ours.std():
        raise GapError(f"what was exported of {classifier.name} gives other logits than the network itself")
