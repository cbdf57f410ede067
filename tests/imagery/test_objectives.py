"""Objectives add and scale like numbers, and say what they are made of."""

import pytest
import torch

from gap.imagery.objectives import Leash, Logit, Look


def look() -> Look:
    torch.manual_seed(0)
    return Look(torch.rand(3, 1, 4, 4), torch.randn(3, 5))


def test_the_logit_of_each_image_s_class() -> None:
    seen, classes = look(), torch.tensor([4, 0, 2])
    assert torch.equal(Logit(classes)(seen), -seen.logits[[0, 1, 2], classes])


def test_the_leash_is_a_squared_distance() -> None:
    seen = look()
    distance = (seen.images - 0.5).flatten(1).norm(dim=1)
    assert torch.allclose(Leash(torch.full((3, 1, 4, 4), 0.5))(seen), distance**2)


def test_they_add_and_scale() -> None:
    seen, logit, leash = look(), Logit(torch.tensor([0, 1, 2])), Leash(torch.zeros(3, 1, 4, 4))
    both = 2 * logit + leash * 0.5
    assert torch.allclose(both(seen), 2 * logit(seen) + 0.5 * leash(seen))
    lines = both.told(seen).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "sum", "  2 x class logit", "    class logit", "  0.5 x leash", "    leash",
    ]  # fmt: skip
    assert float(lines[2].partition(":")[2]) == pytest.approx(logit(seen).mean().item(), rel=1e-3)
