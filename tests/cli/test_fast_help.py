"""Help and completion import neither torch nor other slow libraries; what the completion suggests."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gap.models.classifier_names import BUILTIN_DESCRIPTIONS
from gap.models.classifiers import BUILTIN

from gap.attacks.losses import LOSSES
from gap.attacks.names import ATTACK_NAMES, LOSS_NAMES
from gap.attacks.registry import list_attacks
from gap.cli.app import COMMANDS

SLOW = ("torch", "torchvision", "matplotlib", "kornia", "scipy", "accelerate", "timm", "PIL", "numpy")
COMPLETED = ("gap train --data mn", "gap evaluate p", "gap judge dr", "gap harden --attack tr", "gap train --config m")

# One process runs all command lines, as each process takes half a second. An import counts for the first line only.
PROBE_CODE = """
import contextlib, io, json, os, sys

import gap.cli.app

slow, outcomes, lines = set(json.loads(sys.argv[1])), {}, json.loads(sys.argv[2])
for line in lines:
    before = set(sys.modules)
    _, *sys.argv[1:] = line.split()
    os.environ.pop("_GAP_COMPLETE", None)
    if "--help" not in line:
        os.environ.update(_GAP_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            gap.cli.app.main()
        except SystemExit as end:
            status = end.code
    imported = sorted(slow & (set(sys.modules) - before))
    outcomes[line] = {"status": status, "output_length": len(out.getvalue()), "slow": imported}
print(json.dumps(outcomes))
"""
HELP = ("gap --help", *(f"gap {verb} --help" for verb in COMMANDS))


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Of each command line: exit status, length of the output, and slow modules that it was the first to import."""
    arguments = [sys.executable, "-c", PROBE_CODE, json.dumps(SLOW), json.dumps([*HELP, *COMPLETED])]
    process = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    result: dict[str, Any] = json.loads(process.stdout)
    return result


@pytest.mark.parametrize("line", [*HELP, *COMPLETED])
def test_help_and_completion_import_no_slow_library(outcomes: dict[str, Any], line: str) -> None:
    assert outcomes[line]["status"] in (0, None) and outcomes[line]["output_length"] > 20
    assert outcomes[line]["slow"] == []


@pytest.fixture
def complete(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], set[str]]:
    """The suggestions of bash at the end of a command line."""

    def call(line: str) -> set[str]:
        monkeypatch.setenv("_GAP_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        result = run()
        assert (result.code, result.err) == (0, "")
        return set(result.out.split())

    return call


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gap tra", {"train", "train-stylizer", "traverse"}),
        ("gap train --epo", {"--epochs"}),
        ("gap train --data mn", {"mnist", "mnist-5k"}),
        ("gap train --data f", {"fashion-mnist", "folder:"}),
        ("gap evaluate p", {"pgd"}),
        ("gap judge x --attack uap-", {"uap-sgd", "uap-sign-sgd"}),
        ("gap harden --attack tr", {"trades", "trades-start"}),
        ("gap train --classifier dr", {"drawing-standard", "drawing-hardened"}),
        ("gap inspect t", {"torchvision:", "timm:"}),
        ("gap pretrain --config mnist-h", {"mnist-hardened"}),
        ("gap configs mnist-h", {"mnist-hardened"}),
        ("gap train --precision ", {"auto", "bf16", "fp32"}),
        ("gap stylize a.png b.png --layers relu2_x,relu3", {"relu2_x,relu3_x"}),
        ("gap layer-robustness mnist-cnn --layers relu", {"relu1_1", "relu1_2"}),
        ("gap layer-robustness net.py:make --layers ", set()),
        ("gap visualize drawing-standard lay", {f"layer{stage}:" for stage in range(1, 5)}),
    ],
)
def test_completion_of_a_partial_word_gives_the_matching_suggestions(
    complete: Callable[[str], set[str]], line: str, expected: set[str]
) -> None:
    suggestions = complete(line)
    assert {suggestion for suggestion in suggestions if "." not in suggestion} == expected


def test_completion_of_folders_suggests_only_artifacts_of_the_right_kind(
    complete: Callable[[str], set[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kinds = {"runs/net": "classifier", "runs/per-image": "bounded_generator", "swift": "stylizer", "runs/odd": "[]"}
    for folder, kind in kinds.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "card.yaml").write_text(f"kind: {kind}\nformat: 1\n")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "card.yaml").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    assert complete("gap train --classifier r") == complete("gap inspect runs/") == {"runs/net"}
    assert complete("gap evaluate ru") == complete("gap perturb ") == {"runs/per-image"}
    assert complete("gap stylize a b --stylizer ") == {"swift"}
    assert complete("gap train --data folder:s") == {"folder:swift"}


def test_show_completion_option_prints_a_script(run: Callable[..., Any]) -> None:
    result = run("--show-completion", "bash")
    assert result.code == 0 and "_GAP_COMPLETE" in result.out


def test_name_lists_without_torch_equal_the_registries() -> None:
    assert set(ATTACK_NAMES) == set(list_attacks())
    assert set(LOSS_NAMES) == set(LOSSES)
    assert set(BUILTIN_DESCRIPTIONS) == set(BUILTIN)
