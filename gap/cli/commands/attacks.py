"""List the names of untrained attacks, with their options."""

import typer

EXAMPLE = "gap attacks"


def attacks() -> None:
    """List the names of untrained attacks, with their options.

    `init` is a folder that gap train wrote: the search begins at the adversarial images of that attack.
    """
    from gap.attacks.registry import attack_options, list_attacks

    for name, description in list_attacks().items():
        options = ",".join(f"{option}={default}" for option, default in attack_options(name).items())
        typer.echo(f"{name:14} {description}\n{'':14} {name}:{options}" if options else f"{name:14} {description}")
