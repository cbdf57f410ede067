"""The Python block of the documentation, on tiny real data: arguments and results are objects."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import own_training
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import gap
from gap.core.errors import GapError, GapWarning
from gap.core.process import TrainingInterrupted
from gap.data.adapters import evaluation_data
from gap.data.registry import load_data

BUDGET = "linf:0.2"


class Net(nn.Module):
    """A network as users write it: with `view`, without normalization, in training mode."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form = form
        self.conv1 = nn.Conv2d(1, 8, 5, stride=2)
        self.conv2 = nn.Conv2d(8, 16, 5, stride=2)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> object:
        features = self.conv2(self.conv1(x).relu()).relu()
        logits = self.head(features.view(features.size(0), -1))
        return {
            "tensor": logits,
            "object": SimpleNamespace(logits=logits),
            "dictionary": {"logits": logits},
            "tuple": (logits, features),
        }[self.form]


class Digits(Dataset[tuple[Image.Image, int]]):
    """A torch dataset of PIL images, as those of torchvision."""

    classes = tuple(f"digit {index}" for index in range(10))

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.targets = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index, 0].numpy()), self.targets[index]


class Columns:
    """A stand-in for a Hugging Face dataset: columns by name, features, rows as dictionaries."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.column_names = ["image", "label"]
        self.images, self.labels_column = images, labels.tolist()
        self.features = {"image": object(), "label": SimpleNamespace(names=Digits.classes)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | str) -> object:
        if key == "label":
            return self.labels_column
        assert isinstance(key, int)
        return {"image": Image.fromarray(self.images[key, 0].numpy()), "label": self.labels_column[key]}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """1,200 real digits, uint8, and their labels."""
    split = load_data("mnist-5k").train
    return split.images[:1200], split.labels[:1200]  # type: ignore[attr-defined,index]


@pytest.fixture(scope="module")
def model(digits: tuple[Tensor, Tensor]) -> Net:
    """A network of the user, trained in a loop of the user, and still in training mode."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    for _ in range(6):
        for images, labels in DataLoader(TensorDataset(digits[0] / 255, digits[1]), 100, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return net


@pytest.fixture(scope="module")
def held_out_data() -> tuple[Tensor, Tensor]:
    split = load_data("mnist-5k").test
    return split.images[:100] / 255, split.labels[:100]  # type: ignore[attr-defined,index]


@pytest.fixture(scope="module")
def generator(model: Net, digits: tuple[Tensor, Tensor]) -> object:
    return gap.train_generator(model, digits, BUDGET, epochs=3, progress=False)


def test_documented_block_runs_as_written(
    model: Net,
    generator: object,
    digits: tuple[Tensor, Tensor],
    held_out_data: tuple[Tensor, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: an argument or a return value of the documented block that no longer works."""
    monkeypatch.chdir(tmp_path)
    train, test = Digits(*digits), held_out_data
    state = {name: value.clone() for name, value in model.state_dict().items()}

    clf = gap.Classifier(model, mean=(0.0,), std=(1.0,), class_names=Digits.classes)
    images, labels = test
    attack = gap.attacks.PGD(BUDGET, steps=10, step_size=0.05, step_schedule="constant")
    adv = attack(model, images, labels)
    assert adv.shape == images.shape and (adv - images).abs().max() <= 0.2 + 1e-6
    normalized = gap.Classifier(model, mean=(0.13,), std=(0.31,))
    adv = attack(normalized, images[:20], labels[:20])
    assert 0 < (adv - images[:20]).abs().max() <= 0.2 + 1e-6
    assert torch.equal(normalized(images), model((images - 0.13) / 0.31))
    generator.save("runs/g")
    loaded = gap.load_attack("runs/g")
    assert torch.equal(loaded(model, images, labels), generator(model, images, labels))
    universal = gap.train_generator(clf, train, "l2:2.5", universal=True, epochs=1, progress=False)
    result = gap.evaluate(
        [generator, universal, "pgd:steps=5", gap.attacks.FGSM(BUDGET)], model, test, BUDGET, images=100
    )
    assert [row["images"] for row in result.rows] == [100] * 4
    assert {row["attack"]: row["budget"] for row in result.rows}["universal_perturbation"] == "l2:2.5"
    by_name = {row["attack"]: row for row in result.rows}
    assert by_name["bounded_generator"]["accuracy_under_attack"] < by_name["bounded_generator"]["clean_accuracy"] - 0.3
    assert (
        "bounded_generator" in str(result)
        and "| bounded_generator |" in result.to_markdown()
        and r"\toprule" in result.to_latex()
    )
    result.to_csv("t.csv")
    header, *lines = Path("t.csv").read_text().splitlines()
    assert len(lines) == 4 and "accuracy_under_attack_interval_low" in header.split(",")
    assert result.to_dict()["rows"] == result.rows and result.plot().width > 300 and "<table>" in result._repr_html_()

    hardened = gap.harden(
        model, train, BUDGET, attacks=["pgd", generator], steps=1, epochs=2, val_images=50, progress=False
    )
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [row["epoch"] for row in hardened.history if "validation_pgd_accuracy" in row] == [1.0, 2.0]
    assert hardened.artifact.card["adversarial_training"]["attacks"] == {"pgd": 0.5, "bounded_generator": 0.5}
    hardened.save("runs/h")
    report = gap.judge(hardened.classifier, test, BUDGET, images=20, fast=True, progress=False)
    assert report.robust_accuracy <= report.clean_accuracy and report.interval[0] <= report.robust_accuracy
    assert report.verdict == "inconclusive" and report.checks and "AutoAttack" in str(report)

    content, style = (
        Image.fromarray((np.random.default_rng(seed).random((40, 48, 3)) * 255).astype("uint8")) for seed in (0, 1)
    )
    content.save("photo.png")
    mixed = gap.harden(
        model, train, BUDGET, attacks=["generator-start", "pgd"], steps=1, epochs=0.2, val_images=50, progress=False
    )
    assert mixed.artifact.card["adversarial_training"]["attacks"] == {"generator-start": 0.5, "pgd": 0.5}
    stylized = gap.stylize("photo.png", style, backbone=hardened.classifier, size=48, evaluations=2, progress=False)
    assert stylized.to_pil().size == (48, 40) and stylized._repr_png_()[:4] == b"\x89PNG"
    sheet = gap.visualize(hardened.classifier, ["conv2:0-15", "logit:3"], size=28, steps=2, progress=False)
    assert len(sheet.images) == 17 and sheet.captions[-1] == "class digit 3"
    traversal = gap.traverse(model, images[:2], target=3, steps=3, progress=False)
    traversal.save("walk.mp4")
    assert Path("walk.mp4").stat().st_size > 500 and model.training


@pytest.mark.parametrize("form", ["object", "dictionary", "tuple"])
def test_evaluate_network_with_wrapped_logits_equals_plain(
    model: Net, held_out_data: tuple[Tensor, Tensor], form: str
) -> None:
    """Catches: a form of the output from which the logits are not taken."""
    wrapped = Net(form)
    wrapped.load_state_dict(model.state_dict())
    with pytest.warns(GapWarning, match="its logits are taken"):
        row = gap.evaluate("fgsm", wrapped, held_out_data, BUDGET).rows[0]
    plain = gap.evaluate("fgsm", model, held_out_data, BUDGET).rows[0]
    assert row["accuracy_under_attack"] == plain["accuracy_under_attack"] < 0.6


def test_evaluate_of_every_form_of_data_gives_one_figure(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: images that are normalized twice, rounded wrongly, or paired with other labels."""
    images, labels = digits[0][:60], digits[1][:60]
    dataset = Digits(images, labels)
    forms = [
        (images, labels),
        (images / 255, labels),
        (images.numpy(), labels.numpy()),
        TensorDataset(images / 255, labels),
        dataset,
        Columns(images, labels),
        DataLoader(TensorDataset(images / 255, labels), batch_size=7),
        DataLoader(dataset, batch_size=7, collate_fn=lambda items: _collate(items)),
        torch.utils.data.Subset(dataset, range(60)),
    ]
    rows = [gap.evaluate("fgsm", model, form, BUDGET).rows[0] for form in forms]
    figures = {(row["clean_accuracy"], row["accuracy_under_attack"], round(row["l2_mean"], 4)) for row in rows}
    assert len(figures) == 1 and rows[0]["clean_accuracy"] > 0.9


def _collate(items: list[tuple[Image.Image, int]]) -> dict[str, Tensor]:
    pixels = [torch.from_numpy(np.array(image))[None] for image, _ in items]
    return {"image": torch.stack(pixels), "label": torch.tensor([label for _, label in items])}


def test_evaluate_normalized_images_are_refused_with_the_solution(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: a DataLoader that normalizes, whose pixels would be clamped without an error."""
    images = (digits[0][:10] / 255 - 0.13) / 0.31
    with pytest.raises(GapError, match=r"go from -0\.419 to .*gap\.Classifier\(model, mean="):
        gap.evaluate("fgsm", model, (images, digits[1][:10]), BUDGET)


@pytest.mark.parametrize("data", [5, {"images": 1}, (torch.zeros(3, 28, 28), torch.zeros(3)), []])
def test_evaluate_object_that_is_no_data_is_refused(model: Net, data: object) -> None:
    with pytest.raises(GapError):
        gap.evaluate("fgsm", model, data, BUDGET)


def test_python_functions_errors_name_no_command_line_flags(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: a message of the command line shown to a user of Python."""
    for call in (
        lambda: gap.train_generator(model, digits, progress=False),
        lambda: gap.train_generator(model, digits, BUDGET, target_norm="l2:2"),
        lambda: gap.evaluate("pgd", model, digits),
        lambda: gap.harden(model, digits, BUDGET, attacks=["pgd"], beta=3.0),
    ):
        with pytest.raises(GapError) as error:
            call()
        assert "--" not in str(error.value)


@pytest.mark.parametrize("device", ["cuda:7", "gpu", ""])
def test_python_functions_missing_device_is_refused_by_name(
    model: Net, digits: tuple[Tensor, Tensor], generator: gap.attacks.Attack, tmp_path: Path, device: str
) -> None:
    """Catches: the RuntimeError of torch, of several lines, for a misspelled or absent device."""
    generator.save(tmp_path)
    for call in (
        lambda: gap.pretrain(model, digits, device=device, progress=False),
        lambda: gap.harden(model, digits, BUDGET, device=device, progress=False),
        lambda: gap.train_generator(model, digits, BUDGET, device=device, progress=False),
        lambda: gap.train_stylizer(digits[0], digits[0], device=device, progress=False),
        lambda: gap.evaluate("fgsm", model, digits, BUDGET, device=device),
        lambda: gap.judge(model, digits, BUDGET, device=device, progress=False),
        lambda: gap.load_attack(tmp_path, device=device),
    ):
        with pytest.raises(GapError, match="`device`") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", ["predicted", "auto", torch.arange(3)])
def test_pretrain_and_harden_labels_option_is_refused(
    model: Net, digits: tuple[Tensor, Tensor], labels: object
) -> None:
    """Catches: a `labels` option that is accepted, and ignored in favor of the labels of the data."""
    for call in (
        lambda: gap.pretrain(model, digits, labels=labels, epochs=0.1, progress=False),
        lambda: gap.harden(model, digits, BUDGET, labels=labels, epochs=0.1, progress=False),
    ):
        with pytest.raises(GapError, match=r"on the data's own labels; leave out `labels`$"):
            call()


def test_pretrain_images_without_labels_raise_with_the_solution(tmp_path: Path) -> None:
    """Catches: the advice to use predicted labels, which pretrain then refuses."""
    for number in range(6):
        Image.effect_noise((28, 28), 80).save(tmp_path / f"{number}.png")
    with pytest.raises(GapError, match=r"has no labels; add a labels.csv \(file,label\), or, to attack a classifier, "):
        gap.pretrain("mnist-cnn", f"folder:{tmp_path}", progress=False)


def process_state() -> dict[str, object]:
    """The global state that a training could change in the process of its user."""
    denormal = torch.tensor([sys.float_info.min], dtype=torch.float64) / 2
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()],
        "python": random.getstate(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "cudnn deterministic": torch.backends.cudnn.deterministic,
        "TF32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        "flushes denormal numbers": not denormal.item(),
        "environment": dict(os.environ),
        "accelerate": dict(AcceleratorState._shared_state),
    }


@pytest.fixture
def unusual_process() -> Iterator[None]:
    """Flags with values other than those that a training sets."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True, mixed_precision="bf16")
    yield
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("unusual_process")
@pytest.mark.parametrize("function", ["pretrain", "harden", "train_generator", "judge"])
def test_training_restores_the_global_state_of_the_process(
    model: Net, digits: tuple[Tensor, Tensor], function: str
) -> None:
    """Catches: flags and random states of the user's process that differ after a training."""

    def draw(progress: object) -> None:
        torch.rand(1), np.random.rand(), random.random()

    subset = (digits[0][:60], digits[1][:60])
    settings = {"epochs": 1, "batch_size": 20, "deterministic": True, "precision": "fp32", "callbacks": [draw]}
    calls = {
        "pretrain": lambda: gap.pretrain("mnist-cnn", subset, **settings, progress=False),
        "harden": lambda: gap.harden(model, subset, BUDGET, steps=1, **settings, progress=False),
        "train_generator": lambda: gap.train_generator(model, subset, BUDGET, **settings, progress=False),
        "judge": lambda: gap.judge(
            model, subset, BUDGET, images=4, fast=True, adaptive_images=60, training=subset, progress=False
        ),
    }
    before = process_state()
    calls[function]()
    assert process_state() == before


def test_training_custom_loss_and_attack_are_called(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: a loss or an attack of the user that is accepted and ignored."""
    calls = {"loss": 0, "attack": 0}

    def loss(logits: Tensor, clean_logits: Tensor | None, criterion: gap.attacks.Criterion) -> Tensor:
        calls["loss"] += 1
        return logits.gather(1, criterion.classes[:, None]).squeeze(1)

    class Shift:
        name, budget = "shift", None

        def __call__(self, classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            calls["attack"] += 1
            return images.roll(1, dims=3)

    subset = (digits[0][:200], digits[1][:200])
    attack = gap.train_generator(model, subset, BUDGET, loss=loss, epochs=1, batch_size=50, progress=False)
    assert calls["loss"] >= 3 and attack.history
    gap.harden(model, subset, BUDGET, attacks=[Shift()], epochs=1, batch_size=50, val_images=10, progress=False)
    assert calls["attack"] >= 3


def test_train_generator_out_folder_can_be_resumed(model: Net, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    subset = (digits[0][:200], digits[1][:200])
    first = gap.train_generator(model, subset, BUDGET, epochs=1, out=tmp_path / "g", progress=False)
    resumed = gap.train_generator(model, subset, BUDGET, epochs=1, out=tmp_path / "g", resume=True, progress=False)
    images = subset[0][:4] / 255
    assert torch.equal(first(model, images, subset[1][:4]), resumed(model, images, subset[1][:4]))
    assert {path.name for path in (tmp_path / "g").iterdir()} >= {"card.yaml", "model.safetensors", "metrics.jsonl"}


def test_custom_objective_and_canvas_are_drawn(model: Net) -> None:
    """Catches: a canvas or an objective that is accepted and not used."""
    from gap.imagery.canvas import FourierCanvas
    from gap.imagery.losses import Channel
    from gap.imagery.objectives import TotalVariation

    canvas = FourierCanvas(1, 1, (28, 28))
    objective = Channel("conv2", torch.tensor([3])) + 0.1 * TotalVariation()
    before = canvas.image()
    sheet = gap.visualize(model, objective, canvas=canvas, steps=5, progress=False)
    assert not torch.equal(sheet.images[0], before[0]) and torch.equal(sheet.images[0], canvas.image()[0])


def test_train_generator_pretrained_classifier_keeps_its_weights(
    digits: tuple[Tensor, Tensor], recwarn: pytest.WarningsRecorder
) -> None:
    """Catches: a network by name that is built again, with random weights, after it was trained."""
    subset = (digits[0][:400], digits[1][:400] % 7)  # fewer classes than the network has
    trained = gap.pretrain("mnist-cnn", digits, epochs=2, progress=False)
    before = gap.evaluate("noise", trained.classifier, subset, BUDGET, images=50).rows[0]["clean_accuracy"]
    after = gap.train_generator(trained.classifier, subset, BUDGET, epochs=0.5, batch_size=50, progress=False)
    assert after.artifact.card["classifiers"][0]["fingerprint"] == trained.classifier.fingerprint()
    assert before > 0.4 and not [warning for warning in recwarn if "learned nothing" in str(warning.message)]


def test_evaluate_loader_with_a_sampler_uses_its_images_alone(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: held-out images that are used in training or evaluation because a sampler is ignored."""
    dataset = TensorDataset(digits[0][:40] / 255, digits[1][:40])
    loader = DataLoader(dataset, 4, sampler=torch.utils.data.SubsetRandomSampler(range(5)))
    row = gap.evaluate("fgsm", model, loader, BUDGET).rows[0]
    plain = gap.evaluate("fgsm", model, (digits[0][:5], digits[1][:5]), BUDGET).rows[0]
    assert row["images"] == 5 and row["l2_mean"] == pytest.approx(plain["l2_mean"])


def test_evaluate_labels_are_those_of_the_items(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: labels of a column that are used although the items have others."""

    class Shifted(Digits):
        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            image, label = super().__getitem__(index)
            return image, (label + 1) % 10

    row = gap.evaluate("noise", model, Shifted(digits[0][:60], digits[1][:60]), BUDGET).rows[0]
    assert row["clean_accuracy"] < 0.2


def test_evaluation_data_sorted_by_class_starts_with_all_classes(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: data sorted by class, of which the first images are of one class alone."""
    order = digits[1].argsort()
    data = evaluation_data((digits[0][order], digits[1][order]))
    assert len(data.test.labels[:100].unique()) == 10


def test_evaluate_model_keeps_its_memory_format(digits: tuple[Tensor, Tensor]) -> None:
    """Catches: weights of the user's model left in another memory format."""
    net = Net()
    strides = [weight.stride() for weight in net.parameters()]
    gap.evaluate("fgsm", net, (digits[0][:10], digits[1][:10]), BUDGET)
    assert [weight.stride() for weight in net.parameters()] == strides


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x, y: gap.evaluate("fgsm", net, (x, y), 0.03),
        lambda net, x, y: gap.evaluate("fgsm", net, (x, y - 1), BUDGET),
        lambda net, x, y: gap.evaluate("fgsm", net, (x, y), BUDGET, images=0),
        lambda net, x, y: gap.evaluate("fgsm", net, (x, y), BUDGET, batch_size=0),
        lambda net, x, y: gap.judge(net, (x, y), BUDGET, images=0, progress=False),
        lambda net, x, y: gap.judge(net, (x, y), BUDGET, adaptive_images=-1, progress=False),
        lambda net, x, y: gap.attacks.PGD(BUDGET)(net, (x / 255 - 0.5) / 0.25, y),
        lambda net, x, y: gap.attacks.FGSM(BUDGET)(net, x, y),
        lambda net, x, y: gap.attacks.PGD(0.03),
        lambda net, x, y: gap.traverse(net, x[:2] / 255, 12, progress=False),
        lambda net, x, y: gap.traverse(net, x[:2] / 255, torch.tensor([1, 2, 3]), progress=False),
    ],
)
def test_python_functions_invalid_arguments_raise_a_gap_error(
    model: Net, digits: tuple[Tensor, Tensor], call: object
) -> None:
    """Catches: tracebacks, and plausible results, for common mistakes."""
    with pytest.raises(GapError):
        call(model, digits[0][:10], digits[1][:10].clamp_max(0))  # type: ignore[operator]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Tensor]]:
    """The final tensors of an uninterrupted training by each verb."""

    @cache
    def tensors(verb: str) -> dict[str, Tensor]:
        return own_training.train(verb, tmp_path_factory.mktemp(verb) / "out").artifact.tensors()

    return tensors


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("verb", ["pretrain", "harden", "train_generator"])
@pytest.mark.parametrize(
    ("action", "error"),
    [(interrupt, KeyboardInterrupt), (lambda: signal.raise_signal(signal.SIGINT), TrainingInterrupted)],
)
def test_training_interrupted_and_resumed_equals_an_uninterrupted_one(
    verb: str,
    action: Callable[[], None],
    error: type[BaseException],
    tmp_path: Path,
    uninterrupted: Callable[[str], object],
) -> None:
    """Catches: lost steps, and a resumed training with other random numbers, moments or statistics."""
    with pytest.raises(error):
        own_training.train(verb, tmp_path / "out", [own_training.at_step(action)])
    steps: list[int] = []
    resumed = own_training.train(verb, tmp_path / "out", [lambda progress: steps.append(progress.step)], resume=True)
    assert_same_tensors(resumed.artifact.tensors(), uninterrupted(verb))
    assert min(steps) in (19, 20)


def test_training_killed_and_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, uninterrupted: Callable[[str], object]
) -> None:
    """Catches: a checkpoint that is written only at an orderly end."""
    command = [sys.executable, own_training.__file__, "harden", str(tmp_path / "out")]
    same_threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run(command, env=same_threads, timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    resumed = own_training.train("harden", tmp_path / "out", resume=True)
    assert_same_tensors(resumed.artifact.tensors(), uninterrupted("harden"))


def assert_same_tensors(actual: dict[str, Tensor], expected: object) -> None:
    assert isinstance(expected, dict) and actual.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in actual.items())


class ReversedDigits(Digits):
    """The digits with their classes in reverse order, and labels to match."""

    classes = Digits.classes[::-1]

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(images, 9 - labels)


def test_evaluate_class_names_on_both_sides_match_labels_by_name(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: labels taken as indices of the classifier although their names are those of other classes."""
    subset = (digits[0][:100], digits[1][:100])
    named = gap.Classifier(model, class_names=Digits.classes)
    expected = gap.evaluate("noise", named, subset, BUDGET).rows[0]["clean_accuracy"]
    with pytest.warns(
        GapWarning, match="ReversedDigits are matched to those of Net by name: digit 9 is class 9, digit 8 is c"
    ):
        by_name = gap.evaluate("noise", named, ReversedDigits(*subset), BUDGET).rows[0]["clean_accuracy"]
    assert by_name == expected > 0.9
    assert gap.evaluate("noise", model, ReversedDigits(*subset), BUDGET).rows[0]["clean_accuracy"] < 0.2


def test_evaluate_subset_of_the_classes_matches_labels_by_name(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    keep = digits[1][:200] >= 7
    images, labels = digits[0][:200][keep], digits[1][:200][keep]
    data = Columns(images, labels - 7)
    data.features["label"] = SimpleNamespace(names=["Digit_7", "digit 8", "digit 9"])
    with pytest.warns(
        GapWarning, match=r"Columns are matched .*: Digit_7 is class 7 \(digit 7\), digit 8 is class 8, d"
    ):
        row = gap.evaluate("noise", gap.Classifier(model, class_names=Digits.classes), data, BUDGET).rows[0]
    assert row["clean_accuracy"] > 0.9
    with pytest.warns(
        GapWarning, match="Net does not know the names of its classes; those of Columns are taken in the"
    ):
        assert gap.evaluate("noise", model, data, BUDGET).rows[0]["clean_accuracy"] < 0.2


def test_python_functions_unknown_class_name_is_refused_in_one_line(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    named = gap.Classifier(model, class_names=[*Digits.classes[:9], "nine"])
    data = Digits(digits[0][:20], digits[1][:20])
    for call in (
        lambda: gap.evaluate("noise", named, data, BUDGET),
        lambda: gap.pretrain(named, data, epochs=1, progress=False),
        lambda: gap.judge(named, digits, BUDGET, images=5, training=data, fast=True, progress=False),
    ):
        with pytest.raises(GapError, match=r"does not know 'digit 9' .*or a pair of images and labels, which") as error:
            call()
        assert "\n" not in str(error.value)


def test_evaluate_labels_without_names_are_indices(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: indices that are taken for names because the class names are numbers."""
    nonzero = digits[1][:200] > 0
    subset = (digits[0][:200][nonzero], digits[1][:200][nonzero])
    named = gap.Classifier(model, class_names=[str(number) for number in range(1, 11)])
    assert gap.evaluate("noise", named, subset, BUDGET).rows[0]["clean_accuracy"] > 0.9


@pytest.mark.parametrize("train", ["pretrain", "harden"])
def test_training_classifier_has_the_class_names_of_the_data(
    train: str, model: Net, digits: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """Catches: a trained classifier without the class names of its data."""
    data = Digits(digits[0][:100], digits[1][:100])
    options = {"epochs": 1, "batch_size": 50, "progress": False}
    trained = (
        gap.pretrain("mnist-cnn", data, **options)
        if train == "pretrain"
        else gap.harden(model, data, BUDGET, attacks=["fgsm"], **options)
    )
    assert trained.classifier.spec.class_names == Digits.classes
    assert trained.artifact.card["classifier"]["class_names"] == list(Digits.classes)
    with pytest.warns(GapWarning, match="matched to those of .* by name: digit 9 is class 9"):
        gap.evaluate(
            "noise", trained.classifier, ReversedDigits(data.images, torch.tensor(data.targets)), BUDGET, images=10
        )


def test_pgd_textbook_options_equal_the_loop_of_the_paper(model: Net, digits: tuple[Tensor, Tensor]) -> None:
    """Catches: a cap, a schedule, an early stop or a projection that differs from those of other libraries."""
    images, labels = digits[0][:16] / 255, digits[1][:16]
    attack = gap.attacks.PGD(
        BUDGET, steps=5, loss="cross-entropy", step_size=0.05, step_schedule="constant", early_stop=False
    )
    torch.manual_seed(0)
    actual = attack(model, images, labels)
    torch.manual_seed(0)
    model.eval()
    expected = (images + torch.empty_like(images).uniform_(-0.2, 0.2)).clamp(0, 1)
    for _ in range(5):
        expected = expected.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(
            nn.functional.cross_entropy(model(expected), labels, reduction="sum"), expected
        )
        expected = (images + (expected + 0.05 * gradient.sign() - images).clamp(-0.2, 0.2)).clamp(0, 1)
    model.train()
    torch.testing.assert_close(actual, expected.detach(), atol=1e-5, rtol=0)
