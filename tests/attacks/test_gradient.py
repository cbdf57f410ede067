"""PGD and FGSM against independent implementations, and what PGD promises about restarts and what it keeps."""

import copy

import foolbox
import pytest
import torch
from torch import nn

from gap.attacks.gradient import FGSM, PGD
from gap.attacks.losses import Criterion, margin
from gap.core.errors import GapError
from gap.threat import L2, Budget

BUDGETS = [Budget("linf", 0.05), Budget("l2", 0.5)]
ids = pytest.mark.parametrize("budget", BUDGETS, ids=str)


@ids
def test_fgsm_equals_foolbox(budget, pictures):
    theirs = {"linf": foolbox.attacks.LinfFastGradientAttack, "l2": foolbox.attacks.L2FastGradientAttack}[
        budget.norm.name
    ]
    # In float64, for in float32 the cross-entropy of a sure image keeps few digits of its gradient in their form.
    net, images = copy.deepcopy(pictures.net).double(), pictures.images.double()
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    expected = theirs(random_start=False).run(model, images, pictures.labels, epsilon=budget.epsilon)
    ours = FGSM(budget)(net, images, pictures.labels)
    assert torch.allclose(ours, expected, atol=1e-6)
    assert (ours - images).abs().max() > 0.01


@ids
def test_pgd_leaves_no_more_than_foolbox_does(budget, pictures):
    torch.manual_seed(0)
    ours = pictures.accuracy(PGD(budget)(pictures.net, pictures.images, pictures.labels))

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[budget.norm.name]
    peer, model = kind(steps=40), foolbox.PyTorchModel(pictures.net, bounds=(0, 1))
    from_foolbox = peer.run(model, pictures.images, pictures.labels, epsilon=budget.epsilon)

    assert 0.02 < ours < 0.9, "too easy or too hard to tell attacks apart"
    assert ours <= pictures.accuracy(from_foolbox)


@ids
def test_pgd_beats_fgsm_by_far(budget, pictures):
    torch.manual_seed(0)
    ours = pictures.accuracy(PGD(budget)(pictures.net, pictures.images, pictures.labels))
    assert ours < pictures.accuracy(FGSM(budget)(pictures.net, pictures.images, pictures.labels)) - 0.05


@ids
def test_one_more_run_never_loses_a_success(budget, pictures):
    """The first run of both is the same, so what it fooled must stay fooled."""

    def fooled(attack):
        torch.manual_seed(3)
        adversarial = attack(pictures.net, pictures.images, pictures.labels)
        with torch.no_grad():
            return pictures.net(adversarial).argmax(dim=1) != pictures.labels

    # Steps far too long throw images about; only keeping the best of all iterates and runs is safe from that.
    one, two = PGD(budget, steps=5, relative_step_sizes=(0.5,)), PGD(budget, steps=5, relative_step_sizes=(0.5, 50.0))
    assert fooled(one).any()
    assert bool((fooled(two) | ~fooled(one)).all())


@pytest.mark.parametrize(("restarts", "relative_step_sizes"), [(1, (1.0,)), (3, (1.0,)), (2, (0.25, 1.0))])
def test_what_withstands_costs_every_step_of_every_run(restarts, relative_step_sizes):
    class Steadfast(nn.Module):
        gradients = 0

        def forward(self, images):
            self.gradients += torch.is_grad_enabled()
            return torch.tensor([[9.0, 0.0]]) + 0 * images.flatten(1)[:, :1]

    net, images = Steadfast(), torch.rand(2, 1, 3, 3)
    PGD(Budget("linf", 0.1), steps=4, restarts=restarts, relative_step_sizes=relative_step_sizes)(
        net, images, torch.tensor([0, 0])
    )
    assert net.gradients == 4 * restarts * len(relative_step_sizes)


@ids
def test_pgd_finds_its_way_off_a_plateau(budget):
    """The gradient at the clean image is 0, as in a classifier that masks it; only a random start gets past."""

    class Plateau(nn.Module):
        def forward(self, images):
            away = (images - 0.5).square().flatten(1).sum(dim=1, keepdim=True)
            return torch.cat([torch.full_like(away, 0.5 * budget.epsilon**2), away], dim=1)

    torch.manual_seed(0)
    images = torch.full((4, 1, 3, 3), 0.5)
    adversarial = PGD(budget)(Plateau(), images, torch.zeros(4, dtype=torch.long))
    assert bool((Plateau()(adversarial).argmax(dim=1) == 1).all())


@ids
def test_pgd_keeps_the_lowest_margin_it_met(budget, pictures):
    """Steps that only throw images about must never leave one worse off than it began."""
    torch.manual_seed(0)
    adversarial = PGD(budget, steps=3, relative_step_sizes=(100.0,))(pictures.net, pictures.images, pictures.labels)
    with torch.no_grad():
        clean, attacked = pictures.net(pictures.images), pictures.net(adversarial)
    criterion = Criterion(pictures.labels)
    assert bool((margin(attacked, clean, criterion) <= margin(clean, clean, criterion)).all())


def test_pgd_goes_past_the_boundary_so_that_8_bits_do_not_undo_it(pictures):
    budget = Budget("l2", 1.0)

    def left_after_8_bit(confidence):
        torch.manual_seed(0)
        attack = PGD(budget, confidence=confidence)
        adversarial = attack(pictures.net, pictures.images, pictures.labels)
        assert pictures.accuracy(adversarial) == 0
        return pictures.accuracy(budget.quantize(pictures.images, adversarial))

    assert left_after_8_bit(1.0) == 0
    assert left_after_8_bit(0.0) > 0.02


def test_pgd_gets_as_far_past_the_boundary_as_it_is_asked(pictures):
    torch.manual_seed(0)
    found = PGD(Budget("l2", 2.0), confidence=4.0)(pictures.net, pictures.images, pictures.labels)
    with torch.no_grad():
        margins = margin(pictures.net(found), None, Criterion(pictures.labels), confidence=100.0)
    assert (margins <= -4.0).all()
    # It stops there: the whole budget would lead three times as far.
    assert margins.mean() > -7.0


def test_pgd_returns_what_is_already_wrong_untouched(pictures):
    wrong = (pictures.labels + 1) % 4
    assert torch.equal(PGD(Budget("linf", 0.1))(pictures.net, pictures.images, wrong), pictures.images)


def test_targeted_pgd_reaches_the_class_asked_for(pictures):
    torch.manual_seed(0)
    target = (pictures.labels + 1) % 4
    adversarial = PGD(Budget("l2", 1.5), targeted=True)(pictures.net, pictures.images, target)
    with torch.no_grad():
        reached = (pictures.net(adversarial).argmax(dim=1) == target).double().mean()
    assert reached > 0.95


def test_the_default_loss_breaks_a_classifier_whose_cross_entropy_has_no_gradient(pictures):
    """At a logit margin of hundreds the usual cross-entropy is exactly 0, and its gradient with it."""

    class Sharp(nn.Module):
        def forward(self, images):
            return 500 * pictures.net(images)

    torch.manual_seed(0)
    adversarial = PGD(Budget("linf", 0.1))(Sharp(), pictures.images, pictures.labels)
    assert pictures.accuracy(adversarial) == 0


@ids
def test_a_good_start_makes_few_steps_enough(budget, pictures):
    """From the end of a long search two steps lose next to nothing of it; from random starts they are far from it."""
    long, few = PGD(budget), {"steps": 2, "relative_step_sizes": (0.25,)}

    def left(attack):
        torch.manual_seed(0)
        adversarial = attack(pictures.net, pictures.images, pictures.labels)
        assert budget.norm_of(adversarial - pictures.images).max() <= budget.epsilon * (1 + 1e-5)
        return pictures.accuracy(adversarial)

    assert left(PGD(budget, **few, init=long)) <= left(long) + 0.01 < left(PGD(budget, **few)) - 0.05


def test_a_start_is_brought_inside_the_budget(pictures):
    budget, wide = Budget("linf", 0.02), PGD(Budget("linf", 0.3), steps=5)
    adversarial = PGD(budget, steps=1, init=wide)(pictures.net, pictures.images, pictures.labels)
    assert (adversarial - pictures.images).abs().max() <= 0.02 + 1e-6


def test_steepest_survives_gradients_that_underflow_when_squared():
    gradient = torch.tensor([3e-30, 4e-30]).view(1, 1, 1, 2)
    assert L2.steepest(gradient).flatten().tolist() == pytest.approx([0.6, 0.8])
    assert L2.steepest(torch.zeros(1, 1, 2, 2)).abs().max() == 0


def test_starts_fill_the_ball():
    torch.manual_seed(0)
    images = torch.zeros(4000, 1, 1, 2)
    for budget, share_within_half in (
        (Budget("linf", 0.2), 0.25),
        (Budget("l2", 0.2), 0.25),
        (Budget("l1", 0.2), 0.25),
    ):
        starts = budget.sample(images)
        lengths = budget.norm_of(starts)
        assert lengths.max() <= 0.2 * (1 + 1e-6)
        # In two dimensions half the radius holds a quarter of each ball.
        assert (lengths < 0.1).double().mean().item() == pytest.approx(share_within_half, abs=0.03)
        assert starts.mean().abs() < 0.01


def test_a_classifier_without_gradient_is_said_to_be_one():
    class Steps(nn.Module):
        def forward(self, images):
            return images.flatten(1).round().detach()

    with pytest.raises(GapError, match="no gradient"):
        FGSM(Budget("linf", 0.1))(Steps(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"restarts": 0}, {"relative_step_sizes": ()}, {"relative_step_sizes": (0.0,)},
                {"confidence": -1.0}, {"confidence": float("nan")}, {"loss": "margins"}]
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(GapError):
        PGD(Budget("linf", 0.1), **options)
