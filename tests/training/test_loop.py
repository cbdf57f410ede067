"""The training loop. Run as a script, `test_loop.py FOLDER`, it trains there and kills itself half-way."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.artefact import CHECKPOINT, METRICS
from gap.data.splits import MemorySplit
from gap.errors import GapError
from gap.process import Stopped
from gap.training.job import Backward, Job, Player, adam
from gap.training.listeners import MetricsLog
from gap.training.loop import Listener, Plan, Progress, _schedule, read_checkpoint, train
from gap.training.machine import MachineOptions, make_accelerator

PLAN = Plan(epochs=2, batch_size=4, seed=3)
STEPS = 50


class TinyJob(Job):
    """A classifier with all that a step can depend on: buffers, random choices, and a number it carries along."""

    def __init__(self, poison_at: int | None = None) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.players: dict[str, Player] = {"classifier": adam(network, 0.02)}
        self.poison_at = poison_at
        self.steps = 0
        self.pull = 0.0

    def step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
        self.steps += 1
        player = self.players["classifier"]
        loss = F.cross_entropy(player.network(images), labels) * (1 + self.pull)
        if self.steps == self.poison_at:
            loss = loss * float("nan")
        player.learn(loss, backward)
        self.pull = 0.9 * self.pull + 0.1 * torch.rand(()).item()
        return {"loss": loss}

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.players["classifier"].network(images)
        return {"accuracy": logits.argmax(dim=1) == labels, "loss": F.cross_entropy(logits, labels, reduction="none")}

    def state(self) -> dict[str, float]:
        return {"pull": self.pull}

    def load_state(self, state: dict[str, float]) -> None:
        self.pull = state["pull"]


class Listing(MemorySplit):
    """A split that keeps the order in which it is read."""

    read: list[Tensor]

    def batches(self, order: Iterable[Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        self.read = []

        def noted() -> Iterator[Tensor]:
            for indices in order:
                self.read.append(indices)
                yield indices

        return super().batches(noted(), device)


def split(count: int, seed: int = 0, kind: type[MemorySplit] = MemorySplit) -> MemorySplit:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 3, 3), generator=generator, dtype=torch.uint8)
    return kind(images, (images[:, 0, 1, 1] > 127).long())


def run(
    folder: Path,
    *listeners: Listener,
    job: TinyJob | None = None,
    plan: Plan = PLAN,
    resume: bool = False,
    identity: dict[str, str] | None = None,
) -> tuple[dict[str, float], TinyJob]:
    folder.mkdir(exist_ok=True)
    job = job or TinyJob()
    machine = make_accelerator(MachineOptions(device="cpu", precision="fp32"))
    data = split(100), split(31, seed=1)
    figures = train(job, *data, plan, folder, machine, listeners, resume=resume, identity=identity)
    return figures, job


def at_step(step: int, act: Callable[[], None]) -> Listener:
    def listen(progress: Progress) -> None:
        if progress.step == step:
            act()

    return listen


def same_networks(one: TinyJob, other: TinyJob) -> bool:
    ours, theirs = (job.players["classifier"].bare.state_dict() for job in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in ours) and one.pull == other.pull


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], TinyJob, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("unbroken")
    figures, job = run(folder, MetricsLog(folder))
    return figures, job, told(folder)


def told(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def test_learns_something(unbroken: tuple[dict[str, float], TinyJob, list[dict[str, float]]]) -> None:
    figures, job, _ = unbroken
    fresh = TinyJob()
    before = fresh.judge(*next(split(31, seed=1).batches([torch.arange(31)])))["loss"].mean().item()
    assert job.steps == STEPS
    assert figures["loss"] < before


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
    machine = make_accelerator(MachineOptions(device="cpu", precision="fp32"))
    train(TinyJob(), listing, split(3), Plan(epochs=3, batch_size=batch_size), tmp_path, machine)
    batch = min(batch_size, 40)
    per_epoch = 40 // batch
    assert [len(indices) for indices in listing.read] == [batch] * per_epoch * 3
    epochs = [torch.cat(listing.read[first : first + per_epoch]) for first in range(0, 3 * per_epoch, per_epoch)]
    for epoch in epochs:
        assert len(epoch.unique()) == len(epoch) == per_epoch * batch
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_resumed_ends_as_unbroken(
    tmp_path: Path, number: signal.Signals, unbroken: tuple[dict[str, float], TinyJob, list[dict[str, float]]]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped at step 20 of {STEPS}.*--resume --out") as stopped:
        run(tmp_path, MetricsLog(tmp_path), at_step(20, lambda: signal.raise_signal(number)))
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    figures, job = run(tmp_path, MetricsLog(tmp_path), resume=True)
    assert job.steps == STEPS - 20
    assert figures == unbroken[0]
    assert same_networks(job, unbroken[1])
    assert told(tmp_path) == unbroken[2]


def test_stopped_at_the_last_step_and_resumed(
    tmp_path: Path, unbroken: tuple[dict[str, float], TinyJob, list[dict[str, float]]]
) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, at_step(STEPS, lambda: signal.raise_signal(signal.SIGTERM)))
    figures, job = run(tmp_path, resume=True)
    assert job.steps == 0
    assert figures == unbroken[0]
    assert same_networks(job, unbroken[1])


def signals(*numbers: signal.Signals) -> Callable[[], None]:
    def act() -> None:
        for number in numbers:
            signal.raise_signal(number)

    return act


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
    ],
)
def test_what_a_launcher_sends_after_a_signal_waits_for_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: tuple[signal.Signals, ...]
) -> None:
    """The first of them comes in a step, the others while the checkpoint is written."""
    save = torch.save

    def interrupted(*given: object) -> None:
        signals(*numbers[1:])()
        save(*given)

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, at_step(20, signals(numbers[0])))
    assert stopped.value.code == 128 + numbers[0]
    assert read_checkpoint(tmp_path / CHECKPOINT)["step"] == 20


@pytest.mark.parametrize("between", [(), (signal.SIGTERM,)])
def test_a_second_interrupt_ends_the_process_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: tuple[signal.Signals, ...]
) -> None:
    def ended(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", ended)
    with pytest.raises(SystemExit) as end:
        run(tmp_path, at_step(20, signals(signal.SIGINT, *between, signal.SIGINT)))
    assert end.value.code == 130
    assert not (tmp_path / CHECKPOINT).exists()


MADE_OF = {"the classifier net": "1f", "the train images of digits": "2e"}


def test_resume_on_the_same_classifier_and_data(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, at_step(20, signals(signal.SIGTERM)), identity=MADE_OF)
    assert run(tmp_path, resume=True, identity=MADE_OF)[1].steps == STEPS - 20


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (MADE_OF | {"the classifier net": "0"}, "the classifier net"),
        (MADE_OF | {"the train images of digits": "0"}, "the train images of digits"),
        (MADE_OF | {"the classifier other": "0"}, "the classifier other"),
        ({}, "the classifier net and the train images of digits"),
    ],
)
def test_resume_on_another_classifier_or_data_is_refused(tmp_path: Path, now: dict[str, str], named: str) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, at_step(20, signals(signal.SIGTERM)), identity=MADE_OF)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(GapError, match=f"^{named} changed since .*{CHECKPOINT} was saved; .*--overwrite$"):
        run(tmp_path, resume=True, identity=now)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


class HearingJob(TinyJob):
    """Keeps what it hears, and carries along how often that was."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[dict[str, float]] = []

    def judged(self, figures: Mapping[str, float]) -> None:
        self.heard.append(dict(figures))

    def state(self) -> dict[str, float]:
        return super().state() | {"heard": len(self.heard)}


def test_a_job_hears_what_each_epoch_was_judged_before_it_is_saved(tmp_path: Path) -> None:
    job, judged, saved = HearingJob(), [], []

    def listen(progress: Progress) -> None:
        judged.extend([progress.judged] if progress.judged else [])
        saved.extend([read_checkpoint(tmp_path / CHECKPOINT)] if progress.step == 40 else [])

    run(tmp_path, listen, job=job)
    assert job.heard == judged and len(judged) == 2
    assert [(state["step"], state["job"]["heard"]) for state in saved] == [(25, 1)]


def test_killed_and_resumed_ends_as_unbroken(
    tmp_path: Path, unbroken: tuple[dict[str, float], TinyJob, list[dict[str, float]]]
) -> None:
    same_threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, __file__, tmp_path], env=same_threads, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    with (tmp_path / METRICS).open("a") as log:
        log.write('{"step": 41, "lo')
    figures, job = run(tmp_path, MetricsLog(tmp_path), resume=True)
    assert job.steps == STEPS - 39
    assert figures == unbroken[0]
    assert same_networks(job, unbroken[1])
    assert told(tmp_path) == unbroken[2]


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="no longer a number at step 40 of 50; the last good state is in"):
        run(tmp_path, job=TinyJob(poison_at=30))
    kept = read_checkpoint(tmp_path / CHECKPOINT)
    assert kept["step"] == 25
    assert all(tensor.isfinite().all() for tensor in kept["players"]["classifier"]["network"].values())


def test_a_loss_that_is_no_number_at_once_says_that_nothing_was_kept(tmp_path: Path) -> None:
    with pytest.raises(GapError, match="nothing was kept yet"):
        run(tmp_path, job=TinyJob(poison_at=1), plan=Plan(epochs=2, batch_size=4, checkpoint_seconds=0))
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_checkpoint_cut_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, at_step(20, lambda: signal.raise_signal(signal.SIGTERM)))
    path = tmp_path / CHECKPOINT
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(GapError, match=f"{CHECKPOINT} "):
            run(tmp_path, resume=True)
        assert path.stat().st_size == length


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.fspath(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_a_pickle_that_carries_code_is_refused_and_not_run(tmp_path: Path, save: Callable[..., None]) -> None:
    trap = tmp_path / "trap"
    save({"step": 1, "players": {}, "job": _Runs(trap)}, tmp_path / CHECKPOINT)
    with pytest.raises(GapError, match="holds more than tensors"):
        run(tmp_path, resume=True)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"job": {}}, "not a checkpoint of this work: 'pull'"),
        ({"players": {}}, "not a checkpoint of this work: 'classifier'"),
        ({"identity": None}, "not a checkpoint of this work"),
        ({"steps": 60}, "is of a work of 60 steps, and this one has 50"),
    ],
)
def test_a_checkpoint_of_other_work_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, at_step(20, lambda: signal.raise_signal(signal.SIGTERM)))
    torch.save(read_checkpoint(tmp_path / CHECKPOINT) | change, tmp_path / CHECKPOINT)
    with pytest.raises(GapError, match=message):
        run(tmp_path, resume=True)


def test_something_else_saved_by_torch_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / CHECKPOINT)
    with pytest.raises(GapError, match="is not a checkpoint of gap"):
        read_checkpoint(tmp_path / CHECKPOINT)


@pytest.mark.parametrize(
    ("images", "batch_size", "message"),
    [
        (100, 5, "--batch-size 5 does not divide over 2 processes"),
        (1, 4, "too few for 2"),
        (0, 4, "no training images"),
    ],
)
def test_portions_that_cannot_be_dealt_out(tmp_path: Path, images: int, batch_size: int, message: str) -> None:
    two = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    with pytest.raises(GapError, match=message):
        train(TinyJob(), split(images), split(3), Plan(1, batch_size), tmp_path, two)


def test_bf16_is_for_learning_and_float32_for_judging(tmp_path: Path) -> None:
    learned, judged = [], []

    class Typed(TinyJob):
        def step(self, images: Tensor, labels: Tensor, backward: Backward) -> dict[str, Tensor]:
            learned.append(self.players["classifier"].network[1](images.flatten(1)).dtype)
            return super().step(images, labels, backward)

        def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            network = self.players["classifier"].network
            judged.append((network[1](images.flatten(1)).dtype, network(images), nn.Sequential(*network)(images)))
            return super().judge(images, labels)

    machine = make_accelerator(MachineOptions(device="cpu", precision="bf16"))
    train(Typed(), split(16), split(8), Plan(epochs=1, batch_size=8), tmp_path, machine)
    assert set(learned) == {torch.bfloat16}
    for dtype, logits, plain in judged:
        assert dtype == logits.dtype == torch.float32 and torch.equal(logits, plain)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    killing = at_step(40, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(out, MetricsLog(out), killing, plan=Plan(PLAN.epochs, PLAN.batch_size, PLAN.seed, checkpoint_seconds=0))
