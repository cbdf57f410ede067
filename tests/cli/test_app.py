"""How a command ends: its output, the process that writes it, and the exit status."""

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


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_demo_signal_ends_it_with_one_line_and_the_status_of_the_signal(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signal_number: signal.Signals
) -> None:
    def interrupted(options: object, folder: Path, callbacks: object, resume: bool) -> None:
        raise TrainingInterrupted(3, 9, folder, signal_number)

    monkeypatch.setattr(sections, "pretrain_from_options", interrupted)
    result = run("demo", "--out", tmp_path / "demo")
    assert result.code == 128 + signal_number
    assert result.warnings == [
        f"gap: stopped at step 3 of 9, in {tmp_path / 'demo'}; gap demo begins from its beginning"
    ]
    assert "Traceback" not in result.err


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_main_several_processes_only_rank_0_prints_the_error(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rank: str, lines: int
) -> None:
    monkeypatch.setenv("RANK", rank)
    for arguments in (["trian"], ["train", "--config=nowhere.yaml", "--out=out"]):
        result = run(*arguments)
        assert (result.code, len(result.err.splitlines())) == (2, lines)


def test_app_import_does_not_import_torch() -> None:
    code = "import sys, gap.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_version_option_prints_the_versions_of_gap_and_torch(run: Callable[..., Any]) -> None:
    result = run("--version")
    assert result.code == 0 and result.out.startswith("gap-toolkit ") and "torch 2" in result.out


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_main_unexpected_error_is_one_line_and_status_1(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(RuntimeError("\nfirst line\nsecond line")))
    result = run("configs")
    assert (result.code, result.out) == (1, "")
    assert result.err == "gap: RuntimeError: first line; run again with --debug for the whole traceback\n"


def test_main_unexpected_error_without_message_prints_its_type(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(AssertionError()))
    assert run("configs").err.startswith("gap: AssertionError; run again")


def test_main_unexpected_error_is_printed_by_every_process(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: an error of a rank other than 0 that is hidden, as errors of gap are."""
    monkeypatch.setattr(configs, "named_configs", failing(RuntimeError("only here")))
    monkeypatch.setenv("RANK", "1")
    assert "only here" in run("configs").err


@pytest.mark.parametrize("arguments", [("--debug", "configs"), ("configs", "--debug"), ("configs", "x", "--debug")])
def test_debug_option_at_any_position_shows_the_traceback(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(RuntimeError("first line\nsecond line")))
    result = run(*arguments)
    assert result.code == 1
    assert "Traceback" in result.err and "second line" in result.err
    assert result.err.splitlines()[-1].startswith("gap: RuntimeError: first line")


def test_debug_option_gap_error_shows_its_cause(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    error = GapError("outer")
    error.__cause__ = KeyError("inner")
    monkeypatch.setattr(configs, "named_configs", failing(error))
    result = run("--debug", "configs")
    assert result.code == 2
    assert "KeyError: 'inner'" in result.err and result.err.splitlines()[-1] == "gap: outer"


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_environment_variable_shows_the_traceback(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, value: str, shown: bool
) -> None:
    monkeypatch.setenv("GAP_DEBUG", value)
    assert ("Traceback" in run("configs", "nowhere").err) == shown


def test_debug_option_after_two_dashes_is_an_argument(run: Callable[..., Any]) -> None:
    assert "'--debug'" in run("configs", "--", "--debug").error_line


def test_debug_option_is_listed_in_the_help(run: Callable[..., Any]) -> None:
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
def test_main_out_of_memory_error_names_the_options_to_reduce(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(error))
    result = run("configs")
    (line,) = result.err.splitlines()
    assert result.code == 1
    assert line.startswith(f"gap: out of memory ({type(error).__name__}") and "--batch-size" in line


def test_main_keyboard_interrupt_is_silent_with_status_130(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "named_configs", failing(KeyboardInterrupt()))
    assert run("configs", "--debug") == (130, "", "")
