"""Upgrades of cards that earlier versions wrote."""

from typing import Any

FORMAT = 2

_KINDS = {
    "thresholded generator": "bounded_generator",
    "direct generator": "direct_generator",
    "universal perturbation": "universal_perturbation",
}
_KEYS = {
    "goal": "criterion",
    "magnitude": "target_norm",
    "figures": "metrics",
    "hardened": "adversarial_training",
    "form": "type",
}
_TRAINING_KEYS = {
    "from": "base_fingerprint",
    "mix": "attacks",
    "mended": "recoveries",
    "probe_accuracy": "validation_pgd_accuracy",
}
_METRICS = {
    "probe_accuracy": "pgd_accuracy",
    "sparring_accuracy": "train_attack_accuracy",
    "target_open": "target_eligible",
    "target_reached": "target_success",
    "colours": "colors",
}
_ROBUSTNESS = {"gate": "checks", "unchecked": "not_evaluated", "right": "num_correct", "normaliser": "normalizer"}
_CHECK = {"check": "name", "evidence": "details"}
# Keys of format 1 with the results of `gap judge` begin with this.
_EVALUATION_PREFIX = "judged at "


def upgraded(card: dict[str, Any]) -> dict[str, Any]:
    """A card in the current format. Cards without a `format` are of format 1; unknown keys stay unchanged."""
    if card.get("format", 1) != 1:
        return card
    evaluations = [_renamed(value, _ROBUSTNESS) for key, value in card.items() if _is_evaluation(key)]
    upgraded_card = _renamed({key: value for key, value in card.items() if not _is_evaluation(key)}, _KEYS)
    upgraded_card["kind"] = _KINDS.get(upgraded_card["kind"], upgraded_card["kind"])
    upgraded_card["format"] = FORMAT
    if "adversarial_training" in upgraded_card:
        upgraded_card["adversarial_training"] = _renamed(upgraded_card["adversarial_training"], _TRAINING_KEYS)
    if isinstance(upgraded_card.get("metrics"), dict):
        upgraded_card["metrics"] = {
            split: _renamed(values, _METRICS) for split, values in upgraded_card["metrics"].items()
        }
    if isinstance(upgraded_card.get("generator"), dict):
        upgraded_card["generator"] = _renamed(upgraded_card["generator"], {"fold": "pixel_unshuffle"})
    if evaluations:
        upgraded_card["robustness_evaluations"] = [
            evaluation | {"checks": [_renamed(check, _CHECK) for check in evaluation["checks"]]}
            if isinstance(evaluation.get("checks"), list)
            else evaluation
            for evaluation in evaluations
            if isinstance(evaluation, dict)
        ]
    return upgraded_card


def _is_evaluation(key: Any) -> bool:
    return isinstance(key, str) and key.startswith(_EVALUATION_PREFIX)


def _renamed(mapping: Any, names: dict[str, str]) -> Any:
    """A mapping with renamed keys, in the same order. Any other value, as in a damaged card, is returned unchanged."""
    if not isinstance(mapping, dict):
        return mapping
    return {names.get(key, key) if isinstance(key, str) else key: value for key, value in mapping.items()}
