"""List the untrained attacks that can be named, with their options."""

import typer

EXAMPLE = "gap attacks"


def attacks() -> None:
    """List the untrained attacks that can be named, with their options.

    `init` takes a folder that gap train left: the search begins at what that generator makes.
    """
    from gap.attacks.registry import attack_options, list_attacks

    for name, description in list_attacks().items():
        options = ",".join(f"{option}={default}" for option, default in attack_options(name).items())
        typer.echo(f"{name:14} {description}\n{'':14} {name}:{options}" if options else f"{name:14} {description}")
