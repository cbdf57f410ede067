"""What a shell completes: names of classifiers, data sets, attacks, configs and layers. Only layers import torch.

A completer is given what is typed so far, and returns what may stand there; typer drops what does not begin so.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from gap.attacks.names import ARTIFACT_KINDS, ATTACK_NAMES
from gap.core.errors import GapError
from gap.core.options import command_line_note, named_configs
from gap.data.names import FOLDER, list_datasets
from gap.hardening.options import INNER_ATTACKS
from gap.imagery.options import BACKBONE
from gap.models.classifier_names import BUILTIN_DESCRIPTIONS

# A value, and what it is.
Item = tuple[str, str]


def classifiers(incomplete: str) -> list[Item]:
    """Classifiers of our own, families of others, and folders that gap left."""
    families = [(f"{family}:", f"NAME, as gap classifiers {family} lists them") for family in ("torchvision", "timm")]
    return [*BUILTIN_DESCRIPTIONS.items(), *families, *_artifacts(incomplete, "classifier")]


def datasets(incomplete: str) -> list[Item]:
    """Data sets, and folders of pictures."""
    if incomplete.startswith(FOLDER):
        folders = Path().glob(f"{escape(incomplete.removeprefix(FOLDER))}*/")
        return [(f"{FOLDER}{folder}", "") for folder in folders]
    return [(name.removesuffix("PATH"), description) for name, description in list_datasets().items()]


def attacks(incomplete: str) -> list[Item]:
    """Attacks by name, and trained ones."""
    return [*((name, "") for name in ATTACK_NAMES), *trained_attacks(incomplete)]


def trained_attacks(incomplete: str) -> list[Item]:
    """Folders that `gap train` left."""
    return _artifacts(incomplete, *ARTIFACT_KINDS)


def stylizers(incomplete: str) -> list[Item]:
    """Folders that `gap train-stylizer` left."""
    return _artifacts(incomplete, "stylizer")


def inner_attacks() -> list[Item]:
    """Attacks that a classifier is hardened with."""
    return [(name, kind.description) for name, kind in INNER_ATTACKS.items()]


def configs() -> list[str]:
    """The experiments that come with gap."""
    return named_configs()


def layers(context: typer.Context, incomplete: str) -> list[str]:
    """Layers of the network that is named before, as a,b,c."""
    done, comma, _ = incomplete.rpartition(",")
    return [f"{done}{comma}{layer}" for layer in _layers_of(_network(context))]


def features(context: typer.Context) -> list[str]:
    """The same as `gap visualize` takes them, a channel to follow."""
    return [f"{layer}:" for layer in ("logit", *_layers_of(_network(context)))]


COMPLETERS: dict[str, Callable[..., list[Item] | list[str]]] = {
    "classifiers": classifiers,
    "datasets": datasets,
    "attacks": attacks,
    "inner attacks": inner_attacks,
    "layers": layers,
}


def completer_of(field: FieldInfo) -> Callable[..., list[Item] | list[str]] | None:
    """What completes a field of an option class: what its note `complete` names, or the words it is one of."""
    if get_origin(field.annotation) is Literal:
        words = list(get_args(field.annotation))
        return lambda: words
    return COMPLETERS.get(command_line_note(field, "complete"))


def _artifacts(incomplete: str, *kinds: str) -> list[Item]:
    """Folders of these kinds that gap left, one or two below what is typed."""
    parent, slash, begun = incomplete.rpartition("/")
    start = Path(f"{parent}{slash}")
    cards = (card for below in ("*", "*/*") for card in start.glob(f"{escape(begun)}{below}/card.yaml"))
    return [(str(card.parent), kind) for card in cards if (kind := _kind(card)) in kinds]


def _kind(card: Path) -> str:
    """The kind that a card says in its first line: the whole may be long."""
    with suppress(OSError, ValueError), card.open(encoding="utf-8") as lines:
        return next(lines, "").removeprefix("kind: ").strip()
    return ""


def _network(context: typer.Context) -> str:
    """The network whose layers are asked for: the first of `gap layer-robustness`, the backbone of verbs that draw."""
    if "classifiers" in context.params:
        # Behind an option without its value, click leaves the arguments unread.
        named = context.params["classifiers"] or context.args
        return named[0] if named else ""
    return context.params.get("backbone") or BACKBONE


def _layers_of(name: str) -> Iterator[str]:
    """Layers of one of our own networks. Others are not built: completing a word runs nobody's code."""
    if name not in BUILTIN_DESCRIPTIONS:
        return
    from gap.models.classifiers import BUILTIN
    from gap.models.feature_extractor import layer_aliases

    entry = BUILTIN[name]
    with suppress(GapError):  # its weights may not be installed
        network = entry.build(entry.channels, entry.classes)
        yield from layer_aliases(network)
        yield from filter(None, dict(network.named_modules()))
