from pathlib import Path

import pytest
import torch
import yaml

from gap.artefact import (
    CARD,
    CHECKPOINT,
    CONFIG,
    METRICS,
    TENSORS,
    claim,
    clear,
    is_artefact,
    open_artefact,
    save_artefact,
)
from gap.errors import GapError

WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7)}


def test_what_is_saved_is_what_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (tmp_path / "run").mkdir()
    (folder / CHECKPOINT).write_bytes(b"half-way")
    turned = WEIGHTS | {"turned": torch.rand(3, 4).T, "shared": WEIGHTS["weight"]}
    save_artefact(folder, "classifier", turned, {"figures": {"accuracy": 0.5}, "name": "émile"})
    opened = open_artefact(folder, "classifier", "something else")
    assert opened.kind == "classifier"
    assert opened.card["figures"] == {"accuracy": 0.5}
    assert opened.card["name"] == "émile"
    assert opened.card["versions"]["torch"] == torch.__version__.partition("+")[0]
    loaded = opened.tensors()
    assert loaded.keys() == turned.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in turned.items())
    assert sorted(path.name for path in folder.iterdir()) == [CARD, TENSORS]


def test_the_card_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gap.artefact.safetensors.torch.save_file", full)
    (tmp_path / CHECKPOINT).write_bytes(b"half-way")
    with pytest.raises(GapError, match="No space left"):
        save_artefact(tmp_path, "classifier", WEIGHTS, {})
    assert not is_artefact(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is not a folder that gap left"),
        ({CONFIG: "lr: 1"}, "is unfinished; go on with --resume --out"),
        ({CARD: "a: [1"}, "not readable YAML"),
        ({CARD: "kind: !!python/object/apply:os.getcwd []"}, "not readable YAML"),
        ({CARD: "- kind"}, "is not a card"),
        ({CARD: "name: x"}, "is not a card"),
        ({CARD: "kind: direct generator"}, "holds a direct generator, where a classifier was expected"),
    ],
)
def test_what_is_no_artefact(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(GapError, match=message) as refused:
        open_artefact(tmp_path, "classifier")
    assert "\n" not in str(refused.value)


def test_tensors_cut_short_or_missing(tmp_path: Path) -> None:
    artefact = save_artefact(tmp_path, "classifier", WEIGHTS, {})
    path = tmp_path / TENSORS
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(GapError, match=f"{TENSORS} is missing or cut short"):
        artefact.tensors()
    path.unlink()
    with pytest.raises(GapError, match=f"{TENSORS} is missing or cut short"):
        artefact.tensors()


def test_claim_makes_a_folder_and_leaves_what_is_not_ours(tmp_path: Path) -> None:
    claim(tmp_path / "new" / "run")
    assert (tmp_path / "new" / "run").is_dir()
    claim(tmp_path / "new" / "run")
    (tmp_path / "thesis.txt").write_text("years")
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(GapError, match="exists and is not a folder that gap left"):
            claim(tmp_path, **how)
    assert (tmp_path / "thesis.txt").read_text() == "years"
    with pytest.raises(GapError, match="is a file"):
        claim(tmp_path / "thesis.txt")
    with pytest.raises(GapError, match=r"is a file|cannot write"):
        claim(tmp_path / "thesis.txt" / "run")


@pytest.mark.parametrize(("name", "state"), [(CARD, "a finished"), (CONFIG, "an unfinished")])
def test_claim_asks_before_it_takes_what_is_ours(tmp_path: Path, name: str, state: str) -> None:
    for file in (name, METRICS, "notes.txt"):
        (tmp_path / file).write_text(yaml.safe_dump({"kind": "classifier"}))
    with pytest.raises(GapError, match=f"holds {state} piece of work; use --resume"):
        claim(tmp_path)
    claim(tmp_path, resume=True)
    claim(tmp_path, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 3
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
