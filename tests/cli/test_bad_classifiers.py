"""Classifiers of a user's own that do not work or do not fit, and weights that carry code."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

GAP = Path(sys.executable).with_name("gap")


def test_class_counts_that_do_not_match(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path
) -> None:
    for name in ("cat", "dog", "owl"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        Image.effect_noise((28, 28), 80).save(tmp_path / "zoo" / name / "one.png")
    data = ["--data", f"folder:{tmp_path / 'zoo'}"]
    complaint = run("evaluate", per_image, "--classifier", classifier, *data).complaint
    assert "10 classes" in complaint and "has 3" in complaint and "--labels predicted" in complaint
    ended = run("evaluate", per_image, "--classifier", classifier, *data, "--labels=predicted")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("nan", "NaN"),
        ("spatial", "(2, 10, 1, 1)"),
        ("color", "fails on 2 images of 1x28x28"),
        ("needy", "without arguments"),
        ("number", "int, not a torch.nn.Module"),
        ("sofmax", "did you mean softmax"),
    ],
)
def test_classifiers_that_do_not_work(
    run: Callable[..., Any], networks: Path, tmp_path: Path, factory: str, says: str
) -> None:
    given = ["--classifier", f"{networks}:{factory}", "--budget=linf:0.1"]
    complaint = run("train", *given, "--out", tmp_path / "out").complaint
    assert factory in complaint and says in complaint
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_python(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "torn.py").write_text("def make(:\n")
    complaint = run("inspect", f"{tmp_path / 'torn.py'}:make", "--input=1x28x28").complaint
    assert "torn.py" in complaint and "cannot import" in complaint


def test_a_softmax_at_chance_is_warned_about(run: Callable[..., Any], networks: Path) -> None:
    ended = run("evaluate", "noise", "--classifier", f"{networks}:softmax", "--budget=linf:0.1", "--images=20")
    assert ended.code == 0, ended.err
    softmax, chance = ended.warnings
    assert "probabilities" in softmax and "logits" in softmax
    assert "no better than chance" in chance and "--mean/--std" in chance


def test_classifiers_of_an_ensemble_that_differ(run: Callable[..., Any], classifier: Path, tmp_path: Path) -> None:
    both = ["--classifier", classifier, "--classifier=cifar-resnet18-narrow", "--data=mnist-5k"]
    complaint = run("train", *both, "--input=3x32x32", "--budget=linf:0.1", "--out", tmp_path / "out").complaint
    assert "differ" in complaint


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_weights_that_carry_code(
    run: Callable[..., Any], tmp_path: Path, evil: object, save: Callable[[object, Path], None]
) -> None:
    save({"0.weight": evil}, tmp_path / "evil.pt")
    complaint = run("inspect", f"mnist-cnn@{tmp_path / 'evil.pt'}").complaint
    assert "evil.pt" in complaint and "convert it once" in complaint
    assert not (tmp_path / "ran").exists()


def test_weights_for_another_network(run: Callable[..., Any], tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "other.pt")
    assert "another architecture" in run("inspect", f"mnist-cnn@{tmp_path / 'other.pt'}").complaint
    (tmp_path / "other.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:300])
    assert "not a whole weights file" in run("inspect", f"mnist-cnn@{tmp_path / 'other.pt'}").complaint


def test_weights_that_are_not_finite(
    run: Callable[..., Any], networks: Path, classifier: Path, per_image: Path, tmp_path: Path
) -> None:
    """In one line, of a file and of folders: a network with norms ended in a traceback when they were folded."""
    networks.write_text("from torch import nn\nmake = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n")
    torch.save({"1.weight": torch.zeros(10, 784), "1.bias": torch.tensor([torch.nan] * 10)}, tmp_path / "nan.pt")
    named = f"{networks}:make@{tmp_path / 'nan.pt'}"
    assert "nan.pt cannot be used: 1.bias has 10 of 10" in run("inspect", named, "--input=1x28x28").complaint
    for whole, verb in (
        (classifier, ["inspect"]),
        (per_image, ["evaluate", "--classifier", classifier, "--images=10"]),
    ):
        damaged = tmp_path / whole.name
        shutil.copytree(whole, damaged)
        state = safetensors.torch.load_file(damaged / "model.safetensors")
        name = next(name for name, value in state.items() if value.is_floating_point())
        state[name].view(-1)[0] = torch.inf
        safetensors.torch.save_file(state, damaged / "model.safetensors")
        complaint = run(verb[0], damaged, *verb[1:]).complaint
        assert f"{damaged / 'model.safetensors'} cannot be used: {name} has 1 of" in complaint
        assert f"make {damaged} again" in complaint


def test_a_folder_with_separators_in_its_name(run: Callable[..., Any], networks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "me@lab:x"
    folder.mkdir()
    networks.rename(folder / "net.py")
    ended = run("inspect", f"{folder / 'net.py'}:Net", "--input=1x28x28")
    assert ended.code == 0, ended.err


def test_a_folder_with_its_own_models_and_cli(networks: Path, tmp_path: Path) -> None:
    """The console script, from a folder that holds what gap's own clone holds."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    networks.rename(tmp_path / "models" / "net.py")
    (tmp_path / "cli.py").write_text("raise SystemExit('the wrong cli.py')\n")
    given = ["evaluate", "noise", "--classifier", "models.net:Net", "--budget=linf:0.1", "--images=20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ended = subprocess.run(
        [GAP, *given, "--json", "table.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert row["classifier"] == "models.net:Net"
    assert "no better than chance" in ended.stderr
