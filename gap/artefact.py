"""Artefacts: the folder that a command leaves, and the only thing that the next command needs.

card.yaml           what it is, how it was made, on what, the figures, the versions
model.safetensors   its tensors
config.yaml         the options it was made with
metrics.jsonl       figures along the way
checkpoint.pt       only while the work is unfinished: where to resume
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import yaml
from torch import Tensor

from gap.errors import GapError
from gap.files import whole, write_text

CARD, TENSORS, CONFIG, CHECKPOINT, METRICS = (
    "card.yaml",
    "model.safetensors",
    "config.yaml",
    "checkpoint.pt",
    "metrics.jsonl",
)
PERTURBATION = "perturbation.png"
OURS = (CARD, TENSORS, CONFIG, CHECKPOINT, METRICS, PERTURBATION)


@dataclass(frozen=True)
class Artefact:
    """A finished folder and its card."""

    folder: Path
    card: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.card["kind"]

    def tensors(self) -> dict[str, Tensor]:
        """The saved tensors by name; raises GapError when the file is missing or cut short."""
        path = self.folder / TENSORS
        try:
            return safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise GapError(f"{path} is missing or cut short ({error}); make {self.folder} again") from error


def is_artefact(folder: Path) -> bool:
    """Whether a finished artefact stands there."""
    return (folder / CARD).is_file()


def open_artefact(folder: Path, *kinds: str) -> Artefact:
    """The artefact of one of these kinds in a folder; raises GapError saying what is there instead."""
    if not is_artefact(folder):
        if (folder / CONFIG).is_file():
            raise GapError(f"{folder} is unfinished; go on with --resume --out {folder}")
        raise GapError(f"{folder} is not a folder that gap left (it has no {CARD})")
    try:
        card = yaml.safe_load((folder / CARD).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GapError(f"{folder / CARD} is not readable YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(card, dict) or "kind" not in card:
        raise GapError(f"{folder / CARD} is not a card: it does not say what kind of artefact this is")
    if kinds and card["kind"] not in kinds:
        raise GapError(f"{folder} holds a {card['kind']}, where a {' or '.join(kinds)} was expected")
    return Artefact(folder, card)


def save_artefact(folder: Path, kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Artefact:
    """Write tensors and card, the card last: a folder with a card is whole. The checkpoint goes."""
    card = {"kind": kind, **facts, "versions": versions()}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole(folder / TENSORS) as part:
        safetensors.torch.save_file(plain, part)
    write_text(folder / CARD, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Artefact(folder, card)


def claim(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Make sure that `folder` can be written to; raises GapError when it holds something that must not be lost."""
    claim_folder(folder)
    there = {path.name for path in folder.iterdir()}
    ours = there & set(OURS)
    if there and not ours:
        raise GapError(f"{folder} exists and is not a folder that gap left; name another")
    if ours and not (resume or overwrite):
        state = "a finished" if CARD in there else "an unfinished"
        raise GapError(f"{folder} holds {state} piece of work; use --resume to go on, --overwrite, or another folder")


def clear(folder: Path) -> None:
    """Take out of a folder what a run leaves in it."""
    for name in OURS:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def claim_folder(folder: Path) -> None:
    """Make a folder that files are added to; raises GapError when it cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise GapError(f"{folder} is a file; name a folder for the output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GapError(f"cannot write to {folder}: {error.strerror}") from error


def versions() -> dict[str, str]:
    """The versions that figures depend on; gap's own is "source" where a clone runs without being installed."""
    found = {name: version(name) for name in ("torch", "torchvision", "segmentation-models-pytorch")}
    try:
        return {"gap-toolkit": version("gap-toolkit"), **found}
    except PackageNotFoundError:
        return {"gap-toolkit": "source", **found}
