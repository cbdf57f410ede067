"""The report of a classifier, from names or objects, and what a card keeps of it."""

from gap.evaluation.judge import noted


def test_noted_keeps_the_last_report_of_each_question() -> None:
    """Catches: a card that grows with every run, or forgets what was asked otherwise."""
    question = {"budget": "linf:0.1", "suite": "fast", "images": 60, "data": "mnist-5k"}
    reports: list[dict[str, object]] = []
    for change, robust in (({}, 0.1), ({"images": 70}, 0.2), ({"budget": "linf:0.2"}, 0.3), ({}, 0.4)):
        reports = noted({**question, **change, "robust_accuracy": robust}, reports)
    assert [report["robust_accuracy"] for report in reports] == [0.2, 0.3, 0.4]


def test_noted_in_a_damaged_card_starts_again() -> None:
    assert noted({"budget": "linf:0.1"}, "none") == [{"budget": "linf:0.1"}]
