"""Flags made from option classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from gap.cli.options import with_options
from gap.core.options import Options


class Lists(Options):
    """A list of each kind that a command takes."""

    names: Annotated[list[str] | None, Field(description="names")] = None
    paths: Annotated[list[Path] | None, Field(description="paths")] = None
    numbers: Annotated[list[float] | None, Field(description="numbers")] = None
    widths: Annotated[tuple[int, ...], Field(description="widths")] = (1, 2)


def given(*arguments: str) -> Lists:
    found: list[Lists] = []

    @with_options(Lists)
    def command(read: Callable[..., Lists]) -> None:
        found.append(read())

    app = typer.Typer()
    app.command()(command)
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--names=a,b"], {"names": ["a,b"]}),
        (["--names=a,b", "--names=c"], {"names": ["a,b", "c"]}),
        (["--paths=runs/a, b/c"], {"paths": [Path("runs/a, b/c")]}),
        (["--numbers=0.5,1"], {"numbers": [0.5, 1.0]}),
        (["--numbers=0.5", "--numbers=1"], {"numbers": [0.5, 1.0]}),
        (["--widths=16,8"], {"widths": (16, 8)}),
    ],
)
def test_only_lists_of_numbers_are_parted_at_commas(arguments: list[str], options: dict[str, Any]) -> None:
    assert given(*arguments) == Lists(**options)


def test_what_must_be_given_says_so() -> None:
    class Needy(Options):
        """One that must be given, one that need not."""

        data: Annotated[str, Field(description="the data")]
        seed: Annotated[int, Field(description="the seed")] = 0

    @with_options(Needy)
    def command(read: Callable[..., Needy]) -> None:
        pass

    app = typer.Typer()
    app.command()(command)
    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "the data (required, here or in a config)" in shown and "the seed (required" not in shown


def test_defaults_stand_in_the_help_where_there_are_any() -> None:
    class Room(Options):
        """One of each kind that has something to show, or nothing."""

        light: Annotated[bool, Field(description="the light")] = True
        fan: Annotated[bool, Field(description="the fan")] = False
        chairs: Annotated[int, Field(description="the chairs")] = 0
        guests: Annotated[list[str], Field(default_factory=list, description="the guests")]

    @with_options(Room)
    def command(read: Callable[..., Room]) -> None:
        pass

    app = typer.Typer()
    app.command()(command)
    lines = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.splitlines()
    shown = {name: next(line for line in lines if f"the {name}" in line) for name in Room.model_fields}
    assert "[default: (on)]" in shown["light"] and "[default: (0)]" in shown["chairs"]
    assert "default" not in shown["fan"] and "default" not in shown["guests"]


def test_options_stand_under_the_group_that_declared_them_first() -> None:
    class Kitchen(Options):
        """A group of its own."""

        group = "Kitchen"
        oven: Annotated[int, Field(description="the oven")] = 200

    class Meal(Kitchen):
        """The same oven, hotter, and what belongs to no group."""

        oven: Annotated[int, Field(description="the oven")] = 250
        salt: Annotated[int, Field(description="the salt")] = 1

    @with_options(Meal)
    def command(read: Callable[..., Meal]) -> None:
        pass

    app = typer.Typer()
    app.command()(command)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    ungrouped, kitchen = shown.split("─ Kitchen ─")
    assert "the salt" in ungrouped and "the oven" not in ungrouped
    assert "the oven" in kitchen and "250" in kitchen and "the salt" not in kitchen
