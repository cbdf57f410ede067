"""Attacks by name, with options: `pgd:steps=100,restarts=3`, `checkerboard:side=2`, `pgd:init=runs/mine,steps=2`."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from gap.attacks.base import Attack
from gap.attacks.deepfool import DeepFool
from gap.attacks.generator.model import load_attack
from gap.attacks.gradient import FGSM, PGD
from gap.attacks.noise import Checkerboard, Noise
from gap.attacks.universal import Batches, Universal, deepfool_uap, projected_sgd, sign_sgd
from gap.core.errors import GapError, unknown_name_error
from gap.core.network import device_of
from gap.core.paths import is_folder
from gap.threat import Budget, as_budget

ATTACKS: dict[str, Callable[..., Attack]] = {
    "pgd": PGD,
    "fgsm": FGSM,
    "deepfool": DeepFool,
    "noise": Noise,
    "checkerboard": Checkerboard,
}
UNIVERSAL_ATTACKS: dict[str, Callable[..., Universal]] = {
    "uap": deepfool_uap,
    "uap-sign-sgd": sign_sgd,
    "uap-sgd": projected_sgd,
}
# Parameters that are not options of a spec: the caller of `create_attack` sets them.
RESERVED = {"classifier", "batches", "budget", "norm", "targeted", "name", "return"}


def list_attacks() -> dict[str, str]:
    """The names of all attacks of `create_attack`, with a description of one line."""
    return {name: _first_line(factory) for name, factory in {**ATTACKS, **UNIVERSAL_ATTACKS}.items()}


def attack_options(name: str) -> dict[str, str]:
    """The options of a named attack with their defaults as text; an empty text stands for no default.

    Raises GapError for an unknown name.
    """
    factory = _factory(name)
    defaults = inspect.signature(factory).parameters
    return {option: _format(defaults[option].default) for option in _option_types(factory)}


def create_attack(
    spec: str, budget: Budget | str, classifier: nn.Module | None = None, batches: Batches | None = None
) -> Attack:
    """The attack of a spec such as `pgd:steps=100,loss=margin`; its `name` is the spec.

    Options are those of the attack's class or function; the items of a tuple are separated by `/`. The `uap` attacks
    are fitted here, to `classifier` on `batches`. Raises GapError for an unknown name or option, an invalid value, and
    a `uap` attack without classifier or batches.
    """
    budget = as_budget(budget)
    name, _, options_text = spec.strip().partition(":")
    factory = _factory(name)
    options = _parse(name, options_text, _option_types(factory))
    if "init" in options:
        device = "cpu" if classifier is None else device_of(classifier)
        options["init"] = load_attack(options["init"], budget, device)
    if name in ATTACKS:
        return ATTACKS[name](budget=budget, name=spec.strip(), **options)
    if classifier is None or batches is None:
        raise GapError(f"{name} is fitted to a classifier on training images; give both")
    return replace(UNIVERSAL_ATTACKS[name](classifier, batches, budget, **options), name=spec.strip())


def init_folder_of(spec: str) -> Path | None:
    """The folder of the trained attack in a spec's `init` option, if any; raises GapError as `create_attack` does."""
    name, _, options_text = spec.strip().partition(":")
    return _parse(name, options_text, _option_types(_factory(name))).get("init")


def _factory(name: str) -> Callable[..., Attack]:
    factories = {**ATTACKS, **UNIVERSAL_ATTACKS}
    if name not in factories:
        raise unknown_name_error("attack", name, factories)
    return factories[name]


def _option_types(factory: Callable[..., Attack]) -> dict[str, Any]:
    return {option: hint for option, hint in get_type_hints(factory).items() if option not in RESERVED}


def _parse(attack: str, options_text: str, types: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, _split_options(options_text)):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise GapError(f"cannot read {part!r} in {attack}:{options_text}; write {attack}:option=value,option=value")
        if option not in types:
            raise unknown_name_error(f"option of {attack}", option, types)
        if option in options:
            raise GapError(f"the option {option} of {attack} is given twice")
        options[option] = _read(attack, option, value, types[option])
    return options


def _split_options(options_text: str) -> list[str]:
    """The options of a spec, split at commas, except at commas in the name of an existing folder."""
    pieces, parts = options_text.split(","), []
    while pieces:
        ends = range(len(pieces), 0, -1)
        end = next((end for end in ends if _is_option_of_folder(",".join(pieces[:end]))), 1)
        parts.append(",".join(pieces[:end]))
        pieces = pieces[end:]
    return parts


def _is_option_of_folder(part: str) -> bool:
    _, equals, value = part.partition("=")
    return bool(equals) and is_folder(value.strip())


def _read(attack: str, option: str, value: str, hint: Any) -> Any:
    kind, parse = _parser_of(hint)
    try:
        return parse(value)
    except ValueError:
        raise GapError(f"the option {option} of {attack} is {kind}, not {value!r}") from None


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


OPTION_PARSERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("a whole number", int),
    float: ("a number", float),
    bool: ("true or false", _read_bool),
    str: ("a name", str),
    Attack: ("a folder that gap train wrote", Path),
    tuple[float, ...]: ("numbers parted by /", lambda text: tuple(float(part) for part in text.split("/"))),
}


def _parser_of(hint: Any) -> tuple[str, Callable[[str], Any]]:
    """The description and the parser of an option's type; for a union, those of its first type with a parser."""
    if get_origin(hint) is Literal:
        return OPTION_PARSERS[str]
    return next(OPTION_PARSERS[option_type] for option_type in (hint, *get_args(hint)) if option_type in OPTION_PARSERS)


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(f"{part:g}" for part in value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _first_line(factory: Callable[..., Attack]) -> str:
    return (inspect.getdoc(factory) or "").splitlines()[0].rstrip(".")
