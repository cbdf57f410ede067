"""What the options of `gap harden` make, and what it leaves."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from gap.classifiers.classifier import load_classifier
from gap.core.artifact import open_artefact
from gap.core.errors import GapWarning
from gap.hardening.initializers import GeneratorStart, RandomStart, UniversalStart
from gap.hardening.task import HardenJob
from gap.hardening.train import HardenOptions, harden, make_job, make_sparring


def read(**given: Any) -> HardenOptions:
    return HardenOptions.read({"classifier": "mnist-cnn", "budget": "linf:0.1", **given})


def test_options_reach_the_job() -> None:
    given = {"clean": 0.25, "smoothing": 0.1, "warmup": 0.5, "renew": 1.0, "epochs": 4.0, "watch": False, "shift": 2}
    job = make_job(read(average=0.1, **given), load_classifier("mnist-cnn"), steps=100)
    assert (job.clean, job.smoothing, job.warmup, job.renewal, job.watched) == (0.25, 0.1, 50, 25, False)
    assert job.last == 100
    images = torch.rand(8, 1, 28, 28)
    assert not torch.equal(job.augmentation(images), images)
    plain = make_job(read(), load_classifier("mnist-cnn"), steps=100)
    assert plain.watched and torch.equal(plain.augmentation(images), images)
    (weight, *_), (average, *_) = job.players["classifier"].bare.parameters(), job.averaged.module.parameters()
    for value in (0.0, 1.0):
        weight.data.fill_(value)
        job.averaged.update_parameters(job.players["classifier"].bare)
    torch.testing.assert_close(average, torch.full_like(average, 0.1))


@pytest.mark.parametrize(
    ("attack", "start", "told", "steps", "projected", "beta"),
    [
        ("generator", GeneratorStart, {"noise": 0.0}, 0, True, None),
        ("generator-start", GeneratorStart, {"noise": 0.5}, 3, True, None),
        ("generator-start:steps=1", GeneratorStart, {"noise": 0.5}, 1, True, None),
        ("universal", UniversalStart, {"noise": 0.0}, 0, True, None),
        ("universal-start", UniversalStart, {"noise": 0.5}, 3, True, None),
        ("fgsm", RandomStart, {"reach": 2.0}, 1, False, None),
        ("pgd", RandomStart, {"reach": 1.0}, 3, True, None),
        ("trades", RandomStart, {"reach": 1.0}, 3, True, 4.0),
        ("trades-start", GeneratorStart, {"noise": 0.5}, 3, True, 4.0),
    ],
)
def test_attacks_are_what_their_names_say(
    attack: str, start: type, told: dict[str, float], steps: int, projected: bool, beta: float | None
) -> None:
    options = read(attack=["pgd", "trades"], steps=3, beta=4.0)
    made = make_sparring(attack, 1.0, options, load_classifier("mnist-cnn"))
    assert type(made.start) is start and {name: getattr(made.start, name) for name in told} == told
    assert (made.steps, made.projected, made.beta) == (steps, projected, beta)


def test_the_weights_left_are_those_that_withstood_the_probe_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    probes, judged = iter((0.9, 0.1)), HardenJob.judged

    def note(job: HardenJob, figures: dict[str, float]) -> None:
        seen.append({name: value.clone() for name, value in job.averaged.module.state_dict().items()})
        judged(job, {**figures, "probe_accuracy": next(probes)})

    monkeypatch.setattr(HardenJob, "judged", note)
    options = read(attack=["pgd"], steps=1, epochs=2.0, batch_size=500, probed=50, watch=False, warmup=0.0)
    harden(options, folder := tmp_path / "hard")
    first, last = seen
    left = load_classifier(str(folder)).state_dict()
    assert all(torch.equal(left[name], value) for name, value in first.items() if name in left)
    assert any(not torch.equal(left[name], value) for name, value in last.items() if name in left)
    assert open_artefact(folder, "classifier").card["figures"]["validation"]["probe_accuracy"] == 0.9


def test_harden_of_a_fresh_network_leaves_a_classifier_that_knows_the_names_of_its_classes(tmp_path: Path) -> None:
    options = read(attack=["fgsm"], epochs=0.02, batch_size=50, probed=10, watch=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GapWarning)  # it learned nothing yet
        card = harden(options, tmp_path / "hard").card
    assert card["classifier"]["class_names"] == list("0123456789")


def test_a_classifier_that_withstands_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = HardenJob.judged
    monkeypatch.setattr(HardenJob, "judged", lambda job, figures: judged(job, {**figures, "probe_accuracy": 0.05}))
    options = read(attack=["pgd"], steps=1, epochs=1.0, batch_size=250, probed=50, watch=False, warmup=0.0)
    with pytest.warns(GapWarning, match=r"withstands nothing: 5\.0% left under the probe within linf:0\.1"):
        harden(options, tmp_path / "hard")
