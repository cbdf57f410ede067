"""create_attack: every name makes an attack, options are passed on, mistakes are reported by name."""

from pathlib import Path

import pytest
import torch

from gap.attacks.deepfool import DeepFool
from gap.attacks.gradient import FGSM, PGD
from gap.attacks.noise import Checkerboard
from gap.attacks.registry import attack_options, create_attack, init_folder_of, list_attacks
from gap.attacks.universal import Universal
from gap.core.errors import GapError
from gap.threat import Budget

BUDGET = Budget("linf", 0.1)


def test_list_attacks_has_the_documented_names_with_descriptions():
    names = list_attacks()
    assert set(names) == {"pgd", "fgsm", "deepfool", "uap", "uap-sign-sgd", "uap-sgd", "noise", "checkerboard"}
    assert all(len(line) > 20 for line in names.values())


@pytest.mark.parametrize("name", list_attacks())
def test_create_attack_every_name_makes_a_working_attack_named_by_its_spec(name, pictures):
    spec = f"{name}:images_seen=60" if name.startswith("uap") else name
    attack = create_attack(spec, BUDGET, pictures.net, pictures.batches)
    assert attack.name == spec
    adversarial = attack(pictures.net, pictures.images[:4], pictures.labels[:4])
    assert (adversarial - pictures.images[:4]).abs().max() > 0


def test_create_attack_options_are_converted_to_their_types():
    spec = "pgd: steps=100, restarts=3,loss=capped-cross-entropy,relative_step_sizes=0.5/2,confidence=1e-1"
    assert create_attack(spec, BUDGET) == PGD(
        BUDGET,
        steps=100,
        restarts=3,
        loss="capped-cross-entropy",
        relative_step_sizes=(0.5, 2.0),
        confidence=0.1,
        name=spec,
    )
    assert create_attack("checkerboard:side=2", BUDGET) == Checkerboard(BUDGET, side=2, name="checkerboard:side=2")
    assert create_attack("deepfool:overshoot=0.1", BUDGET) == DeepFool(
        BUDGET, overshoot=0.1, name="deepfool:overshoot=0.1"
    )
    assert create_attack("fgsm", BUDGET) == FGSM(BUDGET)


def test_create_attack_uap_options_are_passed_to_the_fit(pictures):
    def fitted(spec):
        torch.manual_seed(0)
        attack = create_attack(spec, BUDGET, pictures.net, pictures.batches)
        assert isinstance(attack, Universal)
        return attack.perturbation

    assert not torch.equal(fitted("uap-sgd:images_seen=60"), fitted("uap-sgd:images_seen=60,step=0.01"))


@pytest.mark.parametrize("name", list_attacks())
def test_attack_options_listed_defaults_are_accepted_by_create_attack(name, pictures):
    options = attack_options(name)
    assert not {"budget", "name", "classifier", "batches", "targeted"} & set(options)
    if name.startswith("uap"):
        options["images_seen"] = "60"
    spec = f"{name}:" + ",".join(f"{option}={value}" for option, value in options.items() if value)
    assert create_attack(spec, BUDGET, pictures.net, pictures.batches).name == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pdg", "did you mean pgd"),
        ("", "unknown attack"),
        ("pgd:step=3", "unknown option of pgd 'step'; did you mean steps"),
        ("noise:steps=3", "unknown option of noise"),
        ("pgd:steps=many", "the option steps of pgd is a whole number, not 'many'"),
        ("pgd:steps=2.5", "whole number"),
        ("pgd:relative_step_sizes=1/x", "numbers parted by /"),
        ("pgd:steps", "write pgd:option=value"),
        ("pgd:steps=", "write pgd:option=value"),
        ("pgd:steps=1,steps=2", "twice"),
        ("pgd:steps=0", "at least 1 step"),
        ("pgd:loss=margn", "did you mean margin"),
        ("pgd:budget=linf:1", "unknown option of pgd 'budget'"),
        ("pgd:__class__=1", "unknown option of pgd"),
        ("pgd:init=nowhere", "nowhere"),
        ("uap", "fitted to a classifier on training images"),
    ],
)
def test_create_attack_invalid_spec_raises_one_line_that_names_the_mistake(spec, message):
    with pytest.raises(GapError, match=message) as error:
        create_attack(spec, BUDGET)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a,b", "a=b", "a,steps=3", "me@lab:x", "a,b=c,d"])
def test_init_folder_of_existing_folder_may_contain_separators(name, tmp_path, monkeypatch):
    """Catches: a folder name cut at its own comma or equals sign."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert init_folder_of(f"pgd:restarts=2,init={name},steps=2") == Path(name)
    assert init_folder_of(f"pgd:init={name}") == Path(name)
    with pytest.raises(GapError, match="is not a folder that gap wrote"):
        create_attack(f"pgd:init={name},steps=2", BUDGET)
    with pytest.raises(GapError, match="unknown option of pgd 'step'; did you mean steps"):
        init_folder_of(f"pgd:init={name},step=2")


def test_init_folder_of_missing_folder_ends_at_the_comma():
    assert init_folder_of("pgd:init=nowhere/a,steps=2") == Path("nowhere/a")
