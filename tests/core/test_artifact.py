from pathlib import Path

import pytest
import torch
import yaml
from pydantic import BaseModel
from torch import nn

from gap.attacks.generator.options import TrainOptions
from gap.classifiers.options import PretrainOptions
from gap.core.artifact import (
    CARD,
    CHECKPOINT,
    CONFIG,
    METRICS,
    TENSORS,
    Artifact,
    is_artifact,
    open_artifact,
    prepare_output_dir,
    prepare_run_dir,
    remove_run_files,
    save_artifact,
    was_written_by_gap,
    write_marker,
)
from gap.core.errors import GapError
from gap.core.options import Options

GAP_CARD = yaml.safe_dump({"kind": "classifier", "versions": {"gap-toolkit": "source"}})
GAP_CONFIG = yaml.safe_dump(PretrainOptions().to_dict())
WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7)}


def test_save_artifact_then_open_artifact_returns_the_same_card_and_tensors(tmp_path: Path) -> None:
    """Catches: tensors lost because they are transposed or share memory, and a checkpoint left behind."""
    folder = tmp_path / "run"
    (tmp_path / "run").mkdir()
    (folder / CHECKPOINT).write_bytes(b"half-way")
    tensors = WEIGHTS | {"transposed": torch.rand(3, 4).T, "shared": WEIGHTS["weight"]}
    save_artifact(folder, "classifier", tensors, {"metrics": {"accuracy": 0.5}, "name": "émile"})
    opened = open_artifact(folder, "classifier", "something else")
    assert opened.kind == "classifier"
    assert opened.card["metrics"] == {"accuracy": 0.5}
    assert opened.card["name"] == "émile"
    assert opened.card["versions"]["torch"] == torch.__version__.partition("+")[0]
    loaded = opened.tensors()
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert sorted(path.name for path in folder.iterdir()) == [CARD, TENSORS]


def test_save_artifact_full_disk_leaves_the_checkpoint_and_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a card written before the tensors, so that a failed save looks finished."""

    def raise_full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gap.core.artifact.safetensors.torch.save_file", raise_full_disk)
    (tmp_path / CHECKPOINT).write_bytes(b"half-way")
    with pytest.raises(GapError, match="No space left"):
        save_artifact(tmp_path, "classifier", WEIGHTS, {})
    assert not is_artifact(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is not a folder that gap wrote"),
        ({CONFIG: GAP_CONFIG}, "is unfinished; go on with `resume` `out`"),
        ({CONFIG: "lr: 1"}, "is not a folder that gap wrote"),
        ({CARD: "a: [1"}, "not readable YAML"),
        ({CARD: "kind: !!python/object/apply:os.getcwd []"}, "not readable YAML"),
        ({CARD: "- kind"}, "is not a card"),
        ({CARD: "name: x"}, "is not a card"),
        ({CARD: "kind: [classifier]"}, "is not a card"),
        ({CARD: "kind: direct_generator"}, "holds a direct_generator, where a classifier was expected"),
    ],
)
def test_open_artifact_unusable_folder_raises_with_the_reason(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(GapError, match=message) as error:
        open_artifact(tmp_path, "classifier")
    assert "\n" not in str(error.value)


def test_artifact_tensors_truncated_or_missing_file_raises_with_its_name(tmp_path: Path) -> None:
    artifact = save_artifact(tmp_path, "classifier", WEIGHTS, {})
    path = tmp_path / TENSORS
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(GapError, match=f"{TENSORS} is missing or cut short"):
        artifact.tensors()
    path.unlink()
    with pytest.raises(GapError, match=f"{TENSORS} is missing or cut short"):
        artifact.tensors()


def test_prepare_run_dir_new_folder_is_made_and_foreign_folder_is_refused(tmp_path: Path) -> None:
    prepare_run_dir(tmp_path / "new" / "run")
    assert (tmp_path / "new" / "run").is_dir()
    prepare_run_dir(tmp_path / "new" / "run")
    (tmp_path / "thesis.txt").write_text("years")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(GapError, match="exists and is not a folder that gap wrote"):
            prepare_run_dir(tmp_path, **options)
    assert (tmp_path / "thesis.txt").read_text() == "years"
    with pytest.raises(GapError, match="is a file"):
        prepare_run_dir(tmp_path / "thesis.txt")
    with pytest.raises(GapError, match=r"is a file|cannot write"):
        prepare_run_dir(tmp_path / "thesis.txt" / "run")


@pytest.mark.parametrize(
    ("name", "text", "state"),
    [(CARD, GAP_CARD, "a finished piece of work; use `over"), (CONFIG, GAP_CONFIG, "unfinished work; use `resume`")],
)
def test_prepare_run_dir_folder_of_a_run_is_refused_without_resume_or_overwrite(
    tmp_path: Path, name: str, text: str, state: str
) -> None:
    (tmp_path / name).write_text(text)
    for file in (METRICS, "notes.txt"):
        (tmp_path / file).touch()
    with pytest.raises(GapError, match=f"holds {state}"):
        prepare_run_dir(tmp_path)
    prepare_run_dir(tmp_path, resume=True)
    prepare_run_dir(tmp_path, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 3
    remove_run_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_remove_run_files_foreign_file_is_kept(tmp_path: Path) -> None:
    events = tmp_path / "tensorboard"
    events.mkdir()
    for path in (tmp_path / CHECKPOINT, events / "events.out.tfevents.1.host", events / "notes.txt"):
        path.touch()
    remove_run_files(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [events / "notes.txt"]
    (events / "notes.txt").unlink()
    remove_run_files(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [CARD, CONFIG, METRICS, TENSORS, CHECKPOINT, "index.html", "results.json"])
@pytest.mark.parametrize("text", ["", "kind: [", "- kind", "kind: classifier", "lr: 1\ndata: mnist"])
def test_prepare_dir_file_with_a_name_of_gap_but_other_content_is_refused(tmp_path: Path, name: str, text: str) -> None:
    """Catches: a user's folder that gap takes for its own, and overwrites, because of a file's name."""
    (tmp_path / name).write_text(text)
    for prepare in (
        prepare_output_dir,
        lambda folder: prepare_run_dir(folder, resume=True),
        lambda folder: prepare_run_dir(folder, overwrite=True),
    ):
        with pytest.raises(GapError, match="exists and is not a folder that gap wrote"):
            prepare(tmp_path)


def test_prepare_output_dir_folder_with_marker_is_accepted_again(tmp_path: Path) -> None:
    prepare_output_dir(tmp_path)
    write_marker(tmp_path)
    (tmp_path / "results.json").touch()
    prepare_output_dir(tmp_path)


@pytest.mark.parametrize("options", [PretrainOptions(), TrainOptions(classifier=["mnist-cnn"], budget="linf:0.1")])
def test_was_written_by_gap_config_of_a_run_is_recognized(tmp_path: Path, options: Options) -> None:
    (tmp_path / CONFIG).write_text(yaml.safe_dump(options.to_dict()))
    assert was_written_by_gap(tmp_path)


class CardSchema(BaseModel):
    budget: str
    size: tuple[int, int]


@pytest.mark.parametrize(
    ("card", "key"),
    [({"size": [1, 2]}, "budget"), ({"budget": 3, "size": [1, 2]}, "budget"), ({"budget": "", "size": [1]}, "size.1")],
)
def test_artifact_read_damaged_card_raises_with_the_key(tmp_path: Path, card: dict[str, object], key: str) -> None:
    with pytest.raises(GapError, match=f"^{tmp_path / CARD} is damaged at {key}: .*") as error:
        Artifact(tmp_path, card).read(CardSchema)
    assert "\n" not in str(error.value)
    assert Artifact(tmp_path, {"budget": "b", "size": [1, 2], "more": 0}).read(CardSchema).size == (1, 2)


def test_was_written_by_gap_training_config_of_another_program_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{epochs: 3, batch_size: 8, precision: bf16, deterministic: true}")
    assert not was_written_by_gap(tmp_path)
    keys = ("content", "style", "backbone", "type", "epochs", "precision", "deterministic")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dict.fromkeys(keys, 1)))
    assert was_written_by_gap(tmp_path)


def test_artifact_fit_network_gets_the_saved_weights(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    save_artifact(tmp_path, "classifier", source.state_dict(), {}).fit(target)
    assert torch.equal(target.weight, source.weight)


@pytest.mark.parametrize(
    ("weight", "fault"),
    [
        (torch.full((2, 3), torch.nan), "weight has 6 of 6 values that are NaN or infinite (6 in all)"),
        (torch.zeros(2, 3, dtype=torch.int64), "weight holds int64 values, where float32 is expected"),
    ],
)
def test_artifact_fit_unusable_weight_raises_with_file_and_folder(
    tmp_path: Path, weight: torch.Tensor, fault: str
) -> None:
    artifact = save_artifact(tmp_path, "classifier", {"weight": weight, "bias": torch.zeros(2)}, {})
    with pytest.raises(GapError) as error:
        artifact.fit(nn.Linear(3, 2))
    assert str(error.value) == f"the weights in {tmp_path / TENSORS} cannot be used: {fault}; make {tmp_path} again"


def test_artifact_check_sizes_size_of_no_tensor_is_refused(tmp_path: Path) -> None:
    """Catches: a changed size in the card, for which an object of any size would be allocated."""
    artifact = save_artifact(tmp_path, "classifier", WEIGHTS, {})
    artifact.check_sizes("classifier", (2, 3))
    with pytest.raises(GapError, match=r"is damaged at classifier: nothing in model\.safetensors has the size 9"):
        artifact.check_sizes("classifier", (2, 9))


def test_save_artifact_extra_state_that_is_no_tensor_is_left_out(tmp_path: Path) -> None:
    artifact = save_artifact(tmp_path, "classifier", {**WEIGHTS, "_extra_state": {"version": 1}}, {})
    assert artifact.tensors().keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    "text", ["kind: 2001-13-32", "kind: !!int x", "kind: !!float ''", "kind: !!timestamp x", "[" * 500]
)
def test_open_artifact_card_with_impossible_values_is_refused(tmp_path: Path, text: str) -> None:
    """Catches: a `ValueError` or `RecursionError` of the YAML reader that reaches the user."""
    (tmp_path / CARD).write_text(text)
    with pytest.raises(GapError, match="is not readable YAML"):
        open_artifact(tmp_path)
    assert not was_written_by_gap(tmp_path)


@pytest.mark.parametrize("name", ["q" * 300, "a\0b", "\ud800"])
def test_open_artifact_and_prepare_run_dir_impossible_path_is_refused(name: str) -> None:
    with pytest.raises(GapError, match="is not a folder that gap wrote"):
        open_artifact(Path(name))
    with pytest.raises(GapError, match="cannot write to"):
        prepare_run_dir(Path(name))
