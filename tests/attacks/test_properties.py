"""Properties of every untrained attack: budget, pixel range, unchanged classifier, reproducibility."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gap.attacks.deepfool import DeepFool
from gap.attacks.gradient import FGSM, PGD
from gap.attacks.noise import Checkerboard, Noise
from gap.attacks.universal import Universal, deepfool_uap, projected_sgd, sign_sgd
from gap.threat import NORMS, Budget

FITS = {"sign-sgd": sign_sgd, "sgd": projected_sgd, "deepfool-uap": deepfool_uap}
ATTACKS = {
    "pgd": lambda budget: PGD(budget, steps=3, restarts=2),
    "pgd-ce": lambda budget: PGD(budget, steps=3, loss="capped-cross-entropy", relative_step_sizes=(2.0,)),
    "pgd-targeted": lambda budget: PGD(budget, steps=3, targeted=True),
    "fgsm": FGSM,
    "deepfool": lambda budget: DeepFool(budget, steps=3),
    "noise": Noise,
    "checkerboard": Checkerboard,
}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]

budgets = st.one_of(
    st.builds(Budget, st.just("linf"), st.floats(1 / 255, 1.0)),
    st.builds(Budget, st.just("l2"), st.floats(0.01, 20.0)),
    st.builds(Budget, st.just("l1"), st.floats(0.05, 100.0)),
)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))


def make(name, budget, net, images, labels):
    if name in FITS:
        return FITS[name](net, lambda: iter([(images, labels)]), budget, images_seen=6)
    return ATTACKS[name](budget)


def random_images(shape, classes):
    # A quarter of the pixels is at either end of the range, where perturbations are clamped.
    images = (torch.rand(shape) * 2 - 0.5).clamp(0, 1)
    return images, torch.randint(classes, (shape[0],))


@pytest.mark.parametrize("name", [*ATTACKS, *FITS])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(shape=shapes, classes=st.integers(2, 12), budget=budgets, seed=st.integers(0, 99))
def test_attack_random_images_stay_inside_the_budget_and_the_pixel_range(name, shape, classes, budget, seed, small_net):
    torch.manual_seed(seed)
    images, labels = random_images(shape, classes)
    original = images.clone()
    net = small_net(classes, shape[1])
    adversarial = make(name, budget, net, images, labels)(net, images, labels)
    assert adversarial.shape == images.shape
    assert adversarial.dtype == images.dtype
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    # Adding to a pixel near 1 rounds at 6e-8, whatever the budget.
    assert budget.norm_of(adversarial - images).max() <= budget.epsilon * (1 + 1e-6) + 1.2e-7
    assert torch.equal(images, original)


@pytest.mark.parametrize("name", [*ATTACKS, *FITS])
@pytest.mark.parametrize("device", DEVICES)
def test_attack_call_leaves_modes_weights_and_gradients_of_the_classifier_unchanged(name, device, small_net):
    torch.manual_seed(0)
    images, labels = (tensor.to(device) for tensor in random_images((4, 1, 8, 8), 5))
    net = small_net().to(device).train()
    net[5].eval()
    net[0].weight.requires_grad_(False)
    modes = [module.training for module in net.modules()]
    flags = [weight.requires_grad for weight in net.parameters()]
    state = {key: value.clone() for key, value in net.state_dict().items()}

    make(name, Budget("linf", 0.1), net, images, labels)(net, images, labels)

    assert [module.training for module in net.modules()] == modes
    assert [weight.requires_grad for weight in net.parameters()] == flags
    assert all(weight.grad is None for weight in net.parameters())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("name", [*ATTACKS, *FITS])
@pytest.mark.parametrize("budget", [Budget("linf", 0.05), Budget("l2", 0.5)], ids=str)
def test_attack_same_seed_gives_the_same_images(name, budget, pictures):
    def attacked():
        torch.manual_seed(7)
        attack = make(name, budget, pictures.net, pictures.images[:20], pictures.labels[:20])
        return attack(pictures.net, pictures.images[:20], pictures.labels[:20])

    assert torch.equal(attacked(), attacked())


@pytest.mark.parametrize("name", [*ATTACKS, *FITS])
def test_attack_under_no_grad_gives_the_same_images(name, pictures):
    """Catches: an attack that relies on its caller to enable gradients."""

    def attacked():
        torch.manual_seed(7)
        attack = make(name, Budget("l2", 0.5), pictures.net, pictures.images[:20], pictures.labels[:20])
        return attack(pictures.net, pictures.images[:20], pictures.labels[:20])

    expected = attacked()
    with torch.no_grad():
        assert torch.equal(attacked(), expected)


@pytest.mark.parametrize("name", [*ATTACKS, *FITS])
@pytest.mark.parametrize("norm", NORMS)
def test_attack_zero_gradient_gives_finite_images(name, norm):
    """Catches: a division by a zero gradient, as dead units of hardened networks cause."""

    class Flat(nn.Module):
        def forward(self, images):
            return torch.tensor([[1.0, 0.0, -1.0]]) + 0 * images.flatten(1).sum(dim=1, keepdim=True)

    images, labels = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    adversarial = make(name, Budget(norm, 0.1), Flat(), images, labels)(Flat(), images, labels)
    assert adversarial.isfinite().all()
    assert Budget(norm, 0.1).norm_of(adversarial - images).max() <= 0.1 + 1e-6


def test_universal_tensor_outside_the_budget_is_projected():
    images = torch.full((2, 1, 4, 4), 0.5)
    attack = Universal(torch.ones(1, 1, 4, 4), Budget("l2", 0.3))
    adversarial = attack(nn.Identity(), images, torch.zeros(2, dtype=torch.long))
    assert Budget("l2", 0.3).norm_of(adversarial - images).tolist() == pytest.approx([0.3, 0.3])
