"""PGD and FGSM against foolbox, and the properties of PGD: restarts, the best iterate, the initial attack."""

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
each_budget = pytest.mark.parametrize("budget", BUDGETS, ids=str)


@each_budget
def test_fgsm_float64_images_equal_those_of_foolbox(budget, pictures):
    peer = {"linf": foolbox.attacks.LinfFastGradientAttack, "l2": foolbox.attacks.L2FastGradientAttack}[
        budget.norm.name
    ]
    # In float64: in float32 foolbox's gradient of cross-entropy is imprecise where the classifier is confident.
    net, images = copy.deepcopy(pictures.net).double(), pictures.images.double()
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    expected = peer(random_start=False).run(model, images, pictures.labels, epsilon=budget.epsilon)
    adversarial = FGSM(budget)(net, images, pictures.labels)
    assert torch.allclose(adversarial, expected, atol=1e-6)
    assert (adversarial - images).abs().max() > 0.01


@each_budget
def test_pgd_default_options_accuracy_is_at_most_that_of_foolbox(budget, pictures):
    torch.manual_seed(0)
    accuracy = pictures.accuracy(PGD(budget)(pictures.net, pictures.images, pictures.labels))

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[budget.norm.name]
    peer, model = kind(steps=40), foolbox.PyTorchModel(pictures.net, bounds=(0, 1))
    adversarial = peer.run(model, pictures.images, pictures.labels, epsilon=budget.epsilon)

    assert 0.02 < accuracy < 0.9, "too easy or too hard to compare attacks"
    assert accuracy <= pictures.accuracy(adversarial)


@each_budget
def test_pgd_default_options_accuracy_is_far_below_that_of_fgsm(budget, pictures):
    torch.manual_seed(0)
    accuracy = pictures.accuracy(PGD(budget)(pictures.net, pictures.images, pictures.labels))
    assert accuracy < pictures.accuracy(FGSM(budget)(pictures.net, pictures.images, pictures.labels)) - 0.05


@each_budget
def test_pgd_additional_run_keeps_the_images_fooled_by_the_first(budget, pictures):
    """Catches: a later run that overwrites the success of an earlier one. The first run of both attacks is the same."""

    def fooled(attack):
        torch.manual_seed(3)
        adversarial = attack(pictures.net, pictures.images, pictures.labels)
        with torch.no_grad():
            return pictures.net(adversarial).argmax(dim=1) != pictures.labels

    # The second run takes steps far too long, so its last iterates are worse than the best of the first run.
    one, two = PGD(budget, steps=5, relative_step_sizes=(0.5,)), PGD(budget, steps=5, relative_step_sizes=(0.5, 50.0))
    assert fooled(one).any()
    assert bool((fooled(two) | ~fooled(one)).all())


@pytest.mark.parametrize(("restarts", "relative_step_sizes"), [(1, (1.0,)), (3, (1.0,)), (2, (0.25, 1.0))])
def test_pgd_robust_images_take_every_step_of_every_run(restarts, relative_step_sizes):
    """Catches: runs or steps that are skipped where no image is fooled."""

    class Robust(nn.Module):
        gradients = 0

        def forward(self, images):
            self.gradients += torch.is_grad_enabled()
            return torch.tensor([[9.0, 0.0]]) + 0 * images.flatten(1)[:, :1]

    net, images = Robust(), torch.rand(2, 1, 3, 3)
    PGD(Budget("linf", 0.1), steps=4, restarts=restarts, relative_step_sizes=relative_step_sizes)(
        net, images, torch.tensor([0, 0])
    )
    assert net.gradients == 4 * restarts * len(relative_step_sizes)


@each_budget
def test_pgd_zero_gradient_at_clean_image_still_fools_the_classifier(budget):
    """Catches: a run without random initialization. The gradient at the clean image is 0, as under gradient masking."""

    class ZeroGradient(nn.Module):
        def forward(self, images):
            distance = (images - 0.5).square().flatten(1).sum(dim=1, keepdim=True)
            return torch.cat([torch.full_like(distance, 0.5 * budget.epsilon**2), distance], dim=1)

    torch.manual_seed(0)
    images = torch.full((4, 1, 3, 3), 0.5)
    adversarial = PGD(budget)(ZeroGradient(), images, torch.zeros(4, dtype=torch.long))
    assert bool((ZeroGradient()(adversarial).argmax(dim=1) == 1).all())


@each_budget
def test_pgd_too_long_steps_never_raise_the_margin_above_the_clean_one(budget, pictures):
    """Catches: the last iterate returned in place of the best one."""
    torch.manual_seed(0)
    adversarial = PGD(budget, steps=3, relative_step_sizes=(100.0,))(pictures.net, pictures.images, pictures.labels)
    with torch.no_grad():
        clean, attacked = pictures.net(pictures.images), pictures.net(adversarial)
    criterion = Criterion(pictures.labels)
    assert bool((margin(attacked, clean, criterion) <= margin(clean, clean, criterion)).all())


def test_pgd_confidence_keeps_images_misclassified_after_8_bit_rounding(pictures):
    budget = Budget("l2", 1.0)

    def accuracy_after_rounding(confidence):
        torch.manual_seed(0)
        attack = PGD(budget, confidence=confidence)
        adversarial = attack(pictures.net, pictures.images, pictures.labels)
        assert pictures.accuracy(adversarial) == 0
        return pictures.accuracy(budget.quantize(pictures.images, adversarial))

    assert accuracy_after_rounding(1.0) == 0
    assert accuracy_after_rounding(0.0) > 0.02


def test_pgd_confidence_stops_at_the_requested_margin(pictures):
    torch.manual_seed(0)
    adversarial = PGD(Budget("l2", 2.0), confidence=4.0)(pictures.net, pictures.images, pictures.labels)
    with torch.no_grad():
        margins = margin(pictures.net(adversarial), None, Criterion(pictures.labels), confidence=100.0)
    assert (margins <= -4.0).all()
    # It stops there: the whole budget would reach about three times this margin.
    assert margins.mean() > -7.0


def test_pgd_already_misclassified_images_are_returned_unchanged(pictures):
    other_labels = (pictures.labels + 1) % 4
    assert torch.equal(PGD(Budget("linf", 0.1))(pictures.net, pictures.images, other_labels), pictures.images)


def test_pgd_targeted_reaches_the_target_class(pictures):
    torch.manual_seed(0)
    target = (pictures.labels + 1) % 4
    adversarial = PGD(Budget("l2", 1.5), targeted=True)(pictures.net, pictures.images, target)
    with torch.no_grad():
        reached = (pictures.net(adversarial).argmax(dim=1) == target).double().mean()
    assert reached > 0.95


def test_pgd_default_loss_fools_a_classifier_with_vanishing_cross_entropy_gradient(pictures):
    """Catches: a loss that saturates. At a logit margin of hundreds cross-entropy and its gradient are exactly 0."""

    class Sharp(nn.Module):
        def forward(self, images):
            return 500 * pictures.net(images)

    torch.manual_seed(0)
    adversarial = PGD(Budget("linf", 0.1))(Sharp(), pictures.images, pictures.labels)
    assert pictures.accuracy(adversarial) == 0


@each_budget
def test_pgd_init_from_a_long_attack_needs_few_steps(budget, pictures):
    """Catches: an `init` attack that is ignored. Two steps from random points are far weaker than the long attack."""
    long_attack, two_steps = PGD(budget), {"steps": 2, "relative_step_sizes": (0.25,)}

    def accuracy(attack):
        torch.manual_seed(0)
        adversarial = attack(pictures.net, pictures.images, pictures.labels)
        assert budget.norm_of(adversarial - pictures.images).max() <= budget.epsilon * (1 + 1e-5)
        return pictures.accuracy(adversarial)

    assert (
        accuracy(PGD(budget, **two_steps, init=long_attack))
        <= accuracy(long_attack) + 0.01
        < accuracy(PGD(budget, **two_steps)) - 0.05
    )


def test_pgd_init_outside_the_budget_is_projected_into_it(pictures):
    budget, larger_attack = Budget("linf", 0.02), PGD(Budget("linf", 0.3), steps=5)
    adversarial = PGD(budget, steps=1, init=larger_attack)(pictures.net, pictures.images, pictures.labels)
    assert (adversarial - pictures.images).abs().max() <= 0.02 + 1e-6


def test_l2_steepest_tiny_gradient_keeps_its_direction():
    """Catches: squares that underflow to 0 in the norm of the gradient."""
    gradient = torch.tensor([3e-30, 4e-30]).view(1, 1, 1, 2)
    assert L2.steepest(gradient).flatten().tolist() == pytest.approx([0.6, 0.8])
    assert L2.steepest(torch.zeros(1, 1, 2, 2)).abs().max() == 0


def test_budget_sample_fills_the_ball_uniformly():
    torch.manual_seed(0)
    images = torch.zeros(4000, 1, 1, 2)
    for budget, expected_fraction in (
        (Budget("linf", 0.2), 0.25),
        (Budget("l2", 0.2), 0.25),
        (Budget("l1", 0.2), 0.25),
    ):
        samples = budget.sample(images)
        norms = budget.norm_of(samples)
        assert norms.max() <= 0.2 * (1 + 1e-6)
        # In two dimensions half the radius holds a quarter of each ball.
        assert (norms < 0.1).double().mean().item() == pytest.approx(expected_fraction, abs=0.03)
        assert samples.mean().abs() < 0.01


def test_fgsm_classifier_without_gradient_raises_an_error_that_says_so():
    class Rounding(nn.Module):
        def forward(self, images):
            return images.flatten(1).round().detach()

    with pytest.raises(GapError, match="no gradient"):
        FGSM(Budget("linf", 0.1))(Rounding(), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"restarts": 0}, {"relative_step_sizes": ()}, {"relative_step_sizes": (0.0,)},
                {"confidence": -1.0}, {"confidence": float("nan")}, {"loss": "margins"}]
)  # fmt: skip
def test_pgd_invalid_options_raise_gap_error(options):
    with pytest.raises(GapError):
        PGD(Budget("linf", 0.1), **options)
