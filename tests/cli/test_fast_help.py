"""Help and completion come at once: neither imports torch or what comes with it. And what a shell completes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gap.models.classifier_names import BUILTIN_DESCRIPTIONS
from gap.models.classifiers import BUILTIN

from gap.attacks.names import ATTACK_NAMES
from gap.attacks.registry import list_attacks
from gap.cli.app import COMMANDS

SLOW = ("torch", "torchvision", "matplotlib", "kornia", "scipy", "accelerate", "timm", "PIL", "numpy")
TYPED = ("gap train --data mn", "gap evaluate p", "gap judge dr", "gap harden --attack tr", "gap train --config m")

# One process for all, since each costs half a second: what a command line imports is charged to the first that does.
LOOK = """
import contextlib, io, json, os, sys

import gap.cli.app

slow, seen, lines = set(json.loads(sys.argv[1])), {}, json.loads(sys.argv[2])
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
    seen[line] = {"status": status, "said": len(out.getvalue()), "slow": sorted(slow & (set(sys.modules) - before))}
print(json.dumps(seen))
"""
HELP = ("gap --help", *(f"gap {verb} --help" for verb in COMMANDS))


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """How each command line ended, how much it said, and which slow modules it was the first to import."""
    arguments = [sys.executable, "-c", LOOK, json.dumps(SLOW), json.dumps([*HELP, *TYPED])]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@pytest.mark.parametrize("line", [*HELP, *TYPED])
def test_help_and_completion_import_nothing_slow(seen: dict[str, Any], line: str) -> None:
    assert seen[line]["status"] in (0, None) and seen[line]["said"] > 20
    assert seen[line]["slow"] == []


@pytest.fixture
def complete(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], set[str]]:
    """What bash is offered at the end of a command line."""

    def call(line: str) -> set[str]:
        monkeypatch.setenv("_GAP_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        ended = run()
        assert (ended.code, ended.err) == (0, "")
        return set(ended.out.split())

    return call


@pytest.mark.parametrize(
    ("line", "offered"),
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
def test_completion(complete: Callable[[str], set[str]], line: str, offered: set[str]) -> None:
    found = complete(line)
    assert {each for each in found if "." not in each} == offered


def test_completion_of_folders(
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
    assert complete("gap stylize a b --fast ") == {"swift"}
    assert complete("gap train --data folder:s") == {"folder:swift"}


def test_completion_script(run: Callable[..., Any]) -> None:
    ended = run("--show-completion", "bash")
    assert ended.code == 0 and "_GAP_COMPLETE" in ended.out


def test_names_that_import_no_torch_are_those_of_the_registries() -> None:
    assert set(ATTACK_NAMES) == set(list_attacks())
    assert set(BUILTIN_DESCRIPTIONS) == set(BUILTIN)
