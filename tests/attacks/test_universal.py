"""Universal perturbations: the fit, and the application to images of other sizes, budgets and channels."""

import pytest
import torch
from torch import nn

from gap.attacks.noise import Noise
from gap.attacks.universal import Universal, deepfool_uap, projected_sgd, sign_sgd
from gap.core.errors import GapError
from gap.threat import Budget

LABELS = torch.zeros(2, dtype=torch.long)
SGD = pytest.mark.parametrize("fit", [sign_sgd, projected_sgd])
FITS = pytest.mark.parametrize("fit", [sign_sgd, projected_sgd, deepfool_uap])


class CountedBatches:
    """Batches of the images, which record the size of every batch that is used."""

    def __init__(self, pictures):
        self.pictures, self.shapes = pictures, []

    def __call__(self):
        for images, labels in self.pictures.batches():
            self.shapes.append(len(images))
            yield images, labels


@SGD
@pytest.mark.parametrize("budget", [Budget("linf", 0.15), Budget("l2", 1.5)], ids=str)
def test_universal_sgd_fools_most_images_where_noise_fools_none(fit, budget, pictures):
    torch.manual_seed(0)
    attack = fit(pictures.net, pictures.batches, budget, images_seen=2_000)
    assert pictures.accuracy(attack(pictures.net, pictures.images, pictures.labels)) < 0.5
    assert pictures.accuracy(Noise(budget)(pictures.net, pictures.images, pictures.labels)) > 0.95
    assert budget.norm_of(attack.perturbation).item() == pytest.approx(budget.epsilon, rel=1e-5)


def test_deepfool_uap_stops_at_the_target_fooling_rate(pictures):
    torch.manual_seed(0)
    batches = CountedBatches(pictures)
    attack = deepfool_uap(pictures.net, batches, Budget("l2", 2.5), images_seen=4_000, fooling=0.5)
    assert pictures.accuracy(attack(pictures.net, pictures.images, pictures.labels)) <= 0.5
    assert sum(batches.shapes) < 4_000


def test_deepfool_uap_single_image_equals_one_deepfool_perturbation(pictures):
    """Catches: a deviation from the update of the paper: the DeepFool perturbation of one image, projected."""
    from gap.attacks.deepfool import DeepFool

    image = pictures.images[:1]
    with torch.no_grad():
        label = pictures.net(image).argmax(dim=1)
    attack = deepfool_uap(pictures.net, lambda: iter([(image, label)]), Budget("l2", 5.0), images_seen=1, together=1)
    deepfool = DeepFool(steps=10)
    with torch.no_grad():
        expected = (1 + deepfool.overshoot) * deepfool.path_to_boundary(pictures.net, image, label)
    expected = (image + expected).clamp(0, 1) - image
    assert torch.allclose(attack.perturbation, expected, atol=1e-6)


@FITS
@pytest.mark.parametrize("images_seen", [1, 70, 430])
def test_universal_fit_images_seen_limits_the_number_of_images_used(fit, images_seen, pictures):
    batch_sizes = []

    class RecordingClassifier(nn.Module):
        def forward(self, images):
            if torch.is_grad_enabled():
                batch_sizes.append(len(images))
            return pictures.net(images)

    batches = CountedBatches(pictures)
    fit(RecordingClassifier(), batches, Budget("linf", 0.001), images_seen=images_seen)
    # One more batch is read at the beginning, for the shape of an image.
    assert sum(batches.shapes) - 50 < images_seen + 50
    if fit is not deepfool_uap:
        assert sum(batch_sizes) == images_seen


@FITS
def test_universal_fit_without_images_or_effort_raises_gap_error(fit, pictures):
    with pytest.raises(GapError, match="no training images"):
        fit(pictures.net, lambda: iter(()), Budget("linf", 0.1))
    with pytest.raises(GapError, match="images_seen"):
        fit(pictures.net, pictures.batches, Budget("linf", 0.1), images_seen=0)


@pytest.mark.parametrize(
    ("fit", "options"),
    [(sign_sgd, {"step": 0.0}), (sign_sgd, {"loss": "margins"}), (projected_sgd, {"momentum": 1.0}),
     (deepfool_uap, {"together": 0}), (deepfool_uap, {"fooling": 0.0}), (deepfool_uap, {"candidates": 1})],
)  # fmt: skip
def test_universal_fit_invalid_options_raise_gap_error(fit, options, pictures):
    with pytest.raises(GapError):
        fit(pictures.net, pictures.batches, Budget("linf", 0.1), **options)


@SGD
def test_universal_sgd_clamped_pixels_get_no_perturbation(fit):
    """Catches: an L2 budget spent on pixels that are already 0 and would have to be darker."""

    class SumOfPixels(nn.Module):
        def forward(self, images):
            total = images.flatten(1).sum(dim=1, keepdim=True)
            return torch.cat([total, -total], dim=1)

    images = torch.zeros(8, 1, 4, 4)
    images[..., 2:] = 0.5
    labels = torch.zeros(8, dtype=torch.long)
    attack = fit(SumOfPixels(), lambda: iter([(images, labels)]), Budget("l2", 0.4), images_seen=80)
    assert attack.perturbation[..., :2].abs().max() == 0
    assert attack.perturbation[..., 2:].max() < 0


@pytest.mark.parametrize("budget", [Budget("linf", 0.1), Budget("l2", 0.7)], ids=str)
def test_universal_rescaled_to_another_budget_keeps_the_pattern_and_uses_all_of_it(budget):
    pattern = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    attack = Universal(Budget("l2", 0.2).project(pattern), Budget("l2", 0.2), name="mine").rescaled_to(budget)
    assert attack.name == "mine"
    assert attack.budget == budget
    assert budget.norm_of(attack.perturbation).item() == pytest.approx(budget.epsilon, rel=1e-5)
    assert torch.cosine_similarity(attack.perturbation.flatten(), pattern.flatten(), dim=0) > 0.9999


def test_universal_rescaled_zero_perturbation_stays_zero():
    """Catches: a division by the norm of a zero perturbation."""
    assert (
        Universal(torch.zeros(1, 1, 2, 2), Budget("l2", 1.0)).rescaled_to(Budget("linf", 0.1)).perturbation.abs().max()
        == 0
    )


@pytest.mark.parametrize("size", [(4, 4), (16, 9)])
def test_universal_other_image_size_is_resized_and_projected_again(size):
    budget = Budget("l2", 0.5)
    attack = Universal(budget.project(torch.ones(1, 1, 8, 8)), budget)
    images = torch.full((2, 1, *size), 0.4)
    change = attack(nn.Identity(), images, LABELS) - images
    assert change.shape == images.shape
    assert (budget.norm_of(change) <= 0.5 * (1 + 1e-5)).all()
    assert (change > 0).all()


def test_universal_other_channel_count_raises_an_error_with_its_name():
    attack = Universal(torch.zeros(1, 3, 4, 4), Budget("linf", 0.1), name="runs/universal")
    with pytest.raises(GapError, match=r"runs/universal was made for images of 3 channels, these have 1"):
        attack(nn.Identity(), torch.zeros(2, 1, 4, 4), LABELS)


def test_universal_batch_of_perturbations_raises_gap_error():
    with pytest.raises(GapError, match="1 x C x H x W"):
        Universal(torch.zeros(2, 3, 4, 4), Budget("linf", 0.1))
