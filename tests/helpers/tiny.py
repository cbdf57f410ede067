"""A tiny work, to watch the loop at. Run as a script, `tiny.py FOLDER`, it trains there and kills itself half-way."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.core.artifact import METRICS
from gap.data.dataset import InMemorySplit
from gap.training.callbacks import MetricsLog
from gap.training.options import TrainRuntimeOptions
from gap.training.runtime import make_accelerator
from gap.training.task import Backward, OptimizedModule, TrainingTask, with_adamw
from gap.training.trainer import Callback, TrainingProgress, TrainingRun, TrainSchedule, train

SCHEDULE = TrainSchedule(epochs=2, batch_size=4, seed=3)
STEPS = 50


class TinyTraining(TrainingTask):
    """A classifier with all that a step can depend on: buffers, random choices, and a number it carries along."""

    def __init__(self, poison_at: int | None = None) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.modules: dict[str, OptimizedModule] = {"classifier": with_adamw(network, 0.02)}
        self.poison_at = poison_at
        self.steps = 0
        self.pull = 0.0

    def training_step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        self.steps += 1
        module = self.modules["classifier"]
        loss = F.cross_entropy(module.network(images), labels) * (1 + self.pull)
        if self.steps == self.poison_at:
            loss = loss * float("nan")
        module.update(loss, backward)
        self.pull = 0.9 * self.pull + 0.1 * torch.rand(()).item()
        return {"loss": loss}

    def validation_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.modules["classifier"].network(images)
        return {"accuracy": logits.argmax(dim=1) == labels, "loss": F.cross_entropy(logits, labels, reduction="none")}

    def state_dict(self) -> dict[str, float]:
        return {"pull": self.pull}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.pull = state["pull"]


def split(count: int, seed: int = 0, kind: type[InMemorySplit] = InMemorySplit) -> InMemorySplit:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 3, 3), generator=generator, dtype=torch.uint8)
    return kind(images, (images[:, 0, 1, 1] > 127).long())


def run(
    folder: Path,
    *callbacks: Callback,
    training: TinyTraining | None = None,
    schedule: TrainSchedule = SCHEDULE,
    resume: bool = False,
    fingerprints: dict[str, str] | None = None,
) -> tuple[dict[str, float], TinyTraining]:
    folder.mkdir(exist_ok=True)
    training = training or TinyTraining()
    machine = make_accelerator(TrainRuntimeOptions(device="cpu", precision="fp32"))
    data = split(100), split(31, seed=1)
    metrics = train(training, *data, schedule, TrainingRun(folder, machine, callbacks, resume), fingerprints)
    return metrics, training


def at_step(step: int, act: Callable[[], None]) -> Callback:
    def listen(progress: TrainingProgress) -> None:
        if progress.step == step:
            act()

    return listen


def same_networks(one: TinyTraining, other: TinyTraining) -> bool:
    ours, theirs = (training.modules["classifier"].unwrapped.state_dict() for training in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and one.pull == other.pull


def signals(*numbers: signal.Signals) -> Callable[[], None]:
    def act() -> None:
        for number in numbers:
            signal.raise_signal(number)

    return act


def told(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    killing = at_step(40, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(
        out,
        MetricsLog(out),
        killing,
        schedule=TrainSchedule(SCHEDULE.epochs, SCHEDULE.batch_size, SCHEDULE.seed, checkpoint_seconds=0),
    )
