"""DeepFool against its closed form on affine classifiers and against foolbox on a curved one."""

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
def test_affine_distance_is_exact(norm, classes):
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
    near = (nearest > 2e-4) & (nearest < 0.35)  # not on a boundary, and not so far that the clamp bites
    assert near.sum() > 20

    deepfool = DeepFool(norm=norm, overshoot=0.02, candidates=classes)
    with torch.no_grad():
        path = deepfool.path_to_boundary(net, images, labels)
    # The path ends at the boundary, up to the overshoot that the last step may have used already.
    assert Budget(norm, 1.0).norm_of(path)[near].tolist() == pytest.approx(nearest[near].tolist(), rel=1e-4)
    adversarial = deepfool(net, images, labels)
    measured = Budget(norm, 1.0).norm_of(adversarial - images)
    assert (measured[near] > 1.0199 * nearest[near]).all()
    assert bool((net(adversarial).argmax(dim=1) != labels)[near].all())


@torch.no_grad()
def unrounded(deepfool, pictures):
    """The adversarial images of the paper's method, which ends before anything is said of 8 bits."""
    path = deepfool.path_to_boundary(pictures.net, pictures.images, pictures.labels)
    return (pictures.images + (1 + deepfool.overshoot) * path).clamp(0, 1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_curved_distance_agrees_with_foolbox(norm, pictures):
    theirs = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}[norm]
    model = foolbox.PyTorchModel(pictures.net, bounds=(0, 1))
    expected = theirs().run(model, pictures.images, pictures.labels)
    ours = unrounded(DeepFool(norm=norm), pictures)
    assert pictures.accuracy(ours) == pictures.accuracy(expected) == 0
    mean = Budget(norm, 1.0).norm_of
    expected_mean = mean(expected - pictures.images).mean().item()
    assert mean(ours - pictures.images).mean().item() == pytest.approx(expected_mean, rel=0.03)


def test_a_budget_cuts_what_is_farther_away(pictures):
    images = to_8bit(pictures.images)
    free = DeepFool(norm="l2")(pictures.net, images, pictures.labels)
    needed = (free - images).flatten(1).norm(dim=1)
    budget = Budget("l2", needed.median().item())
    bounded = DeepFool(budget)(pictures.net, images, pictures.labels)
    near = needed < 0.99 * budget.epsilon
    assert torch.allclose(bounded[near], free[near], atol=1e-6)
    # Growing in steps passes the least length by up to 5%, and the budget is hit without that.
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
    plain = (images + (1 + deepfool.overshoot) * path).clamp(0, 1)
    assert pictures.accuracy(plain) == 0
    assert pictures.accuracy(quantize_towards(images, plain)) > 0.3


def test_the_norm_of_the_budget_is_the_norm_of_the_walk(pictures):
    wide = DeepFool(Budget("linf", 1.0))(pictures.net, pictures.images, pictures.labels)
    assert torch.equal(wide, DeepFool(norm="linf")(pictures.net, pictures.images, pictures.labels))


def test_what_is_already_wrong_stays(pictures):
    assert torch.equal(DeepFool()(pictures.net, pictures.images, (pictures.labels + 1) % 4), pictures.images)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_almost_flat_classifier_is_walked_along_its_slope(norm):
    """The boundary is 1e30 pixels away; the budget is spent towards it all the same."""

    class AlmostFlat(nn.Module):
        def forward(self, images):
            return torch.tensor([[1.0, 0.0]]) + torch.tensor([[-1e-30, 1e-30]]) * images.flatten(1).sum(1, keepdim=True)

    images = torch.full((2, 1, 4, 4), 0.5)
    change = DeepFool(Budget(norm, 0.1))(AlmostFlat(), images, torch.zeros(2, dtype=torch.long)) - images
    assert Budget(norm, 0.1).norm_of(change).tolist() == pytest.approx([0.1, 0.1], rel=1e-4)
    assert (change > 0).all()


def test_candidates_limit_the_classes_looked_at():
    net = affine(6)
    images = 0.4 + 0.2 * torch.rand(30, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = net(images)
    labels, second = logits.topk(2).indices.unbind(dim=1)
    with torch.no_grad():
        reached = net(DeepFool(candidates=2)(net, images, labels)).argmax(dim=1)
    # Only the runner-up is walked to; another class can be met only on the way.
    assert (reached == second).double().mean() > 0.7


@pytest.mark.parametrize("options", [{"steps": 0}, {"candidates": 1}, {"overshoot": -0.1}, {"norm": "l7"}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(GapError):
        DeepFool(**options)
