"""The training loop of all trainings: batches, learning rates, checkpoints, resume and signals."""

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
    """The length and the batches of a training. The learning rate rises linearly, then falls to 0.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        seed: the seed of all random choices.
        validation_images: the number of validation images that are used after each epoch; None is all.
        warmup: the share of the steps in which the learning rate rises.
        checkpoint_seconds: the time between checkpoints, besides those at the end of each epoch.
    """

    epochs: float
    batch_size: int
    seed: int = 0
    validation_images: int | None = None
    warmup: float = 0.05
    checkpoint_seconds: float = 30.0

    def steps(self, images: int) -> int:
        """The number of steps for a training split of `images` images."""
        return max(1, round(self.epochs * (images // max(1, min(self.batch_size, images)))))


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training, passed to callbacks. Rates are in images per second, over all processes.

    The first call is before the first step and has no metrics. `validation_metrics` and `pictures` are only set at the
    end of an epoch.
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
    """The output folder of a training, its accelerator, its callbacks, and whether it resumes from its checkpoint."""

    folder: Path
    accelerator: Accelerator
    callbacks: Sequence[Callback] = ()
    resume: bool = False

    def save(self, kind: str, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Artifact:
        """Save the artifact in the folder. Only the main process writes; the others return the card without files."""
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

    `fingerprints` are hashes of the data and networks by name. They are saved in the checkpoint, and resuming with
    other data or networks raises GapError. The random choices of a step depend on (seed, step, process) only, so a
    resumed run has the same result as an uninterrupted one. Raises TrainingInterrupted after SIGINT or SIGTERM, with
    the state saved, and GapError when the loss is no longer finite.
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
            # Autocast is enabled in training steps only, by this loop. Validation and saved networks are in float32.
            extract_model_from_parallel(module.network, keep_fp32_wrapper=False)
            training.modules[name] = module

    def run(self, resume: bool) -> dict[str, float]:
        path = self.folder / CHECKPOINT
        if resume and path.is_file():
            self._load(path)
        validation_metrics: dict[str, float] = {}
        self._notify({}, 0.0)
        with _signals() as signals:
            last_save = rate_start = time.monotonic()
            images_since = 0
            for images, labels in self.split.batches(self._batch_indices(), self.accelerator.device):
                metrics = self._train_step(images, labels)
                self.step += 1
                images_since += self.batch
                is_epoch_end = self.step % self.per_epoch == 0 or self.step == self.steps
                time_now = time.monotonic()
                if is_epoch_end:
                    values = self._finite(metrics)
                    validation_metrics = self._validate()
                    self.training.on_validation_end(validation_metrics)
                    self._notify(values, images_since / (time_now - rate_start), validation_metrics)
                    rate_start, images_since = time.monotonic(), 0
                elif self.step % 20 == 0:
                    self._notify(self._finite(metrics), images_since / (time_now - rate_start))
                stop = self._any_rank(bool(signals))
                if (
                    stop
                    or (is_epoch_end and self.step < self.steps)
                    or self._any_rank(time_now - last_save > self.schedule.checkpoint_seconds)
                ):
                    self._finite(metrics)
                    self._save(path)
                    last_save = time.monotonic()
                if stop:
                    raise TrainingInterrupted(
                        self.step, self.steps, self.folder, signals[0] if signals else signal.SIGTERM
                    )
        self._check_weights()
        return validation_metrics or self._validate()

    def _check_weights(self) -> None:
        """Raise GapError where the last update, after which no loss was computed, left weights that are not finite."""
        for name, module in self.training.modules.items():
            if not _finite_state(module.unwrapped.state_dict()):
                raise GapError(
                    f"the weights of the {name} are no longer numbers after step {self.step}; try a smaller `lr`,"
                    " or see whether the classifier's gradient is a number (gap evaluate fgsm says so)"
                )

    def _train_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        seed_all(self.schedule.seed, self.step, self.accelerator.process_index)
        lr_factor = _schedule(self.step, self.steps, self.schedule.warmup)
        for module in self.training.modules.values():
            module.network.train()
            for group in module.optimizer.param_groups:
                group["lr"] = group["base_lr"] * lr_factor
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
        """The mean of each metric over the validation images of all processes."""
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
        """Use the networks unwrapped in eval mode inside the block, so that processes call them independently."""
        wrapped = {name: module.network for name, module in self.training.modules.items()}
        for module in self.training.modules.values():
            module.network = module.unwrapped.eval()
        try:
            yield
        finally:
            for name, network in wrapped.items():
                self.training.modules[name].network = network

    def _names(self, sums: dict[str, Tensor]) -> list[str]:
        """The names of the metrics, also on a process that got no validation images."""
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
            saved = (
                f"the last good state is in {self.folder}"
                if (self.folder / CHECKPOINT).is_file()
                else "nothing was kept yet"
            )
            raise GapError(
                f"the loss is no longer a number at step {self.step} of {self.steps}; {saved}; try a smaller `lr`,"
                " or see whether the classifier's gradient is one (gap evaluate fgsm says so)"
            )
        return dict(zip(names, values, strict=True))

    def _notify(
        self, metrics: dict[str, float], rate: float, validation_metrics: dict[str, float] | None = None
    ) -> None:
        with self._main_only() as is_main:
            if is_main:
                self._call_callbacks(metrics, rate, validation_metrics or {})

    def _call_callbacks(self, metrics: dict[str, float], rate: float, validation_metrics: dict[str, float]) -> None:
        pictures: dict[str, Tensor] = {}
        if self.callbacks and validation_metrics and len(self.held_out):
            indices = torch.arange(min(8, len(self.held_out)))
            images, _ = next(iter(self.held_out.batches([indices], self.accelerator.device)))
            with self._unwrapped_modules():
                pictures = dict(self.training.sample_images(images))
        progress = TrainingProgress(
            self.step, self.steps, self.step / self.per_epoch, metrics, rate, validation_metrics, pictures
        )
        for callback in self.callbacks:
            callback(progress)

    def _any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any process, so that all processes save together."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum") > 0)

    @contextmanager
    def _main_only(self) -> Iterator[bool]:
        """Yield True on the main process only. If the block fails there, all processes raise GapError."""
        failure: GapError | None = None
        try:
            yield self.accelerator.is_main_process
        except GapError as error:
            failure = error
        if self._any_rank(failure is not None):
            raise failure or GapError("the main process failed; see its error message")

    def _save(self, path: Path) -> None:
        with self._main_only() as is_main:
            if is_main:
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
        """Check the fingerprints on the main process, which saved them: copies of files have other times."""
        with self._main_only() as is_main:
            if is_main:
                check_fingerprints(self.fingerprints, fingerprints, path)


def seed_all(seed: int, step: int, process: int) -> None:
    """Seed torch for a step, from (seed, step, process)."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_009 + process) % 2**63)


def _schedule(step: int, steps: int, warmup: float) -> float:
    """The factor of the learning rate at a step: a short linear rise, then half a cosine down to 0."""
    rise = max(1.0, warmup * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


def _finite_state(state: dict[str, Any]) -> bool:
    """Whether all tensors of a state dict are finite; other values in it are ignored."""
    tensors = (value for value in state.values() if isinstance(value, Tensor) and value.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


SECOND_INTERRUPT_MESSAGE = b"\ngap: interrupted twice: ended at once, with nothing saved since the last checkpoint\n"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM are appended, instead of ending the process.

    A second SIGINT ends the process at once. A repeated SIGTERM, which launchers send, does not: the state is saved.
    """
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            os.write(2, SECOND_INTERRUPT_MESSAGE)
            os._exit(128 + number)
        received.append(number)

    try:
        previous_handlers = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may set handlers
        previous_handlers = {}
    try:
        yield received
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
