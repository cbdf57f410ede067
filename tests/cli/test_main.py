"""How the command ends: what it says, which process says it, and the exit status."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gap.cli import acts
from gap.process import Stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_demo_ends_it_in_one_line(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    def stopped(options: object, folder: Path, listeners: object, resume: bool) -> None:
        raise Stopped(3, 9, folder, number)

    monkeypatch.setattr(acts, "pretrain", stopped)
    ended = run("demo", "--out", tmp_path / "demo")
    assert ended.code == 128 + number
    assert ended.warnings == [
        f"gap: stopped at step 3 of 9, in {tmp_path / 'demo'}; gap demo begins from its beginning"
    ]
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_of_several_processes_one_complains(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rank: str, lines: int
) -> None:
    monkeypatch.setenv("RANK", rank)
    for given in (["trian"], ["train", "--config=nowhere.yaml", "--out=out"]):
        ended = run(*given)
        assert (ended.code, len(ended.err.splitlines())) == (2, lines)


def test_what_main_imports_is_without_torch() -> None:
    look = "import sys, gap.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False, timeout=60).returncode == 0


def test_version(run: Callable[..., Any]) -> None:
    ended = run("--version")
    assert ended.code == 0 and ended.out.startswith("gap-toolkit ") and "torch 2" in ended.out
