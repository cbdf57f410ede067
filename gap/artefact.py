"""Artefacts: the folder that a command leaves, and the only thing that the next command needs.

card.yaml           what it is, how it was made, on what, the figures, the versions
model.safetensors   its tensors
config.yaml         the options it was made with
metrics.jsonl       figures along the way
checkpoint.pt       only while the work is unfinished: where to resume

A folder of tables or pictures has no card: an empty file, .gap-toolkit, says that gap left it.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import yaml
from pydantic import BaseModel, ValidationError
from torch import Tensor

from gap.errors import GapError
from gap.files import leftovers, whole, write_text

CARD, TENSORS, CONFIG, CHECKPOINT, METRICS = (
    "card.yaml",
    "model.safetensors",
    "config.yaml",
    "checkpoint.pt",
    "metrics.jsonl",
)
PERTURBATION = "perturbation.png"
MARK = ".gap-toolkit"
# What a training run leaves. The config goes last: until then it says whose the rest is.
OURS = (CARD, TENSORS, CHECKPOINT, METRICS, PERTURBATION, CONFIG)
EVENTS = "tensorboard/events.out.tfevents.*"
# Keys that only a card, and only a config, of gap's has together: one of a training on a classifier, or of a stylizer.
IN_CARD = {"kind", "versions"}
IN_CONFIG = {"classifier", "data", "labels", "epochs", "precision", "deterministic"}
IN_STYLIZER = {"backbone", "form", "content", "style", "epochs", "precision", "deterministic"}

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Artefact:
    """A finished folder and its card."""

    folder: Path
    card: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.card["kind"]

    def read(self, model: type[T]) -> T:
        """What the card says, checked; raises GapError naming the first key that is missing or garbled."""
        try:
            return model.model_validate(self.card)
        except ValidationError as error:
            first = error.errors()[0]
            key, reason = ".".join(map(str, first["loc"])), first["msg"][:1].lower() + first["msg"][1:]
            raise GapError(f"{self.folder / CARD} is damaged at {key}: {reason}; make {self.folder} again") from error

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
        if _holds(folder / CONFIG, IN_CONFIG, IN_STYLIZER):
            raise GapError(f"{folder} is unfinished; go on with --resume --out {folder}")
        raise GapError(f"{folder} is not a folder that gap left (it has no {CARD})")
    try:
        card = yaml.safe_load((folder / CARD).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GapError(f"{folder / CARD} is not readable YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(card, dict) or not isinstance(card.get("kind"), str):
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


def note_in_card(folder: Path, key: str, value: Any) -> None:
    """Add what was found out about an artefact to its card, in place of what an earlier look found."""
    card = open_artefact(folder).card | {key: value}
    write_text(folder / CARD, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110))


def claim(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Make sure that `folder` can be written to; raises GapError when it holds something that must not be lost."""
    claim_output(folder)
    if _held(folder) and not (resume or overwrite):
        state = "a finished piece of work; use" if is_artefact(folder) else "unfinished work; use --resume to go on,"
        raise GapError(f"{folder} holds {state} --overwrite, or another folder")


def claim_output(folder: Path) -> None:
    """Make a folder that may be written to; raises GapError when it holds anything and gap did not leave it."""
    claim_folder(folder)
    if _held(folder) and not is_ours(folder):
        raise GapError(f"{folder} exists and is not a folder that gap left; name another")


def _held(folder: Path) -> set[Path]:
    """What a folder holds besides the half-written files of a killed run."""
    return set(folder.iterdir()) - set(leftovers(folder, (MARK, *OURS)))


def mark(folder: Path) -> None:
    """Say in a folder without a card that gap left it, before anything else is written there."""
    write_text(folder / MARK, "")


def is_ours(folder: Path) -> bool:
    """Whether gap left this folder: by its mark, or by what its card or its config says, never by a file's name."""
    told = _holds(folder / CARD, IN_CARD) or _holds(folder / CONFIG, IN_CONFIG, IN_STYLIZER)
    return told or (folder / MARK).is_file()


def clear(folder: Path) -> None:
    """Take out of a folder what a run leaves in it, and nothing else."""
    for path in [*folder.glob(EVENTS), *(folder / name for name in OURS)]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (folder / "tensorboard").rmdir()  # only where it is empty


def claim_folder(folder: Path) -> None:
    """Make a folder that files are added to; raises GapError when it cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise GapError(f"{folder} is a file; name a folder for the output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GapError(f"cannot write to {folder}: {error.strerror}") from error


def _holds(path: Path, *sets: set[str]) -> bool:
    """Whether a file is a YAML mapping with all the keys of one of these sets."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(content, dict) and any(keys <= content.keys() for keys in sets)


def versions() -> dict[str, str]:
    """The versions that figures depend on; gap's own is "source" where a clone runs without being installed."""
    found = {name: version(name) for name in ("torch", "torchvision", "segmentation-models-pytorch")}
    try:
        return {"gap-toolkit": version("gap-toolkit"), **found}
    except PackageNotFoundError:
        return {"gap-toolkit": "source", **found}
