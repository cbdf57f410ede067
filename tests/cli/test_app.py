"""How the command ends: what it says, which process says it, and the exit status."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gap.cli import demo_sections as sections
from gap.cli.commands import configs
from gap.core.errors import GapError
from gap.core.process import TrainingInterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_demo_ends_it_in_one_line(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    def stopped(options: object, folder: Path, callbacks: object, resume: bool) -> None:
        raise TrainingInterrupted(3, 9, folder, number)

    monkeypatch.setattr(sections, "pretrain_from_options", stopped)
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
    look = "import sys, gap.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False, timeout=60).returncode == 0


def test_version(run: Callable[..., Any]) -> None:
    ended = run("--version")
    assert ended.code == 0 and ended.out.startswith("gap-toolkit ") and "torch 2" in ended.out


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_foreign_error_is_one_line_and_status_1(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(RuntimeError("\nfirst line\nsecond line")))
    ended = run("configs")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "gap: RuntimeError: first line; run again with --debug for the whole traceback\n"


def test_foreign_error_without_words_is_named(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(AssertionError()))
    assert run("configs").err.startswith("gap: AssertionError; run again")


def test_foreign_error_of_any_process_is_said(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(RuntimeError("only here")))
    monkeypatch.setenv("RANK", "1")
    assert "only here" in run("configs").err


@pytest.mark.parametrize("arguments", [("--debug", "configs"), ("configs", "--debug"), ("configs", "x", "--debug")])
def test_debug_anywhere_shows_the_traceback(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(RuntimeError("first line\nsecond line")))
    ended = run(*arguments)
    assert ended.code == 1
    assert "Traceback" in ended.err and "second line" in ended.err
    assert ended.err.splitlines()[-1].startswith("gap: RuntimeError: first line")


def test_debug_shows_the_cause_of_an_error_of_ours(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    error = GapError("ours")
    error.__cause__ = KeyError("theirs")
    monkeypatch.setattr(configs, "named_configs", failing(error))
    ended = run("--debug", "configs")
    assert ended.code == 2
    assert "KeyError: 'theirs'" in ended.err and ended.err.splitlines()[-1] == "gap: ours"


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_by_its_variable_shows_the_traceback(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, value: str, shown: bool
) -> None:
    monkeypatch.setenv("GAP_DEBUG", value)
    assert ("Traceback" in run("configs", "nowhere").err) == shown


def test_debug_after_two_dashes_is_an_argument(run: Callable[..., Any]) -> None:
    assert "'--debug'" in run("configs", "--", "--debug").complaint


def test_debug_stands_in_the_help(run: Callable[..., Any]) -> None:
    assert "--debug" in run("--help").out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_says_what_to_make_smaller(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(error))
    ended = run("configs")
    (line,) = ended.err.splitlines()
    assert ended.code == 1
    assert line.startswith(f"gap: out of memory ({type(error).__name__}") and "--batch-size" in line


def test_interrupted_verb_is_silent_and_has_status_130(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(KeyboardInterrupt()))
    assert run("configs", "--debug") == (130, "", "")
