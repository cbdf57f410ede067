"""Cards of earlier versions in the words of today's."""

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
# How a key of format 1 begins that holds what `gap judge` found.
_JUDGED = "judged at "


def upgraded(card: dict[str, Any]) -> dict[str, Any]:
    """A card in today's format. Cards without a `format` are of format 1; what is not understood stays as it is."""
    if card.get("format", 1) != 1:
        return card
    judged = [_renamed(value, _ROBUSTNESS) for key, value in card.items() if _is_judged(key)]
    new = _renamed({key: value for key, value in card.items() if not _is_judged(key)}, _KEYS)
    new["kind"] = _KINDS.get(new["kind"], new["kind"])
    new["format"] = FORMAT
    if "adversarial_training" in new:
        new["adversarial_training"] = _renamed(new["adversarial_training"], _TRAINING_KEYS)
    if isinstance(new.get("metrics"), dict):
        new["metrics"] = {split: _renamed(values, _METRICS) for split, values in new["metrics"].items()}
    if isinstance(new.get("generator"), dict):
        new["generator"] = _renamed(new["generator"], {"fold": "pixel_unshuffle"})
    if judged:
        new["robustness_evaluations"] = [
            each | {"checks": [_renamed(check, _CHECK) for check in each["checks"]]}
            if isinstance(each.get("checks"), list)
            else each
            for each in judged
            if isinstance(each, dict)
        ]
    return new


def _is_judged(key: Any) -> bool:
    return isinstance(key, str) and key.startswith(_JUDGED)


def _renamed(mapping: Any, names: dict[str, str]) -> Any:
    """A mapping with other keys, in the same order; anything else, as in a damaged card, as it is."""
    if not isinstance(mapping, dict):
        return mapping
    return {names.get(key, key) if isinstance(key, str) else key: value for key, value in mapping.items()}
