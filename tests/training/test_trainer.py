"""The training loop: the schedule, what is read, what is judged."""

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


class Listing(InMemorySplit):
    """A split that keeps the order in which it is read."""

    read: list[Tensor]

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        self.read = []

        def noted() -> Iterator[Tensor]:
            for indices in order:
                self.read.append(indices)
                yield indices

        return super().batches(noted(), device)


def test_learns_something(tmp_path: Path) -> None:
    metrics, training = run(tmp_path)
    fresh = TinyTraining()
    before = fresh.validation_step(*next(split(31, seed=1).batches([torch.arange(31)])))["loss"].mean().item()
    assert training.steps == STEPS
    assert metrics["loss"] < before


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    shares = [_schedule(step, 200, warmup=0.05) for step in range(200)]
    top = shares.index(max(shares))
    assert shares[top] == pytest.approx(1.0)
    assert top == 10
    assert shares[0] == pytest.approx(1 / 11)
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert shares[105] == pytest.approx(0.5)
    assert 0 < shares[-1] < 1e-3


def test_one_step_is_a_step() -> None:
    assert _schedule(0, 1, warmup=0.05) > 0


@pytest.mark.parametrize("batch_size", [10, 7, 1000])
def test_an_epoch_reads_each_image_once(tmp_path: Path, batch_size: int) -> None:
    listing = split(40, kind=Listing)
    assert isinstance(listing, Listing)
    machine = make_accelerator(TrainRuntimeOptions(device="cpu", precision="fp32"))
    train(
        TinyTraining(),
        listing,
        split(3),
        TrainSchedule(epochs=3, batch_size=batch_size),
        TrainingRun(tmp_path, machine),
    )
    batch = min(batch_size, 40)
    per_epoch = 40 // batch
    assert [len(indices) for indices in listing.read] == [batch] * per_epoch * 3
    epochs = [torch.cat(listing.read[first : first + per_epoch]) for first in range(0, 3 * per_epoch, per_epoch)]
    for epoch in epochs:
        assert len(epoch.unique()) == len(epoch) == per_epoch * batch
    assert not torch.equal(epochs[0], epochs[1])


def test_so_many_held_out_images_are_judged_on_as_were_asked_for(tmp_path: Path) -> None:
    listing = split(40, kind=Listing)
    assert isinstance(listing, Listing)
    machine = make_accelerator(TrainRuntimeOptions(device="cpu", precision="fp32"))
    train(
        TinyTraining(),
        split(40),
        listing,
        TrainSchedule(epochs=1, batch_size=10, validation_images=7),
        TrainingRun(tmp_path, machine),
    )
    assert torch.equal(torch.cat(listing.read), torch.arange(7))


class HearingTraining(TinyTraining):
    """Keeps what it hears, and carries along how often that was."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[dict[str, float]] = []

    def on_validation_end(self, metrics: Mapping[str, float]) -> None:
        self.heard.append(dict(metrics))

    def state_dict(self) -> dict[str, float]:
        return super().state_dict() | {"heard": len(self.heard)}


def test_a_training_hears_what_each_epoch_was_judged_before_it_is_saved(tmp_path: Path) -> None:
    training, judged, saved = HearingTraining(), [], []

    def listen(progress: TrainingProgress) -> None:
        judged.extend([progress.validation_metrics] if progress.validation_metrics else [])
        saved.extend([read_checkpoint(tmp_path / CHECKPOINT)] if progress.step == 40 else [])

    run(tmp_path, listen, training=training)
    assert training.heard == judged and len(judged) == 2
    assert [(state["step"], state["training"]["heard"]) for state in saved] == [(25, 1)]


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="no longer a number at step 40 of 50; the last good state is in"):
        run(tmp_path, training=TinyTraining(poison_at=30))
    kept = read_checkpoint(tmp_path / CHECKPOINT)
    assert kept["step"] == 25
    assert all(tensor.isfinite().all() for tensor in kept["modules"]["classifier"]["network"].values())


class PoisonedUpdate(TinyTraining):
    """Its last update, which no loss sees, leaves a weight that is NaN."""

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        metrics = super().training_step(images, labels, backward)
        if self.steps == 50:
            next(self.modules["classifier"].unwrapped.parameters()).data[0] = float("nan")
        return metrics


def test_train_whose_last_update_leaves_nan_weights_refuses_the_result(tmp_path: Path) -> None:
    """Catches: NaN weights that are saved as a success."""
    with pytest.raises(GapError, match="weights of the classifier are no longer numbers after step 50"):
        run(tmp_path, training=PoisonedUpdate())


def test_a_loss_that_is_no_number_at_once_says_that_nothing_was_kept(tmp_path: Path) -> None:
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
def test_portions_that_cannot_be_dealt_out(tmp_path: Path, images: int, batch_size: int, message: str) -> None:
    two = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    with pytest.raises(GapError, match=message):
        train(TinyTraining(), split(images), split(3), TrainSchedule(1, batch_size), TrainingRun(tmp_path, two))


def test_bf16_is_for_learning_and_float32_for_judging(tmp_path: Path) -> None:
    learned, judged = [], []

    class Typed(TinyTraining):
        def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
            learned.append(self.modules["classifier"].network[1](images.flatten(1)).dtype)
            return super().training_step(images, labels, backward)

        def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            network = self.modules["classifier"].network
            judged.append((network[1](images.flatten(1)).dtype, network(images), nn.Sequential(*network)(images)))
            return super().validation_step(images, labels)

    machine = make_accelerator(TrainRuntimeOptions(device="cpu", precision="bf16"))
    train(Typed(), split(16), split(8), TrainSchedule(epochs=1, batch_size=8), TrainingRun(tmp_path, machine))
    assert set(learned) == {torch.bfloat16}
    for dtype, logits, plain in judged:
        assert dtype == logits.dtype == torch.float32 and torch.equal(logits, plain)
