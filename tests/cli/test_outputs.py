"""Where results go: files, pipes, standard output; and that they are there whatever becomes of what is printed."""

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
    """An evaluation that takes a second and prints dashes."""
    return ["evaluate", "noise", "--classifier", f"{networks}:Net", "--input=1x28x28", "--budget=linf:0.1",
            "--images=20"]  # fmt: skip


@pytest.mark.parametrize("path", ["-", "/dev/stdout", "/dev/fd/1"])
def test_json_to_standard_output_is_alone_there(
    run: Callable[..., Any],
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    path: str,
) -> None:
    monkeypatch.setattr(os, "replace", lambda source, target: pytest.fail(f"{target} would be replaced"))
    ended = run(*command, "--json", path)
    assert ended.code == 0, ended.err
    assert json.loads(capfd.readouterr().out)["rows"][0]["attack"] == "noise"
    assert ended.out == "" and "under attack" in ended.err


def test_json_to_standard_output_keeps_it_from_a_network_that_prints(
    run: Callable[..., Any], command: list[str], networks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda source, target: pytest.fail(f"{target} would be replaced"))
    networks.write_text(networks.read_text() + "\nprint('a word of the network')\n")
    ended = run(*command, "--json", "-")
    assert ended.out == "" and "a word of the network" in ended.err


@pytest.mark.parametrize("verb", [evaluate, judge, layer_robustness])
def test_every_json_option_knows_standard_output(verb: Callable[..., None]) -> None:
    assert inspect.signature(verb).parameters["json"].annotation is Json


def test_json_to_a_pipe_reaches_its_reader(run: Callable[..., Any], command: list[str], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    parts: list[str] = []
    reader = threading.Thread(target=lambda: parts.append(pipe.read_text()), daemon=True)
    reader.start()
    ended = run(*command, "--json", pipe)
    reader.join(timeout=10)
    assert ended.code == 0 and "under attack" in ended.out
    assert len(json.loads(parts[0])["rows"]) == 1 and pipe.is_fifo()


def test_json_that_cannot_be_written_is_refused_before_the_work(
    run: Callable[..., Any], command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    ended = run(*command, "--json", tmp_path / "file" / "table.json")
    assert "table.json cannot be written" in ended.complaint
    assert "left" not in ended.err


def test_table_that_cannot_be_saved_is_still_printed(
    run: Callable[..., Any], command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    ended = run(*command, "--json", tmp_path / "table.json")
    assert ended.code == 2 and "noise" in ended.out and "under attack" in ended.out


def test_table_is_saved_before_it_is_printed(
    run: Callable[..., Any], command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[set[str]] = []
    monkeypatch.setattr(
        "gap.cli.commands.evaluate.print_table", lambda *table: seen.append(set(os.listdir(tmp_path / "out")))
    )
    ended = run(*command, "--json", tmp_path / "table.json", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert seen and seen[0] >= {"table.json", "pictures.png"} and (tmp_path / "table.json").is_file()


def test_table_is_saved_where_nothing_can_be_printed(command: list[str], tmp_path: Path) -> None:
    """The readers of both streams are gone, and the encoding lacks the dashes of the table."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "gap", *command, "--json", "table.json"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"},
        stdout=writer,
        stderr=writer,
        check=False,
        timeout=120,
    )
    os.close(writer)
    assert ended.returncode == 0
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 1


def test_drawing_to_a_pipe_or_through_a_link_is_checked_without_a_trace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("folder/drawn.png")
    for name in ("pipe.png", "link.png"):
        check_output(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link.png", "pipe.png"]
    assert (tmp_path / "pipe.png").is_fifo() and not os.listdir(tmp_path / "folder")


def test_video_that_cannot_be_written_is_refused_before_the_walk(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Image.new("L", (28, 28)).save(tmp_path / "digit.png")
    out = tmp_path / "file" / "walk.gif"
    ended = run("traverse", "mnist-cnn", tmp_path / "digit.png", "--target-class=0", "--steps=1", "--out", out)
    assert "walk.gif cannot be written" in ended.complaint and "->" not in ended.out


def test_drawing_whose_backbone_fails_keeps_the_pictures_so_far() -> None:
    kept: list[torch.Tensor] = []
    pictures = torch.rand(1, 3, 4, 4)
    with suppress(ZeroDivisionError), progress_display(kept.append) as stand:
        stand(OptimizationProgress(0, 5, Activations(pictures, {}), torch.zeros(1)))
        raise ZeroDivisionError
    assert len(kept) == 1 and torch.equal(kept[0], pictures)


def test_log_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(GapError, match="file cannot be written"),
        progress_display(lambda pictures: None, tmp_path / "file"),
    ):
        pass
