"""Names of classifiers: how they are split into architecture and weights, and what is loaded or refused."""

import os
from pathlib import Path

import pytest
import torch

from gap.classifiers.classifier import artifact_dir_of, load_classifier
from gap.classifiers.registry import is_untrained, runs_user_code, split_name
from gap.core.artifact import save_artifact
from gap.core.errors import GapError

SOURCE = "from torch import nn\nmake = lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
INPUT_SHAPE = {"channels": 3, "size": (2, 2)}


@pytest.fixture
def working_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, text: str = SOURCE) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


@pytest.mark.parametrize(
    ("name", "architecture", "weights"),
    [
        ("mnist-cnn", "mnist-cnn", ""),
        ("mnist-cnn@w.pt", "mnist-cnn", "w.pt"),
        ("mnist-cnn@run/me@lab/w.pt", "mnist-cnn", "run/me@lab/w.pt"),
        ("mnist-cnn@C:\\runs\\w.pt", "mnist-cnn", "C:\\runs\\w.pt"),
        ("mnist-cn@run/me@lab/w.pt", "mnist-cn", "run/me@lab/w.pt"),
        ("torchvision:resnet18@none", "torchvision:resnet18", "none"),
        ("timm:resnet18.a1_in1k@me@lab/w.pt", "timm:resnet18.a1_in1k", "me@lab/w.pt"),
        ("models.net:Net@me@lab/w.pt", "models.net:Net", "me@lab/w.pt"),
        ("run/me@lab/net.py:make", "run/me@lab/net.py:make", ""),
        ("run/me@lab/net.py:make@me@lab/w.pt", "run/me@lab/net.py:make", "me@lab/w.pt"),
        ("C:\\me@lab\\net.py:make@w.pt", "C:\\me@lab\\net.py:make", "w.pt"),
        ("run/me@lab/nothing", "run/me@lab/nothing", ""),
        ("", "", ""),
        ("@", "", ""),
    ],
)
def test_split_name_without_existing_files_follows_the_syntax(
    working_dir: Path, name: str, architecture: str, weights: str
) -> None:
    assert split_name(name) == (architecture, weights)


@pytest.mark.parametrize(
    ("files", "name", "architecture", "weights"),
    [
        (["me@lab/net.py"], "me@lab/net.py:make", "me@lab/net.py:make", ""),
        (["me@lab/net.py", "w.pt"], "me@lab/net.py:make@w.pt", "me@lab/net.py:make", "w.pt"),
        (["net.py", "me@lab/w.pt"], "net.py:make@me@lab/w.pt", "net.py:make", "me@lab/w.pt"),
        (["me@lab/net.py", "me@lab/w.pt"], "me@lab/net.py:make@me@lab/w.pt", "me@lab/net.py:make", "me@lab/w.pt"),
        (["mnist-cnn@w.pt"], "mnist-cnn@w.pt", "mnist-cnn@w.pt", ""),
        (["mnist-cnn@lab/net.py"], "mnist-cnn@lab/net.py:make", "mnist-cnn@lab/net.py:make", ""),
        (["a:b/net.py", "w@x.pt"], "a:b/net.py:make@w@x.pt", "a:b/net.py:make", "w@x.pt"),
        (["mnist-cnn@me/x", "me@lab/w.pt"], "mnist-cnn@me@lab/w.pt", "mnist-cnn", "me@lab/w.pt"),
        (["runs/mine/x"], "runs/mine@w.pt", "runs/mine", "w.pt"),
        (["runs/w.pt"], "./typo@runs/w.pt", "./typo", "runs/w.pt"),
        (["mnist-cn/x", "w.pt"], "mnist-cm@w.pt", "mnist-cm", "w.pt"),
    ],
)
def test_split_name_existing_path_is_kept_whole(
    working_dir: Path, files: list[str], name: str, architecture: str, weights: str
) -> None:
    for file in files:
        write(file)
    assert split_name(name) == (architecture, weights)


@pytest.mark.parametrize("folder", ["me@lab", "a:b", "me@lab:x=1,y", "./timm:resnet18"])
def test_load_classifier_code_in_a_folder_named_with_separators_is_loaded(working_dir: Path, folder: str) -> None:
    write(f"{folder}/net.py")
    original = load_classifier(f"{folder}/net.py:make", **INPUT_SHAPE)
    torch.save(original.network.state_dict(), f"{folder}/w.pt")
    loaded = load_classifier(f"{folder}/net.py:make@{folder}/w.pt", mean=[0.0], std=[1.0], **INPUT_SHAPE)
    assert loaded.fingerprint() == original.fingerprint()


@pytest.mark.parametrize("folder", ["me@lab", "a:b", "x.py:make"])
def test_load_classifier_artifact_in_a_folder_named_with_separators_is_loaded(working_dir: Path, folder: str) -> None:
    original = load_classifier("mnist-cnn")
    Path(folder).mkdir()
    save_artifact(Path(folder), "classifier", original.network.state_dict(), {"classifier": original.describe()})
    for name in (folder, f"mnist-cnn@{folder}/model.safetensors"):
        loaded = load_classifier(name)
        assert loaded.fingerprint() == original.fingerprint()
        assert artifact_dir_of(loaded) == Path(folder)
        assert not runs_user_code(split_name(name)[0])


@pytest.mark.parametrize("name", ["a:b", "C:\\runs\\mine", "net.py:make", "package.module:make"])
def test_runs_user_code_missing_path_is_taken_for_code(working_dir: Path, name: str) -> None:
    assert runs_user_code(name)


def test_is_untrained_weights_that_only_end_in_none_are_trained() -> None:
    assert is_untrained("torchvision:resnet18@none")
    assert not is_untrained("torchvision:resnet18@me@none")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("C:\\runs\\mine", "unknown classifier"),
        ("runs/a:b", "there is no classifier at runs/a:b"),
        ("runs/me@lab", "there is no classifier at runs/me@lab"),
        ("mnist-cn@me@lab/w.pt", "did you mean mnist-cnn"),
        ("run/me@lab/net.py:make", "there is no file run/me@lab/net.py"),
        ("q" * 300, "unknown classifier"),
        ("q/" + "q" * 300, "there is no classifier"),
        ("mnist-cnn@" + "q" * 300, "there is no weights file"),
        ("mnist-cnn\0", "unknown classifier"),
        ("mnist-cnn@w\0.pt", "there is no weights file"),
        ("n\0.py:make", "there is no file"),
        ("\ud800", "unknown classifier"),
    ],
)
def test_load_classifier_meaningless_name_raises_a_one_line_error(working_dir: Path, name: str, message: str) -> None:
    with pytest.raises(GapError, match=message) as error:
        load_classifier(name, **INPUT_SHAPE)
    assert "\n" not in str(error.value)


def test_load_classifier_artifact_followed_by_weights_raises_gap_error(working_dir: Path) -> None:
    original = load_classifier("mnist-cnn")
    Path("run").mkdir()
    save_artifact(Path("run"), "classifier", original.network.state_dict(), {"classifier": original.describe()})
    with pytest.raises(GapError, match=r"run says itself which network it is; leave out @w\.pt"):
        load_classifier("run@w.pt")


def test_load_classifier_path_is_not_imported_as_a_module(working_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr("gap.classifiers.registry.importlib.import_module", imported.append)
    for name in ("antigravity:\\runs", "C:/runs", "a/b:c", ":x", "a b:c"):
        with pytest.raises(GapError):
            load_classifier(name, **INPUT_SHAPE)
    assert not imported


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at every file")
def test_load_classifier_unreadable_folder_raises_gap_error(working_dir: Path) -> None:
    Path("closed").mkdir(mode=0)
    with pytest.raises(GapError, match=r"cannot look at closed/w\.pt: Permission denied"):
        load_classifier("mnist-cnn@closed/w.pt")
