"""DeepFool against its closed form on affine classifiers and against foolbox on a nonlinear one."""

import foolbox
import pytest
import torch
from torch import nn

from gap.attacks.deepfool import DeepFool
from gap.core.errors import GapError
from gap.threat import Budget, quantize_towards, to_8bit


def affine(classes, pixels=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(pixels, classes)
    layer.weight.data = torch.randn(classes, pixels, generator=generator)
    layer.bias.data = -layer.weight.data.sum(dim=1) / 2 + 0.1 * torch.randn(classes, generator=generator)
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [2, 6])
def test_deepfool_affine_classifier_perturbation_has_the_exact_boundary_distance(norm, classes):
    torch.manual_seed(0)
    net = affine(classes)
    images = 0.4 + 0.2 * torch.rand(40, 1, 3, 3)
    with torch.no_grad():
        logits = net(images)
    labels = logits.argmax(dim=1)
    weight = net[1].weight.detach()
    gaps = logits.gather(1, labels[:, None]) - logits
    slopes = weight[labels][:, None] - weight[None]
    dual = slopes.norm(dim=2) if norm == "l2" else slopes.abs().sum(dim=2)
    nearest = (gaps / dual).nan_to_num(nan=torch.inf).amin(dim=1)
    # Images that are not on the boundary, and near enough to it that nothing is clamped to [0, 1].
    tested = (nearest > 2e-4) & (nearest < 0.35)
    assert tested.sum() > 20

    deepfool = DeepFool(norm=norm, overshoot=0.02, candidates=classes)
    with torch.no_grad():
        path = deepfool.path_to_boundary(net, images, labels)
    # The path ends at the boundary, up to the overshoot that the last step may have used already.
    assert Budget(norm, 1.0).norm_of(path)[tested].tolist() == pytest.approx(nearest[tested].tolist(), rel=1e-4)
    adversarial = deepfool(net, images, labels)
    measured = Budget(norm, 1.0).norm_of(adversarial - images)
    assert (measured[tested] > 1.0199 * nearest[tested]).all()
    assert bool((net(adversarial).argmax(dim=1) != labels)[tested].all())


@torch.no_grad()
def unrounded(deepfool, pictures):
    """The adversarial images of the method of the paper, which does not round to 8 bits."""
    path = deepfool.path_to_boundary(pictures.net, pictures.images, pictures.labels)
    return (pictures.images + (1 + deepfool.overshoot) * path).clamp(0, 1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_nonlinear_classifier_mean_distance_agrees_with_foolbox(norm, pictures):
    peer = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}[norm]
    model = foolbox.PyTorchModel(pictures.net, bounds=(0, 1))
    expected = peer().run(model, pictures.images, pictures.labels)
    adversarial = unrounded(DeepFool(norm=norm), pictures)
    assert pictures.accuracy(adversarial) == pictures.accuracy(expected) == 0
    norm_of = Budget(norm, 1.0).norm_of
    expected_mean = norm_of(expected - pictures.images).mean().item()
    assert norm_of(adversarial - pictures.images).mean().item() == pytest.approx(expected_mean, rel=0.03)


def test_deepfool_budget_below_boundary_distance_limits_the_perturbation(pictures):
    """Catches: a budget that is ignored, or that changes perturbations which are small enough."""
    images = to_8bit(pictures.images)
    unbounded = DeepFool(norm="l2")(pictures.net, images, pictures.labels)
    distances = (unbounded - images).flatten(1).norm(dim=1)
    budget = Budget("l2", distances.median().item())
    bounded = DeepFool(budget)(pictures.net, images, pictures.labels)
    within = distances < 0.99 * budget.epsilon
    assert torch.allclose(bounded[within], unbounded[within], atol=1e-6)
    # Without a budget the perturbation grows in steps and may exceed the least norm by up to 5%; with one it does not.
    assert 0.4 <= pictures.accuracy(budget.quantize(images, bounded)) <= 0.5


@pytest.mark.parametrize("budget", [None, Budget("linf", 0.1), Budget("l2", 1.0)])
def test_deepfool_rounded_to_8_bits_stays_misclassified(budget, pictures):
    """Catches: an overshoot that rounding undoes. The paper's method alone leaves most of these images correct."""
    images = to_8bit(pictures.images)
    deepfool = DeepFool(budget, norm="l2")
    adversarial = deepfool(pictures.net, images, pictures.labels)
    rounded = budget.quantize(images, adversarial) if budget else quantize_towards(images, adversarial)
    assert pictures.accuracy(rounded) == 0
    with torch.no_grad():
        path = deepfool.path_to_boundary(pictures.net, images, pictures.labels)
    paper_images = (images + (1 + deepfool.overshoot) * path).clamp(0, 1)
    assert pictures.accuracy(paper_images) == 0
    assert pictures.accuracy(quantize_towards(images, paper_images)) > 0.3


def test_deepfool_with_budget_minimizes_the_norm_of_the_budget(pictures):
    """Catches: a budget under Linf whose perturbation is computed under the default norm, L2."""
    adversarial = DeepFool(Budget("linf", 1.0))(pictures.net, pictures.images, pictures.labels)
    assert torch.equal(adversarial, DeepFool(norm="linf")(pictures.net, pictures.images, pictures.labels))


def test_deepfool_already_misclassified_images_are_returned_unchanged(pictures):
    assert torch.equal(DeepFool()(pictures.net, pictures.images, (pictures.labels + 1) % 4), pictures.images)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_tiny_gradient_spends_the_whole_budget_along_it(norm):
    """Catches: overflow or an early stop where the linearized boundary is 1e30 away; the budget should be spent."""

    class AlmostFlat(nn.Module):
        def forward(self, images):
            return torch.tensor([[1.0, 0.0]]) + torch.tensor([[-1e-30, 1e-30]]) * images.flatten(1).sum(1, keepdim=True)

    images = torch.full((2, 1, 4, 4), 0.5)
    change = DeepFool(Budget(norm, 0.1))(AlmostFlat(), images, torch.zeros(2, dtype=torch.long)) - images
    assert Budget(norm, 0.1).norm_of(change).tolist() == pytest.approx([0.1, 0.1], rel=1e-4)
    assert (change > 0).all()


def test_deepfool_two_candidates_mostly_reaches_the_runner_up_class():
    net = affine(6)
    images = 0.4 + 0.2 * torch.rand(30, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = net(images)
    labels, second = logits.topk(2).indices.unbind(dim=1)
    with torch.no_grad():
        reached = net(DeepFool(candidates=2)(net, images, labels)).argmax(dim=1)
    # Steps go towards the runner-up only; another class is reached by crossing its region.
    assert (reached == second).double().mean() > 0.7


@pytest.mark.parametrize("options", [{"steps": 0}, {"candidates": 1}, {"overshoot": -0.1}, {"norm": "l7"}])
def test_deepfool_invalid_options_raise_gap_error(options):
    with pytest.raises(GapError):
        DeepFool(**options)
