"""Shorter judging, for tests of what stands around it."""

import pytest


def shorten_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attack of AutoAttack, and a short black-box search."""
    monkeypatch.setattr("gap.evaluation.robustness.STANDARD", ("apgd-ce",))
    monkeypatch.setattr("gap.evaluation.robustness.fast_attacks", lambda classes: ("apgd-ce",))
    monkeypatch.setattr("gap.evaluation.robustness.FEW_QUERIES", 20)
