"""Where results are written: files, pipes, standard output; they are complete even where printing fails."""

import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gap.cli.commands.evaluate import evaluate
from gap.cli.commands.judge import judge
from gap.cli.commands.layer_robustness import layer_robustness
from gap.cli.drawing import check_output, progress_display
from gap.cli.options import Json
from gap.core.errors import GapError
from gap.imagery.objectives import Activations
from gap.imagery.optimize import OptimizationProgress


@pytest.fixture
def command(networks: Path) -> list[str]:
    """The arguments of an evaluation that takes a second and prints dashes."""
    return ["evaluate", "noise", "--classifier", f"{networks}:Net", "--input=1x28x28", "--budget=linf:0.1",
            "--images=20"]  # fmt: skip


@pytest.mark.parametrize("path", ["-", "/dev/stdout", "/dev/fd/1"])
def test_json_option_to_standard_output_prints_only_json_there(
    run: Callable[..., Any],
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    path: str,
) -> None:
    monkeypatch.setattr(os, "replace", lambda source, target: pytest.fail(f"{target} would be replaced"))
    result = run(*command, "--json", path)
    assert result.code == 0, result.err
    assert json.loads(capfd.readouterr().out)["rows"][0]["attack"] == "noise"
    assert result.out == "" and "under attack" in result.err


def test_json_option_to_standard_output_moves_prints_of_the_network_to_stderr(
    run: Callable[..., Any], command: list[str], networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda source, target: pytest.fail(f"{target} would be replaced"))
    networks.write_text(networks.read_text() + "\nprint('a word of the network')\n")
    result = run(*command, "--json", "-")
    assert result.out == "" and "a word of the network" in result.err


@pytest.mark.parametrize("verb", [evaluate, judge, layer_robustness])
def test_json_option_of_every_command_accepts_standard_output(verb: Callable[..., None]) -> None:
    assert inspect.signature(verb).parameters["json"].annotation is Json


def test_json_option_to_a_pipe_writes_the_table_to_it(
    run: Callable[..., Any], command: list[str], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    texts: list[str] = []
    reader = threading.Thread(target=lambda: texts.append(pipe.read_text()), daemon=True)
    reader.start()
    result = run(*command, "--json", pipe)
    reader.join(timeout=10)
    assert result.code == 0 and "under attack" in result.out
    assert len(json.loads(texts[0])["rows"]) == 1 and pipe.is_fifo()


def test_json_option_unwritable_path_exits_before_the_evaluation(
    run: Callable[..., Any], command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = run(*command, "--json", tmp_path / "file" / "results.json")
    assert "results.json cannot be written" in result.error_line
    assert "accuracy under attack" not in result.err


def test_evaluate_table_that_cannot_be_saved_is_still_printed(
    run: Callable[..., Any], command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def raise_no_space(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", raise_no_space)
    result = run(*command, "--json", tmp_path / "results.json")
    assert result.code == 2 and "noise" in result.out and "under attack" in result.out


def test_evaluate_table_is_saved_before_it_is_printed(
    run: Callable[..., Any], command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listings: list[set[str]] = []
    monkeypatch.setattr(
        "gap.cli.commands.evaluate.print_table", lambda *table: listings.append(set(os.listdir(tmp_path / "out")))
    )
    result = run(*command, "--json", tmp_path / "results.json", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert listings and listings[0] >= {"results.json", "pictures.png"} and (tmp_path / "results.json").is_file()


def test_evaluate_closed_output_streams_still_saves_the_table(command: list[str], tmp_path: Path) -> None:
    """Catches: a table that is lost where nobody reads the streams and their encoding lacks its dashes."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "gap", *command, "--json", "results.json"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"},
        stdout=writer,
        stderr=writer,
        check=False,
        timeout=120,
    )
    os.close(writer)
    assert result.returncode == 0
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 1


def test_check_output_pipe_or_link_is_accepted_and_left_unchanged(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("folder/drawn.png")
    for name in ("pipe.png", "link.png"):
        check_output(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link.png", "pipe.png"]
    assert (tmp_path / "pipe.png").is_fifo() and not os.listdir(tmp_path / "folder")


def test_traverse_unwritable_output_exits_before_the_traversal(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Image.new("L", (28, 28)).save(tmp_path / "digit.png")
    out = tmp_path / "file" / "walk.gif"
    result = run("traverse", "mnist-cnn", tmp_path / "digit.png", "--target-class=0", "--steps=1", "--out", out)
    assert "walk.gif cannot be written" in result.error_line and "->" not in result.out


def test_progress_display_error_while_drawing_saves_the_images_so_far() -> None:
    saved: list[torch.Tensor] = []
    images = torch.rand(1, 3, 4, 4)
    with suppress(ZeroDivisionError), progress_display(saved.append) as progress:
        progress(OptimizationProgress(0, 5, Activations(images, {}), torch.zeros(1)))
        raise ZeroDivisionError
    assert len(saved) == 1 and torch.equal(saved[0], images)


def test_progress_display_log_path_that_is_a_file_raises_gap_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(GapError, match="file cannot be written"),
        progress_display(lambda pictures: None, tmp_path / "file"),
    ):
        pass
