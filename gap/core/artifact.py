"""Artifacts: the folders that commands write, each of which is all that the next command needs.

card.yaml           the kind of the artifact, its options, data, metrics and versions
model.safetensors   its tensors
config.yaml         the options of the training
metrics.jsonl       the metrics during the training
checkpoint.pt       the state to resume from, only while the training is unfinished

A folder of tables or pictures has no card. An empty file, .gap-toolkit, marks it as written by gap.

Only the functions that need torch import it: recognizing a folder does not.
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
# The files that a training run writes, in the order of their removal. The config is the last: until it is removed, it
# shows that gap wrote the folder.
RUN_FILES = (CARD, TENSORS, CHECKPOINT, METRICS, PERTURBATION, CONFIG)
EVENT_FILES = "tensorboard/events.out.tfevents.*"
# Sets of keys that only gap's files contain: cards, configs of a training on a classifier, configs of a stylizer.
CARD_KEYS = {"kind", "versions"}
CONFIG_KEYS = {"classifier", "data", "labels", "epochs", "precision", "deterministic"}
STYLIZER_KEYS = {"backbone", "type", "content", "style", "epochs", "precision", "deterministic"}

# Numbers in a card. The bounds are generous, and keep a damaged card from allocating more memory than there is.
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
        """A copy with its tensors in memory and its kind as its folder. It works after the original folder is gone."""
        return replace(self, folder=Path(self.kind), loaded=self.tensors())

    def save(self, folder: Path | str) -> "Artifact":
        """Write the artifact to a folder. Raises GapError where the folder holds files that gap did not write."""
        folder = Path(folder)
        prepare_run_dir(folder, overwrite=True)
        content = {key: value for key, value in self.card.items() if key not in ("kind", "format", "versions")}
        return save_artifact(folder, self.kind, self.tensors(), content)

    @property
    def kind(self) -> str:
        return self.card["kind"]

    def read(self, model: type[T]) -> T:
        """The card as a validated model; raises GapError naming the first key that is missing or invalid."""
        try:
            return model.model_validate(self.card)
        except ValidationError as error:
            first = error.errors()[0]
            key, reason = ".".join(map(str, first["loc"])), first["msg"][:1].lower() + first["msg"][1:]
            raise GapError(f"{self.folder / CARD} is damaged at {key}: {reason}; make {self.folder} again") from error

    def tensors(self) -> "dict[str, Tensor]":
        """The saved tensors by name; raises GapError when the file is missing or truncated."""
        if self.loaded is not None:
            return dict(self.loaded)
        from safetensors.torch import load_file

        with self._reading() as path:
            return load_file(path)

    def check_sizes(self, key: str, sizes: Iterable[int]) -> None:
        """Raise GapError where a size in the card, under `key`, is not the size of any dimension of a saved tensor.

        A network of such a size could allocate more memory than there is.
        """
        if self.loaded is not None:  # the sizes were checked when the tensors were read
            return
        with self._reading() as path, safetensors.safe_open(path, "pt") as file:
            sides = {side for name in file.keys() for side in file.get_slice(name).get_shape()}  # noqa: SIM118
        if unmatched := [size for size in sizes if size not in sides]:
            raise GapError(
                f"{self.folder / CARD} is damaged at {key}: nothing in {path.name} has the size {unmatched[0]};"
                f" make {self.folder} again"
            )

    @contextmanager
    def _reading(self) -> Iterator[Path]:
        """Yield the path of the tensor file; turn errors of reading it into a GapError."""
        from gap.core.safe_load import READ_ERRORS

        path = self.folder / TENSORS
        try:
            yield path
        except MemoryError as error:
            raise GapError(f"{path} asks for more memory than there is") from error
        except READ_ERRORS as error:
            reason = first_line(error)
            raise GapError(f"{path} is missing or cut short ({reason}); make {self.folder} again") from error

    def fit(self, network: "nn.Module") -> None:
        """Load the saved tensors into a network; raises GapError where shapes or values are not usable as weights."""
        from gap.core.safe_load import load_state_dict_checked

        load_state_dict_checked(network, self.tensors(), self.folder / TENSORS, f"make {self.folder} again")


def is_artifact(folder: Path) -> bool:
    """Whether a folder holds a finished artifact."""
    return is_file(folder / CARD)


def open_artifact(folder: Path, *kinds: str) -> Artifact:
    """The artifact in a folder, of one of these kinds; raises GapError where the folder holds anything else."""
    if not is_artifact(folder):
        if _has_keys(folder / CONFIG, CONFIG_KEYS, STYLIZER_KEYS):
            raise GapError(f"{folder} is unfinished; go on with `resume` `out` {folder}")
        raise GapError(f"{folder} is not a folder that gap wrote (it has no {CARD})")
    card = load_yaml_file(folder / CARD)
    if not isinstance(card, dict) or not isinstance(card.get("kind"), str):
        raise GapError(f"{folder / CARD} is not a card: it does not say what kind of artifact this is")
    card = upgraded(card)
    if kinds and card["kind"] not in kinds:
        raise GapError(f"{folder} holds a {card['kind']}, where a {' or '.join(kinds)} was expected")
    return Artifact(folder, card)


def save_artifact(folder: Path, kind: str, tensors: "Mapping[str, Tensor]", content: Mapping[str, Any]) -> Artifact:
    """Write the tensors, then the card, so that a folder with a card is complete. Remove the checkpoint."""
    from safetensors.torch import save_file
    from torch import Tensor

    card = {"kind": kind, "format": FORMAT, **content, "versions": versions()}
    plain = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor)  # a state dict may also contain other values
    }
    with atomic_write(folder / TENSORS) as part:
        save_file(plain, part)
    write_text(folder / CARD, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Artifact(folder, card)


def update_card(folder: Path, key: str, value: Any) -> None:
    """Set a key of an artifact's card, for example to the results of an evaluation. An earlier value is replaced."""
    card = open_artifact(folder).card | {key: value}
    write_text(folder / CARD, yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=110))


def prepare_run_dir(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Prepare `folder` for the files of a run; raises GapError when it holds files that must not be lost."""
    prepare_output_dir(folder)
    if _contents(folder) and not (resume or overwrite):
        state = "a finished piece of work; use" if is_artifact(folder) else "unfinished work; use `resume` to go on,"
        raise GapError(f"{folder} holds {state} `overwrite`, or another folder")


def prepare_output_dir(folder: Path) -> None:
    """Create a folder for output; raises GapError when it holds files that gap did not write."""
    make_dir(folder)
    if _contents(folder) and not was_written_by_gap(folder):
        raise GapError(f"{folder} exists and is not a folder that gap wrote; name another")


def _contents(folder: Path) -> set[Path]:
    """The files in a folder, except incomplete files of a killed run."""
    return set(folder.iterdir()) - set(stale_temp_files(folder, (MARKER_FILE, *RUN_FILES)))


def write_marker(folder: Path) -> None:
    """Mark a folder without a card as written by gap, before any other file is written there."""
    write_text(folder / MARKER_FILE, "")


def was_written_by_gap(folder: Path) -> bool:
    """Whether gap wrote this folder, judged by its marker file or by the keys of its card or config."""
    recognized = _has_keys(folder / CARD, CARD_KEYS) or _has_keys(folder / CONFIG, CONFIG_KEYS, STYLIZER_KEYS)
    return recognized or is_file(folder / MARKER_FILE)


def remove_run_files(folder: Path) -> None:
    """Remove the files that a run writes from a folder, and no others."""
    for path in [*folder.glob(EVENT_FILES), *(folder / name for name in RUN_FILES)]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        (folder / "tensorboard").rmdir()  # fails where the folder is not empty


def make_dir(folder: Path) -> None:
    """Create a folder if it does not exist; raises GapError when that fails or the path is a file."""
    if exists(folder) and not is_folder(folder):
        raise GapError(f"{folder} is a file; name a folder for the output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: not a valid name on any system
        raise GapError(f"cannot write to {folder}: {getattr(error, 'strerror', error)}") from error


def _has_keys(path: Path, *sets: set[str]) -> bool:
    """Whether a file is a YAML mapping with all the keys of one of these sets."""
    try:
        content = load_yaml_file(path)
    except GapError:
        return False
    return isinstance(content, dict) and any(keys <= content.keys() for keys in sets)


def versions() -> dict[str, str]:
    """The versions that metrics depend on. Gap's own is "source" where it runs without being installed."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "segmentation-models-pytorch")}
    try:
        return {"gap-toolkit": version("gap-toolkit"), **libraries}
    except PackageNotFoundError:
        return {"gap-toolkit": "source", **libraries}
