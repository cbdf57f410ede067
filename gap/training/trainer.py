"""The one loop that every training uses: batches, learning rates, checkpoints, resume, and leaving cleanly."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, extract_model_from_parallel
from torch import Tensor

from gap.core.artifact import CHECKPOINT, Artifact, save_artifact
from gap.core.errors import GapError, first_line
from gap.core.files import atomic_write
from gap.core.network import NetworkError
from gap.core.process import TrainingInterrupted
from gap.core.safe_load import load_optimizer_checked, load_state_dict_checked
from gap.data.dataset import Split, sequential_batches
from gap.training.checkpoint import START_AGAIN, check_fingerprints, read_checkpoint
from gap.training.task import TrainingTask


@dataclass(frozen=True)
class TrainSchedule:
    """How long and in what portions: `batch_size` counts all processes; the learning rate warms up, then falls to 0.

    After each epoch the first `validation_images` held-out images are used for validation; where that is None, all.
    """

    epochs: float
    batch_size: int
    seed: int = 0
    validation_images: int | None = None
    warmup: float = 0.05
    checkpoint_seconds: float = 30.0

    def steps(self, images: int) -> int:
        """How many steps that makes of a training split of so many images."""
        return max(1, round(self.epochs * (images // max(1, min(self.batch_size, images)))))


@dataclass(frozen=True)
class TrainingProgress:
    """What every callback hears: a terminal, TensorBoard, a log. Rates are in images a second over all processes.

    The first one comes before anything is learned and holds no metrics. `validation_metrics` holds those on held-out
    images where this is the end of an epoch; else it is empty.
    """

    step: int
    steps: int
    epoch: float
    metrics: dict[str, float]
    images_per_second: float
    validation_metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


Callback = Callable[[TrainingProgress], None]


@dataclass(frozen=True)
class TrainingRun:
    """Where a training is kept, where it computes, what hears of it, and whether it goes on from its checkpoint."""

    folder: Path
    accelerator: Accelerator
    callbacks: Sequence[Callback] = ()
    resume: bool = False

    def save(self, kind: str, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Artifact:
        """Leave the artifact in the folder. Only the main process writes it; the others have its card alone."""
        if not self.accelerator.is_main_process:
            return Artifact(self.folder, {"kind": kind, **card})
        return save_artifact(self.folder, kind, tensors, card)


def train(
    training: TrainingTask,
    split: Split,
    held_out: Split,
    schedule: TrainSchedule,
    run: TrainingRun,
    fingerprints: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Run a training to its end and return its last metrics on `held_out`.

    `fingerprints` says what the work is made of, as hashes by name: it is kept with the checkpoint, and resuming on
    something else is refused.
    Every step is a function of (seed, step, process): an interrupted run, resumed, ends where an unbroken one ends.
    Raises TrainingInterrupted after SIGINT or SIGTERM, with the work saved, and GapError when the loss is no longer
    finite.
    """
    return _Trainer(training, split, held_out, schedule, run, fingerprints or {}).run(run.resume)


class _Trainer:
    def __init__(
        self,
        training: TrainingTask,
        split: Split,
        held_out: Split,
        schedule: TrainSchedule,
        run: TrainingRun,
        fingerprints: Mapping[str, str],
    ) -> None:
        self.training, self.split, self.held_out, self.schedule = training, split, held_out, schedule
        self.folder, self.accelerator, self.fingerprints = run.folder, run.accelerator, dict(fingerprints)
        accelerator = run.accelerator
        self.callbacks = run.callbacks if accelerator.is_main_process else ()
        world = accelerator.num_processes
        if schedule.batch_size % world:
            raise GapError(f"`batch_size` {schedule.batch_size} does not divide over {world} processes")
        if len(split) == 0:
            raise GapError("there are no training images; use data with at least five pictures")
        self.batch = min(schedule.batch_size, len(split) // world * world)
        if self.batch == 0:
            raise GapError(f"{len(split)} training images are too few for {world} processes")
        self.per_epoch = len(split) // self.batch
        self.steps = max(1, round(schedule.epochs * self.per_epoch))
        self.step = 0
        for name, module in training.modules.items():
            for group in module.optimizer.param_groups:
                group["base_lr"] = group["lr"]
            module.network, module.optimizer = accelerator.prepare(module.network, module.optimizer)
            # Autocast is for learning, where this loop turns it on; validation, and what is saved, is in float32.
            extract_model_from_parallel(module.network, keep_fp32_wrapper=False)
            training.modules[name] = module

    def run(self, resume: bool) -> dict[str, float]:
        path = self.folder / CHECKPOINT
        if resume and path.is_file():
            self._load(path)
        validation_metrics: dict[str, float] = {}
        self._notify({}, 0.0)
        with _signals() as signals:
            saved = rated_at = time.monotonic()
            seen = 0
            for images, labels in self.split.batches(self._batch_indices(), self.accelerator.device):
                metrics = self._train_step(images, labels)
                self.step += 1
                seen += self.batch
                ended = self.step % self.per_epoch == 0 or self.step == self.steps
                now = time.monotonic()
                if ended:
                    values = self._finite(metrics)
                    validation_metrics = self._validate()
                    self.training.on_validation_end(validation_metrics)
                    self._notify(values, seen / (now - rated_at), validation_metrics)
                    rated_at, seen = time.monotonic(), 0
                elif self.step % 20 == 0:
                    self._notify(self._finite(metrics), seen / (now - rated_at))
                stop = self._any_rank(bool(signals))
                if (
                    stop
                    or (ended and self.step < self.steps)
                    or self._any_rank(now - saved > self.schedule.checkpoint_seconds)
                ):
                    self._finite(metrics)
                    self._save(path)
                    saved = time.monotonic()
                if stop:
                    raise TrainingInterrupted(
                        self.step, self.steps, self.folder, signals[0] if signals else signal.SIGTERM
                    )
        self._check_weights()
        return validation_metrics or self._validate()

    def _check_weights(self) -> None:
        """Raise GapError where the last update, which no loss has seen, left weights that are no numbers."""
        for name, module in self.training.modules.items():
            if not _finite_state(module.unwrapped.state_dict()):
                raise GapError(
                    f"the weights of the {name} are no longer numbers after step {self.step}; try a smaller `lr`,"
                    " or see whether the classifier's gradient is a number (gap evaluate fgsm says so)"
                )

    def _train_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        seed_all(self.schedule.seed, self.step, self.accelerator.process_index)
        share = _schedule(self.step, self.steps, self.schedule.warmup)
        for module in self.training.modules.values():
            module.network.train()
            for group in module.optimizer.param_groups:
                group["lr"] = group["base_lr"] * share
        try:
            with self.accelerator.autocast():
                return self.training.training_step(images, labels, self.accelerator.backward)
        except NetworkError as error:
            if len(images) > 1:
                raise
            raise NetworkError(f"{error}; a `batch_size` of 2 or more for each process may help") from error

    def _batch_indices(self) -> Iterator[Tensor]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        first = self.step
        for step in range(first, self.steps):
            epoch, position = divmod(step, self.per_epoch)
            if position == 0 or step == first:
                shuffle = torch.Generator().manual_seed(self.schedule.seed * 100_003 + epoch)
                order = torch.randperm(len(self.split), generator=shuffle)
            yield order[position * self.batch : (position + 1) * self.batch][rank::world]

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """The mean of each metric over the held-out images: sums and counts are added up over the processes."""
        device, rank, world = self.accelerator.device, self.accelerator.process_index, self.accelerator.num_processes
        sums: dict[str, Tensor] = {}
        count = torch.zeros((), device=device, dtype=torch.float64)
        seed_all(self.schedule.seed, self.steps + self.step, rank)
        for network in self.training.synced_modules():
            for buffer in network.buffers():
                broadcast(buffer)
        order = sequential_batches(self.held_out, 256, rank, world, first=self.schedule.validation_images)
        with self._unwrapped_modules():
            for images, labels in self.held_out.batches(order, device):
                for name, values in self.training.validation_step(images, labels).items():
                    sums[name] = sums.get(name, torch.zeros_like(count)) + values.double().sum()
                count += len(images)
        names = sorted(self._names(sums))
        totals = torch.stack([count, *(sums.get(name, torch.zeros_like(count)) for name in names)])
        totals = self.accelerator.reduce(totals, reduction="sum")
        return {name: (total / totals[0]).item() for name, total in zip(names, totals[1:], strict=True)}

    @contextmanager
    def _unwrapped_modules(self) -> Iterator[None]:
        """The networks that learn, in eval mode and unwrapped, so that no process waits for another at each call."""
        wrapped = {name: module.network for name, module in self.training.modules.items()}
        for module in self.training.modules.values():
            module.network = module.unwrapped.eval()
        try:
            yield
        finally:
            for name, network in wrapped.items():
                self.training.modules[name].network = network

    def _names(self, sums: dict[str, Tensor]) -> list[str]:
        """The metrics' names, also on a process that got no held-out image."""
        if self.accelerator.num_processes == 1:
            return list(sums)
        from accelerate.utils import gather_object

        return sorted(set(gather_object(list(sums))))

    def _finite(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        names = sorted(metrics)
        values = self.accelerator.reduce(
            torch.stack([metrics[name].detach().float() for name in names]), "mean"
        ).tolist()
        if not all(math.isfinite(value) for value in values):
            kept = (
                f"the last good state is in {self.folder}"
                if (self.folder / CHECKPOINT).is_file()
                else "nothing was kept yet"
            )
            raise GapError(
                f"the loss is no longer a number at step {self.step} of {self.steps}; {kept}; try a smaller `lr`,"
                " or see whether the classifier's gradient is one (gap evaluate fgsm says so)"
            )
        return dict(zip(names, values, strict=True))

    def _notify(
        self, metrics: dict[str, float], rate: float, validation_metrics: dict[str, float] | None = None
    ) -> None:
        with self._main_only() as here:
            if here:
                self._call_callbacks(metrics, rate, validation_metrics or {})

    def _call_callbacks(self, metrics: dict[str, float], rate: float, validation_metrics: dict[str, float]) -> None:
        pictures: dict[str, Tensor] = {}
        if self.callbacks and validation_metrics and len(self.held_out):
            few = torch.arange(min(8, len(self.held_out)))
            images, _ = next(iter(self.held_out.batches([few], self.accelerator.device)))
            with self._unwrapped_modules():
                pictures = dict(self.training.sample_images(images))
        progress = TrainingProgress(
            self.step, self.steps, self.step / self.per_epoch, metrics, rate, validation_metrics, pictures
        )
        for callback in self.callbacks:
            callback(progress)

    def _any_rank(self, flag: bool) -> bool:
        """Whether the flag is up on any process: all must save together."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum") > 0)

    @contextmanager
    def _main_only(self) -> Iterator[bool]:
        """Gives True on the main process alone. All leave together, and with an error where it failed there."""
        failure: GapError | None = None
        try:
            yield self.accelerator.is_main_process
        except GapError as error:
            failure = error
        if self._any_rank(failure is not None):
            raise failure or GapError("the main process could not go on; its own message says why")

    def _save(self, path: Path) -> None:
        with self._main_only() as here:
            if here:
                self._write(path)

    def _write(self, path: Path) -> None:
        state = {
            "step": self.step,
            "steps": self.steps,
            "modules": {
                name: {
                    "network": module.unwrapped.state_dict(),
                    "optimizer": module.optimizer.state_dict(),
                }
                for name, module in self.training.modules.items()
            },
            "training": self.training.state_dict(),
            "fingerprints": self.fingerprints,
        }
        if all(_finite_state(module["network"]) for module in state["modules"].values()):
            with atomic_write(path) as part:
                torch.save(state, part)

    def _load(self, path: Path) -> None:
        state = read_checkpoint(path)
        try:
            self._check_same(state["fingerprints"], path)
            for name, module in self.training.modules.items():
                load_state_dict_checked(module.unwrapped, state["modules"][name]["network"], path, START_AGAIN)
                load_optimizer_checked(module.optimizer, state["modules"][name]["optimizer"])
            self.training.load_state_dict(state["training"])
            self.step, steps = state["step"], state["steps"]
        except (LookupError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            raise GapError(f"{path} is not a checkpoint of this work: {first_line(error)}") from error
        if steps != self.steps:
            raise GapError(f"{path} is of a work of {steps} steps, and this one has {self.steps}; keep its options")

    def _check_same(self, fingerprints: Mapping[str, str], path: Path) -> None:
        """On the main process, which kept the fingerprints: on another machine, copies of files have other times."""
        with self._main_only() as here:
            if here:
                check_fingerprints(self.fingerprints, fingerprints, path)


def seed_all(seed: int, step: int, process: int) -> None:
    """Make every random choice of a step a function of (seed, step, process)."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + process) % 2**63)


def _schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step: a short linear rise, then half a cosine down to 0."""
    rise = max(1.0, warmup * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def _finite_state(state: dict[str, Any]) -> bool:
    """Whether all the tensors of a state dict are finite; a module may keep other things there besides."""
    tensors = (value for value in state.values() if isinstance(value, Tensor) and value.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


SECOND_INTERRUPT_MESSAGE = b"\ngap: interrupted twice: ended at once, with nothing saved since the last checkpoint\n"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to instead of ending the process.

    A second SIGINT ends it at once: someone is impatient. A launcher repeats SIGTERM, and the work is still saved.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            os.write(2, SECOND_INTERRUPT_MESSAGE)
            os._exit(128 + number)
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may set handlers; elsewhere the caller keeps its own
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
