"""Checkpoints: a run that was stopped or killed resumes to the same result; foreign and damaged files are refused."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from tiny import STEPS, TinyTraining, at_step, run, same_networks, signals, told

from gap.core.artifact import CHECKPOINT, METRICS
from gap.core.errors import GapError
from gap.core.process import TrainingInterrupted
from gap.training.callbacks import MetricsLog
from gap.training.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, float], TinyTraining, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    metrics, training = run(folder, MetricsLog(folder))
    return metrics, training, told(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_train_stopped_and_resumed_equals_an_uninterrupted_run(
    tmp_path: Path, number: signal.Signals, uninterrupted: tuple[dict[str, float], TinyTraining, list[dict[str, float]]]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=f"stopped at step 20 of {STEPS}.*`resume` `out`") as stopped:
        run(tmp_path, MetricsLog(tmp_path), at_step(20, lambda: signal.raise_signal(number)))
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    metrics, training = run(tmp_path, MetricsLog(tmp_path), resume=True)
    assert training.steps == STEPS - 20
    assert metrics == uninterrupted[0]
    assert same_networks(training, uninterrupted[1])
    assert told(tmp_path) == uninterrupted[2]


def test_train_stopped_at_the_last_step_resumes_without_a_step(
    tmp_path: Path, uninterrupted: tuple[dict[str, float], TinyTraining, list[dict[str, float]]]
) -> None:
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, at_step(STEPS, lambda: signal.raise_signal(signal.SIGTERM)))
    metrics, training = run(tmp_path, resume=True)
    assert training.steps == 0
    assert metrics == uninterrupted[0]
    assert same_networks(training, uninterrupted[1])


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
    ],
)
def test_train_further_signals_of_a_launcher_wait_for_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: tuple[signal.Signals, ...]
) -> None:
    """The first signal arrives during a step, the others while the checkpoint is written."""
    save = torch.save

    def interrupted_save(*arguments: object) -> None:
        signals(*numbers[1:])()
        save(*arguments)

    monkeypatch.setattr(torch, "save", interrupted_save)
    with pytest.raises(TrainingInterrupted) as stopped:
        run(tmp_path, at_step(20, signals(numbers[0])))
    assert stopped.value.code == 128 + numbers[0]
    assert read_checkpoint(tmp_path / CHECKPOINT)["step"] == 20


@pytest.mark.parametrize("between", [(), (signal.SIGTERM,)])
def test_train_second_interrupt_exits_without_a_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    between: tuple[signal.Signals, ...],
) -> None:
    def raise_exit(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", raise_exit)
    with pytest.raises(SystemExit) as end:
        run(tmp_path, at_step(20, signals(signal.SIGINT, *between, signal.SIGINT)))
    assert end.value.code == 130
    assert "nothing saved since the last checkpoint" in capfd.readouterr().err
    assert not (tmp_path / CHECKPOINT).exists()


FINGERPRINTS = {"the classifier net": "1f", "the train images of digits": "2e"}


def test_resume_same_fingerprints_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, at_step(20, signals(signal.SIGTERM)), fingerprints=FINGERPRINTS)
    assert run(tmp_path, resume=True, fingerprints=FINGERPRINTS)[1].steps == STEPS - 20


@pytest.mark.parametrize(
    ("fingerprints", "changed"),
    [
        (FINGERPRINTS | {"the classifier net": "0"}, "the classifier net"),
        (FINGERPRINTS | {"the train images of digits": "0"}, "the train images of digits"),
        (FINGERPRINTS | {"the classifier other": "0"}, "the classifier other"),
        ({}, "the classifier net and the train images of digits"),
    ],
)
def test_resume_changed_fingerprints_are_refused(tmp_path: Path, fingerprints: dict[str, str], changed: str) -> None:
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, at_step(20, signals(signal.SIGTERM)), fingerprints=FINGERPRINTS)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(GapError, match=f"^{changed} changed since .*{CHECKPOINT} was saved; .*`overwrite`$"):
        run(tmp_path, resume=True, fingerprints=fingerprints)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_train_killed_and_resumed_equals_an_uninterrupted_run(
    tmp_path: Path, uninterrupted: tuple[dict[str, float], TinyTraining, list[dict[str, float]]]
) -> None:
    same_threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run([sys.executable, tiny.__file__, tmp_path], env=same_threads, timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    with (tmp_path / METRICS).open("a") as log:
        log.write('{"step": 41, "lo')
    metrics, training = run(tmp_path, MetricsLog(tmp_path), resume=True)
    assert training.steps == STEPS - 39
    assert metrics == uninterrupted[0]
    assert same_networks(training, uninterrupted[1])
    assert told(tmp_path) == uninterrupted[2]


def test_read_checkpoint_truncated_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, at_step(20, lambda: signal.raise_signal(signal.SIGTERM)))
    path = tmp_path / CHECKPOINT
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(GapError, match=f"{CHECKPOINT} "):
            run(tmp_path, resume=True)
        assert path.stat().st_size == length


class _MakesFolder:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.fspath(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_read_checkpoint_pickle_with_code_is_refused_and_not_executed(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    folder = tmp_path / "trap"
    save({"step": 1, "modules": {}, "training": _MakesFolder(folder)}, tmp_path / CHECKPOINT)
    with pytest.raises(GapError, match="holds more than tensors"):
        run(tmp_path, resume=True)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {}}, "not a checkpoint of this work: 'pull'"),
        ({"modules": {}}, "not a checkpoint of this work: 'classifier'"),
        ({"fingerprints": None}, "not a checkpoint of this work"),
        ({"steps": 60}, "is of a work of 60 steps, and this one has 50"),
    ],
)
def test_resume_checkpoint_of_another_training_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, at_step(20, lambda: signal.raise_signal(signal.SIGTERM)))
    torch.save(read_checkpoint(tmp_path / CHECKPOINT) | change, tmp_path / CHECKPOINT)
    with pytest.raises(GapError, match=message):
        run(tmp_path, resume=True)


def test_read_checkpoint_other_file_of_torch_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / CHECKPOINT)
    with pytest.raises(GapError, match="is not a checkpoint of gap"):
        read_checkpoint(tmp_path / CHECKPOINT)


def test_resume_checkpoint_with_non_finite_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, at_step(20, lambda: signal.raise_signal(signal.SIGTERM)))
    state = read_checkpoint(tmp_path / CHECKPOINT)
    state["modules"]["classifier"]["optimizer"]["state"][0]["exp_avg"][0, :2] = torch.inf
    state["modules"]["classifier"]["network"]["2.running_mean"][3] = torch.nan
    torch.save(state, tmp_path / CHECKPOINT)
    wanted = (
        r"checkpoint.pt cannot be used: modules\.classifier\.\S+ has \d of \d+ values .*\(3 in all\); .*`overwrite`"
    )
    with pytest.raises(GapError, match=wanted) as error:
        run(tmp_path, resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda module: module["network"].update({"1.weight": module["network"]["1.weight"].int()}),
            "holds int32 values",
        ),
        (lambda module: module["network"].update({"2.running_var": torch.full((8,), -1.0)}), "has a variance below 0"),
        (lambda module: module.update(network=3), "is not a checkpoint of this work"),
        (
            lambda module: module["optimizer"]["state"][0].update(exp_avg=torch.zeros(1, 9)),
            "weight 0 is of another shape",
        ),
        (lambda module: module["optimizer"].pop("param_groups"), "is not a checkpoint of this work: 'param_groups'"),
    ],
)
def test_resume_checkpoint_with_a_damaged_module_is_refused(
    tmp_path: Path, change: Callable[[dict[str, dict[str, object]]], object], message: str
) -> None:
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, at_step(20, lambda: signal.raise_signal(signal.SIGTERM)))
    state = read_checkpoint(tmp_path / CHECKPOINT)
    change(state["modules"]["classifier"])
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(GapError, match=message):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("step", ["20", -1, True])
def test_read_checkpoint_invalid_step_is_refused(tmp_path: Path, step: object) -> None:
    torch.save({"step": step, "modules": {}, "training": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(GapError, match="is damaged: its step is"):
        read_checkpoint(tmp_path / CHECKPOINT)
