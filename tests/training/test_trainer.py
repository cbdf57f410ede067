"""The trainer: its schedule, the images that it reads, and its validation."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import STEPS, TinyTraining, run, split
from torch import Tensor, nn

from gap.core.artifact import CHECKPOINT
from gap.core.errors import GapError
from gap.data.dataset import InMemorySplit
from gap.training.checkpoint import read_checkpoint
from gap.training.options import TrainRuntimeOptions
from gap.training.runtime import make_accelerator
from gap.training.task import Backward
from gap.training.trainer import TrainingProgress, TrainingRun, TrainSchedule, _schedule, train


class RecordingSplit(InMemorySplit):
    """A split that records the order in which it is read."""

    read: list[Tensor]

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        self.read = []

        def recorded() -> Iterator[Tensor]:
            for indices in order:
                self.read.append(indices)
                yield indices

        return super().batches(recorded(), device)


def test_train_lowers_the_validation_loss(tmp_path: Path) -> None:
    metrics, training = run(tmp_path)
    untrained = TinyTraining()
    before = untrained.validation_step(*next(split(31, seed=1).batches([torch.arange(31)])))["loss"].mean().item()
    assert training.steps == STEPS
    assert metrics["loss"] < before


def test_schedule_rises_during_warmup_and_then_falls_to_zero() -> None:
    factors = [_schedule(step, 200, warmup=0.05) for step in range(200)]
    top = factors.index(max(factors))
    assert factors[top] == pytest.approx(1.0)
    assert top == 10
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[105] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3


def test_schedule_of_one_step_is_positive() -> None:
    assert _schedule(0, 1, warmup=0.05) > 0


@pytest.mark.parametrize("batch_size", [10, 7, 1000])
def test_train_epoch_reads_each_image_once(tmp_path: Path, batch_size: int) -> None:
    recording = split(40, kind=RecordingSplit)
    assert isinstance(recording, RecordingSplit)
    machine = make_accelerator(TrainRuntimeOptions(device="cpu", precision="fp32"))
    train(
        TinyTraining(),
        recording,
        split(3),
        TrainSchedule(epochs=3, batch_size=batch_size),
        TrainingRun(tmp_path, machine),
    )
    batch = min(batch_size, 40)
    per_epoch = 40 // batch
    assert [len(indices) for indices in recording.read] == [batch] * per_epoch * 3
    epochs = [torch.cat(recording.read[first : first + per_epoch]) for first in range(0, 3 * per_epoch, per_epoch)]
    for epoch in epochs:
        assert len(epoch.unique()) == len(epoch) == per_epoch * batch
    assert not torch.equal(epochs[0], epochs[1])


def test_train_validation_images_limits_the_validation(tmp_path: Path) -> None:
    recording = split(40, kind=RecordingSplit)
    assert isinstance(recording, RecordingSplit)
    machine = make_accelerator(TrainRuntimeOptions(device="cpu", precision="fp32"))
    train(
        TinyTraining(),
        split(40),
        recording,
        TrainSchedule(epochs=1, batch_size=10, validation_images=7),
        TrainingRun(tmp_path, machine),
    )
    assert torch.equal(torch.cat(recording.read), torch.arange(7))


class ValidationRecorder(TinyTraining):
    """Records the metrics of each validation; their number is part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.validations: list[dict[str, float]] = []

    def on_validation_end(self, metrics: Mapping[str, float]) -> None:
        self.validations.append(dict(metrics))

    def state_dict(self) -> dict[str, float]:
        return super().state_dict() | {"validations": len(self.validations)}


def test_train_on_validation_end_is_called_before_the_checkpoint_is_saved(tmp_path: Path) -> None:
    training, reported, saved = ValidationRecorder(), [], []

    def callback(progress: TrainingProgress) -> None:
        reported.extend([progress.validation_metrics] if progress.validation_metrics else [])
        saved.extend([read_checkpoint(tmp_path / CHECKPOINT)] if progress.step == 40 else [])

    run(tmp_path, callback, training=training)
    assert training.validations == reported and len(reported) == 2
    assert [(state["step"], state["training"]["validations"]) for state in saved] == [(25, 1)]


def test_train_loss_of_nan_stops_and_keeps_the_last_finite_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="no longer a number at step 40 of 50; the last good state is in"):
        run(tmp_path, training=TinyTraining(poison_at=30))
    checkpoint = read_checkpoint(tmp_path / CHECKPOINT)
    assert checkpoint["step"] == 25
    assert all(tensor.isfinite().all() for tensor in checkpoint["modules"]["classifier"]["network"].values())


class PoisonedUpdate(TinyTraining):
    """Its last update sets a weight to NaN, which no later loss can show."""

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        metrics = super().training_step(images, labels, backward)
        if self.steps == 50:
            next(self.modules["classifier"].unwrapped.parameters()).data[0] = float("nan")
        return metrics


def test_train_nan_weights_after_the_last_update_raise(tmp_path: Path) -> None:
    """Catches: NaN weights that are saved as a result."""
    with pytest.raises(GapError, match="weights of the classifier are no longer numbers after step 50"):
        run(tmp_path, training=PoisonedUpdate())


def test_train_loss_of_nan_in_the_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="nothing was kept yet"):
        run(
            tmp_path,
            training=TinyTraining(poison_at=1),
            schedule=TrainSchedule(epochs=2, batch_size=4, checkpoint_seconds=0),
        )
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("images", "batch_size", "message"),
    [
        (100, 5, "`batch_size` 5 does not divide over 2 processes"),
        (1, 4, "too few for 2"),
        (0, 4, "no training images"),
    ],
)
def test_train_batches_that_do_not_divide_over_processes_are_refused(
    tmp_path: Path, images: int, batch_size: int, message: str
) -> None:
    machine = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    with pytest.raises(GapError, match=message):
        train(TinyTraining(), split(images), split(3), TrainSchedule(1, batch_size), TrainingRun(tmp_path, machine))


def test_train_bf16_validates_in_float32(tmp_path: Path) -> None:
    training_dtypes, outputs = [], []

    class Typed(TinyTraining):
        def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
            training_dtypes.append(self.modules["classifier"].network[1](images.flatten(1)).dtype)
            return super().training_step(images, labels, backward)

        def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            network = self.modules["classifier"].network
            outputs.append((network[1](images.flatten(1)).dtype, network(images), nn.Sequential(*network)(images)))
            return super().validation_step(images, labels)

    machine = make_accelerator(TrainRuntimeOptions(device="cpu", precision="bf16"))
    train(Typed(), split(16), split(8), TrainSchedule(epochs=1, batch_size=8), TrainingRun(tmp_path, machine))
    assert set(training_dtypes) == {torch.bfloat16}
    for dtype, logits, plain in outputs:
        assert dtype == logits.dtype == torch.float32 and torch.equal(logits, plain)
