"""Shell completion of classifiers, data sets, attacks, configs and layers. Only that of layers imports torch.

A completer gets the incomplete text and returns possible values; typer drops those that do not begin with the text.
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

# A value and its description.
Item = tuple[str, str]


def classifiers(incomplete: str) -> list[Item]:
    """Builtin classifiers, families of others, and folders that gap wrote."""
    families = [(f"{family}:", f"NAME, as gap classifiers {family} lists them") for family in ("torchvision", "timm")]
    return [*BUILTIN_DESCRIPTIONS.items(), *families, *_artifacts(incomplete, "classifier")]


def datasets(incomplete: str) -> list[Item]:
    """Data sets, and folders of images."""
    if incomplete.startswith(FOLDER):
        folders = Path().glob(f"{escape(incomplete.removeprefix(FOLDER))}*/")
        return [(f"{FOLDER}{folder}", "") for folder in folders]
    return [(name.removesuffix("PATH"), description) for name, description in list_datasets().items()]


def attacks(incomplete: str) -> list[Item]:
    """Attacks by name, and trained ones."""
    return [*((name, "") for name in ATTACK_NAMES), *trained_attacks(incomplete)]


def trained_attacks(incomplete: str) -> list[Item]:
    """Folders that `gap train` wrote."""
    return _artifacts(incomplete, *ARTIFACT_KINDS)


def stylizers(incomplete: str) -> list[Item]:
    """Folders that `gap train-stylizer` wrote."""
    return _artifacts(incomplete, "stylizer")


def inner_attacks() -> list[Item]:
    """Attacks for adversarial training."""
    return [(name, kind.description) for name, kind in INNER_ATTACKS.items()]


def configs() -> list[str]:
    """The configs that are part of gap."""
    return named_configs()


def layers(context: typer.Context, incomplete: str) -> list[str]:
    """Layers of the network that is named earlier on the command line, as a,b,c."""
    completed, comma, _ = incomplete.rpartition(",")
    return [f"{completed}{comma}{layer}" for layer in _layers_of(_network(context))]


def features(context: typer.Context) -> list[str]:
    """Layers for `gap visualize`, with a colon, after which a channel follows."""
    return [f"{layer}:" for layer in ("logit", *_layers_of(_network(context)))]


COMPLETERS: dict[str, Callable[..., list[Item] | list[str]]] = {
    "classifiers": classifiers,
    "datasets": datasets,
    "attacks": attacks,
    "inner attacks": inner_attacks,
    "layers": layers,
}


def completer_of(field: FieldInfo) -> Callable[..., list[Item] | list[str]] | None:
    """The completer of a field of an option class: that of its note `complete`, or the values of a Literal."""
    if get_origin(field.annotation) is Literal:
        words = list(get_args(field.annotation))
        return lambda: words
    return COMPLETERS.get(command_line_note(field, "complete"))


def _artifacts(incomplete: str, *kinds: str) -> list[Item]:
    """Folders of these kinds that gap wrote, up to two levels below the incomplete text."""
    parent, slash, prefix = incomplete.rpartition("/")
    folder = Path(f"{parent}{slash}")
    cards = (card for pattern in ("*", "*/*") for card in folder.glob(f"{escape(prefix)}{pattern}/card.yaml"))
    return [(str(card.parent), kind) for card in cards if (kind := _kind(card)) in kinds]


def _kind(card: Path) -> str:
    """The kind in the first line of a card; the whole card may be long."""
    with suppress(OSError, ValueError), card.open(encoding="utf-8") as lines:
        return next(lines, "").removeprefix("kind: ").strip()
    return ""


def _network(context: typer.Context) -> str:
    """The network whose layers are completed: the first of `gap layer-robustness`, or the backbone of a drawing."""
    if "classifiers" in context.params:
        # After an option without a value, click does not parse the arguments.
        names = context.params["classifiers"] or context.args
        return names[0] if names else ""
    return context.params.get("backbone") or BACKBONE


def _layers_of(name: str) -> Iterator[str]:
    """Layers of a builtin network. Other networks are not built, so that completion does not run user code."""
    if name not in BUILTIN_DESCRIPTIONS:
        return
    from gap.models.classifiers import BUILTIN
    from gap.models.feature_extractor import layer_aliases

    entry = BUILTIN[name]
    with suppress(GapError):  # the weights may not be installed
        network = entry.build(entry.channels, entry.classes)
        yield from layer_aliases(network)
        yield from filter(None, dict(network.named_modules()))
