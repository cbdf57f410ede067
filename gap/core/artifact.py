"""Artifacts: the folder that a command leaves, and the only thing that the next command needs.

card.yaml           what it is, how it was made, on what, the metrics, the versions
model.safetensors   its tensors
config.yaml         the options it was made with
metrics.jsonl       metrics along the way
checkpoint.pt       only while the work is unfinished: where to resume

A folder of tables or pictures has no card: an empty file, .gap-toolkit, says that gap left it.

Torch is imported by the functions that need it: what a folder is can be said without.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import safetensors
import yaml
from pydantic import BaseModel, Field, ValidationError

from gap.core.card_formats import FORMAT, upgraded
from gap.core.errors import GapError, first_line
from gap.core.files import atomic_write, stale_temp_files, write_text
from gap.core.options import load_yaml_file
from gap.core.paths import exists, is_file, is_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

CARD, TENSORS, CONFIG, CHECKPOINT, METRICS = (
    "card.yaml",
    "model.safetensors",
    "config.yaml",
    "checkpoint.pt",
    "metrics.jsonl",
)
PERTURBATION = "perturbation.png"
MARKER_FILE = ".gap-toolkit"
# What a training run leaves. The config goes last: until then it says whose the rest is.
RUN_FILES = (CARD, TENSORS, CHECKPOINT, METRICS, PERTURBATION, CONFIG)
EVENT_FILES = "tensorboard/events.out.tfevents.*"
# Keys that only a card, and only a config, of gap's has together: one of a training on a classifier, or of a stylizer.
CARD_KEYS = {"kind", "versions"}
CONFIG_KEYS = {"classifier", "data", "labels", "epochs", "precision", "deterministic"}
STYLIZER_KEYS = {"backbone", "type", "content", "style", "epochs", "precision", "deterministic"}

# Numbers in a card, as large as anything that works: a damaged one could ask for more memory than there is.
Side = Annotated[int, Field(gt=0, le=2**14)]
Count = Annotated[int, Field(gt=0, le=2**24)]

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its card."""

    folder: Path
    card: dict[str, Any]
    loaded: "Mapping[str, Tensor] | None" = field(default=None, repr=False, compare=False)

    def in_memory(self) -> "Artifact":
        """The same with its tensors in memory, and its kind for a folder: it outlives the one that it was read from."""
        return replace(self, folder=Path(self.kind), loaded=self.tensors())

    def save(self, folder: Path | str) -> "Artifact":
        """Write it into a folder. Raises GapError where that holds anything that gap did not leave."""
        folder = Path(folder)
        prepare_run_dir(folder, overwrite=True)
        content = {key: value for key, value in self.card.items() if key not in ("kind", "format", "versions")}
        return save_artifact(folder, self.kind, self.tensors(), content)

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

    def tensors(self) -> "dict[str, Tensor]":
        """The saved tensors by name; raises GapError when the file is missing or cut short."""
        if self.loaded is not None:
            return dict(self.loaded)
        from safetensors.torch import load_file

        with self._reading() as path:
            return load_file(path)

    def check_sizes(self, key: str, sizes: Iterable[int]) -> None:
        """Raise GapError where the card says a size, at a key, that no side of any saved tensor has.

        A network of such a size could ask for more memory than there is.
        """
        if self.loaded is not None:  # it was checked when it was read
            return
        with self._reading() as path, safetensors.safe_open(path, "pt") as file:
            sides = {side for name in file.keys() for side in file.get_slice(name).get_shape()}  # noqa: SIM118
        if strange := [size for size in sizes if size not in sides]:
            raise GapError(
                f"{self.folder / CARD} is damaged at {key}: nothing in {path.name} has the size {strange[0]};"
                f" make {self.folder} again"
            )

    @contextmanager
    def _reading(self) -> Iterator[Path]:
        """Gives the file of the tensors; turns what reading it raises into a line."""
        from gap.core.safe_load import READ_ERRORS

        path = self.folder / TENSORS
        try:
            yield path
        except MemoryError as error:
            raise GapError(f"{path} asks for more memory than there is") from error
        except READ_ERRORS as error:
            why = first_line(error)
            raise GapError(f"{path} is missing or cut short ({why}); make {self.folder} again") from error

    def fit(self, network: "nn.Module") -> None:
        """Load the saved tensors into a network; raises GapError where they do not fit, or cannot be weights."""
        from gap.core.safe_load import load_state_dict_checked

        load_state_dict_checked(network, self.tensors(), self.folder / TENSORS, f"make {self.folder} again")


def is_artifact(folder: Path) -> bool:
    """Whether a finished artifact stands there."""
    return is_file(folder / CARD)


def open_artifact(folder: Path, *kinds: str) -> Artifact:
    """The artifact of one of these kinds in a folder; raises GapError saying what is there instead."""
    if not is_artifact(folder):
        if _has_keys(folder / CONFIG, CONFIG_KEYS, STYLIZER_KEYS):
            raise GapError(f"{folder} is unfinished; go on with `resume` `out` {folder}")
        raise GapError(f"{folder} is not a folder that gap left (it has no {CARD})")
    card = load_yaml_file(folder / CARD)
    if not isinstance(card, dict) or not isinstance(card.get("kind"), str):
        raise GapError(f"{folder / CARD} is not a card: it does not say what kind of artifact this is")
    card = upgraded(card)
    if kinds and card["kind"] not in kinds:
        raise GapError(f"{folder} holds a {card['kind']}, where a {' or '.join(kinds)} was expected")
    return Artifact(folder, card)


def save_artifact(folder: Path, kind: str, tensors: "Mapping[str, Tensor]", content: Mapping[str, Any]) -> Artifact:
    """Write tensors and card, the card last: a folder with a card is whole. The checkpoint goes."""
    from safetensors.torch import save_file
    from torch import Tensor

    card = {"kind": kind, "format": FORMAT, **content, "versions": versions()}
    plain = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)  # modules may keep other things in a state dict besides
    }
    with atomic_write(folder / TENSORS) as part:
        save_file(plain, part)
    write_text(folder / CARD, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Artifact(folder, card)


def update_card(folder: Path, key: str, value: Any) -> None:
    """Add what was found out about an artifact to its card, in place of what an earlier look found."""
    card = open_artifact(folder).card | {key: value}
    write_text(folder / CARD, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110))


def prepare_run_dir(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Make sure that `folder` can be written to; raises GapError when it holds something that must not be lost."""
    prepare_output_dir(folder)
    if _contents(folder) and not (resume or overwrite):
        state = "a finished piece of work; use" if is_artifact(folder) else "unfinished work; use `resume` to go on,"
        raise GapError(f"{folder} holds {state} `overwrite`, or another folder")


def prepare_output_dir(folder: Path) -> None:
    """Make a folder that may be written to; raises GapError when it holds anything and gap did not leave it."""
    make_dir(folder)
    if _contents(folder) and not was_written_by_gap(folder):
        raise GapError(f"{folder} exists and is not a folder that gap left; name another")


def _contents(folder: Path) -> set[Path]:
    """What a folder holds besides the half-written files of a killed run."""
    return set(folder.iterdir()) - set(stale_temp_files(folder, (MARKER_FILE, *RUN_FILES)))


def write_marker(folder: Path) -> None:
    """Say in a folder without a card that gap left it, before anything else is written there."""
    write_text(folder / MARKER_FILE, "")


def was_written_by_gap(folder: Path) -> bool:
    """Whether gap left this folder: by its mark, or by what its card or its config says, never by a file's name."""
    recognized = _has_keys(folder / CARD, CARD_KEYS) or _has_keys(folder / CONFIG, CONFIG_KEYS, STYLIZER_KEYS)
    return recognized or is_file(folder / MARKER_FILE)


def remove_run_files(folder: Path) -> None:
    """Take out of a folder what a run leaves in it, and nothing else."""
    for path in [*folder.glob(EVENT_FILES), *(folder / name for name in RUN_FILES)]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (folder / "tensorboard").rmdir()  # only where it is empty


def make_dir(folder: Path) -> None:
    """Make a folder that files are added to; raises GapError when it cannot be one."""
    if exists(folder) and not is_folder(folder):
        raise GapError(f"{folder} is a file; name a folder for the output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: no system has such a name
        raise GapError(f"cannot write to {folder}: {getattr(error, 'strerror', error)}") from error


def _has_keys(path: Path, *sets: set[str]) -> bool:
    """Whether a file is a YAML mapping with all the keys of one of these sets."""
    try:
        content = load_yaml_file(path)
    except GapError:
        return False
    return isinstance(content, dict) and any(keys <= content.keys() for keys in sets)


def versions() -> dict[str, str]:
    """The versions that metrics depend on; gap's own is "source" where a clone runs without being installed."""
    found = {name: version(name) for name in ("torch", "torchvision", "segmentation-models-pytorch")}
    try:
        return {"gap-toolkit": version("gap-toolkit"), **found}
    except PackageNotFoundError:
        return {"gap-toolkit": "source", **found}
