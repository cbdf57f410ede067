"""Classifiers of the user that do not work or do not fit, and weights that contain code."""

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
from judging import shorten_judging
from PIL import Image
from torch import nn

GAP = Path(sys.executable).with_name("gap")


def test_evaluate_other_class_count_exits_unless_labels_are_predicted(
    run: Callable[..., Any], classifier: Path, per_image: Path, tmp_path: Path
) -> None:
    for name in ("cat", "dog", "owl"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        Image.effect_noise((28, 28), 80).save(tmp_path / "zoo" / name / "one.png")
    data = ["--data", f"folder:{tmp_path / 'zoo'}"]
    error_line = run("evaluate", per_image, "--classifier", classifier, *data).error_line
    assert "10 classes" in error_line and "has 3" in error_line and "--labels predicted" in error_line
    result = run("evaluate", per_image, "--classifier", classifier, *data, "--labels=predicted")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("nan", "NaN"),
        ("spatial", "(2, 10, 1, 1)"),
        ("color", "fails on 2 images of 1x28x28"),
        ("needs_argument", "without arguments"),
        ("number", "int, not a torch.nn.Module"),
        ("sofmax", "did you mean softmax"),
    ],
)
def test_train_broken_classifier_exits_with_the_reason(
    run: Callable[..., Any], networks: Path, tmp_path: Path, factory: str, reason: str
) -> None:
    arguments = ["--classifier", f"{networks}:{factory}", "--budget=linf:0.1"]
    error_line = run("train", *arguments, "--out", tmp_path / "out").error_line
    assert factory in error_line and reason in error_line
    assert not (tmp_path / "out").exists()


def test_inspect_file_that_is_not_python_exits_with_its_name(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "torn.py").write_text("def make(:\n")
    error_line = run("inspect", f"{tmp_path / 'torn.py'}:make", "--input=1x28x28").error_line
    assert "torn.py" in error_line and "cannot import" in error_line


def test_evaluate_untrained_softmax_network_warns_of_probabilities_and_chance_level(
    run: Callable[..., Any], networks: Path
) -> None:
    result = run("evaluate", "noise", "--classifier", f"{networks}:softmax", "--budget=linf:0.1", "--images=20")
    assert result.code == 0, result.err
    softmax, chance = result.warnings
    assert "probabilities" in softmax and "logits" in softmax
    assert "no better than chance" in chance and "--mean, --std" in chance


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "noise", "checkerboard", "--classifier"],
        ["compare", "noise", "--epsilons=0.05,0.1", "--out=out", "--classifier"],
        ["judge", "--fast"],
    ],
)
def test_attack_commands_classifier_at_chance_level_gives_one_warning(
    run: Callable[..., Any], networks: Path, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a warning of the command and one of the function that it calls."""
    shorten_judging(monkeypatch)
    monkeypatch.chdir(tmp_path)
    result = run(*command, f"{networks}:Net", "--data=mnist-5k", "--budget=linf:0.1", "--images=4")
    assert result.code == 0, result.err
    assert len([line for line in result.warnings if "no better than chance" in line]) == 1, result.err


def test_train_ensemble_of_different_channels_exits_with_error(
    run: Callable[..., Any], classifier: Path, tmp_path: Path
) -> None:
    both = ["--classifier", classifier, "--classifier=cifar-resnet18-narrow", "--data=mnist-5k"]
    error_line = run("train", *both, "--input=3x32x32", "--budget=linf:0.1", "--out", tmp_path / "out").error_line
    assert "differ" in error_line


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_inspect_weights_with_code_exits_and_does_not_run_it(
    run: Callable[..., Any], tmp_path: Path, pickled_code: object, save: Callable[[object, Path], None]
) -> None:
    save({"0.weight": pickled_code}, tmp_path / "code.pt")
    error_line = run("inspect", f"mnist-cnn@{tmp_path / 'code.pt'}").error_line
    assert "code.pt" in error_line and "convert it once" in error_line
    assert not (tmp_path / "ran").exists()


def test_inspect_weights_of_another_network_or_truncated_exits_with_error(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "other.pt")
    assert "another architecture" in run("inspect", f"mnist-cnn@{tmp_path / 'other.pt'}").error_line
    (tmp_path / "other.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:300])
    assert "not a whole weights file" in run("inspect", f"mnist-cnn@{tmp_path / 'other.pt'}").error_line


def test_inspect_and_evaluate_non_finite_weights_exit_with_the_name_of_the_tensor(
    run: Callable[..., Any], networks: Path, classifier: Path, per_image: Path, tmp_path: Path
) -> None:
    """Catches: non-finite weights that end in a traceback where batch normalization is fused."""
    networks.write_text("from torch import nn\nmake = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n")
    torch.save({"1.weight": torch.zeros(10, 784), "1.bias": torch.tensor([torch.nan] * 10)}, tmp_path / "nan.pt")
    classifier_name = f"{networks}:make@{tmp_path / 'nan.pt'}"
    assert "nan.pt cannot be used: 1.bias has 10 of 10" in run("inspect", classifier_name, "--input=1x28x28").error_line
    for artifact, command in (
        (classifier, ["inspect"]),
        (per_image, ["evaluate", "--classifier", classifier, "--images=10"]),
    ):
        damaged = tmp_path / artifact.name
        shutil.copytree(artifact, damaged)
        state = safetensors.torch.load_file(damaged / "model.safetensors")
        name = next(name for name, value in state.items() if value.is_floating_point())
        state[name].view(-1)[0] = torch.inf
        safetensors.torch.save_file(state, damaged / "model.safetensors")
        error_line = run(command[0], damaged, *command[1:]).error_line
        assert f"{damaged / 'model.safetensors'} cannot be used: {name} has 1 of" in error_line
        assert f"make {damaged} again" in error_line


def test_inspect_folder_named_with_separators_is_read(run: Callable[..., Any], networks: Path, tmp_path: Path) -> None:
    folder = tmp_path / "me@lab:x"
    folder.mkdir()
    networks.rename(folder / "net.py")
    result = run("inspect", f"{folder / 'net.py'}:Net", "--input=1x28x28")
    assert result.code == 0, result.err


def test_console_script_in_a_folder_with_models_and_cli_imports_the_right_modules(
    networks: Path, tmp_path: Path
) -> None:
    """Catches: `models` or cli.py of the current folder in place of those of gap, or the reverse."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    networks.rename(tmp_path / "models" / "net.py")
    (tmp_path / "cli.py").write_text("raise SystemExit('the wrong cli.py')\n")
    arguments = ["evaluate", "noise", "--classifier", "models.net:Net", "--budget=linf:0.1", "--images=20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    result = subprocess.run(
        [GAP, *arguments, "--json", "results.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert row["classifier"] == "models.net:Net"
    assert "no better than chance" in result.stderr
