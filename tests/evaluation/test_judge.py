"""The robustness evaluations that are kept in the card of a classifier."""

from gap.evaluation.judge import noted


def test_noted_keeps_the_last_report_for_each_set_of_options() -> None:
    """Catches: a card that grows with every run, or that loses a report made with other options."""
    options = {"budget": "linf:0.1", "suite": "fast", "images": 60, "data": "mnist-5k"}
    reports: list[dict[str, object]] = []
    for change, robust in (({}, 0.1), ({"images": 70}, 0.2), ({"budget": "linf:0.2"}, 0.3), ({}, 0.4)):
        reports = noted({**options, **change, "robust_accuracy": robust}, reports)
    assert [report["robust_accuracy"] for report in reports] == [0.2, 0.3, 0.4]


def test_noted_damaged_card_starts_a_new_list() -> None:
    assert noted({"budget": "linf:0.1"}, "none") == [{"budget": "linf:0.1"}]
