import errno
import json
import os
from pathlib import Path

import pytest

from gap.core.artifact import METRICS
from gap.core.errors import GapError
from gap.training.callbacks import MetricsLog, ProgressBar, TensorBoard
from gap.training.trainer import TrainingProgress

FULL = Path("/dev/full")
needs_a_full_disk = pytest.mark.skipif(
    not FULL.exists(), reason="/dev/full, which stands for a full disk, exists on Linux only"
)


def progress(step: int, **metrics: float) -> TrainingProgress:
    return TrainingProgress(step, steps=10, epoch=step / 10, metrics=metrics, images_per_second=1.0)


def log_of(folder: Path, *lines: str) -> Path:
    (folder / METRICS).write_text("".join(lines))
    return folder / METRICS


def lines(*steps: int) -> list[str]:
    return [json.dumps({"step": step, "loss": 0.5}) + "\n" for step in steps]


def test_metrics_log_resumed_keeps_the_lines_up_to_the_checkpoint(tmp_path: Path) -> None:
    path = log_of(tmp_path, *lines(1, 2), '{"step": 1}}\n', "[]\n", "\n", *lines(3, 4), '{"step": 2, "lo')
    log = MetricsLog(tmp_path)
    log(progress(2))
    assert path.read_text() == "".join(lines(1, 2))
    log(progress(3, loss=0.25))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert os.listdir(tmp_path) == [METRICS]


def test_metrics_log_full_disk_while_resuming_keeps_the_old_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = log_of(tmp_path, *lines(1, 2, 3))

    def raise_full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", raise_full_disk)
    with pytest.raises(GapError, match=f"{METRICS} cannot be written: No space left on device"):
        MetricsLog(tmp_path)(progress(2))
    assert path.read_text() == "".join(lines(1, 2, 3))
    assert os.listdir(tmp_path) == [METRICS]


@needs_a_full_disk
def test_metrics_log_full_disk_raises_with_its_name(tmp_path: Path) -> None:
    (tmp_path / METRICS).symlink_to(FULL)
    with pytest.raises(GapError, match=f"^{tmp_path / METRICS} cannot be written: No space left on device"):
        MetricsLog(tmp_path)(progress(1, loss=0.5))


def test_tensorboard_folder_that_cannot_be_made_raises(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(GapError, match="tensorboard cannot be written"):
        TensorBoard(tmp_path)(progress(0))


@pytest.mark.parametrize(("rank", "shown"), [(None, True), ("0", True), ("1", False)])
def test_progress_bar_several_processes_only_the_main_one_prints(
    rank: str | None, shown: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    for terminal in ("", "1"):
        monkeypatch.setenv("FORCE_COLOR", terminal)
        with ProgressBar("work", every=0.0) as callback:
            callback(progress(0))
            callback(progress(1, loss=0.5))
            callback(TrainingProgress(2, 10, 0.2, {"loss": 0.25}, 1.0, validation_metrics={"accuracy": 0.75}))
        out, err = capfd.readouterr()
        assert out == ""
        assert ("work" in err and "0.75" in err) if shown else err == ""
