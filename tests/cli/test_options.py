"""Command-line flags made from option classes."""

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
    """Lists of all types that commands take."""

    names: Annotated[list[str] | None, Field(description="names")] = None
    paths: Annotated[list[Path] | None, Field(description="paths")] = None
    numbers: Annotated[list[float] | None, Field(description="numbers")] = None
    widths: Annotated[tuple[int, ...], Field(description="widths")] = (1, 2)


def parse(*arguments: str) -> Lists:
    parsed: list[Lists] = []

    @with_options(Lists)
    def command(read: Callable[..., Lists]) -> None:
        parsed.append(read())

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return parsed[0]


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
def test_with_options_only_lists_of_numbers_are_split_at_commas(arguments: list[str], options: dict[str, Any]) -> None:
    assert parse(*arguments) == Lists(**options)


def test_with_options_required_option_is_marked_in_the_help() -> None:
    class OneRequired(Options):
        """A required option and an optional one."""

        data: Annotated[str, Field(description="the data")]
        seed: Annotated[int, Field(description="the seed")] = 0

    @with_options(OneRequired)
    def command(read: Callable[..., OneRequired]) -> None:
        pass

    app = typer.Typer()
    app.command()(command)
    help_text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "the data (required, here or in a config)" in help_text and "the seed (required" not in help_text


def test_with_options_existing_defaults_are_shown_in_the_help() -> None:
    class RoomOptions(Options):
        """Options with and without a default to show."""

        light: Annotated[bool, Field(description="the light")] = True
        fan: Annotated[bool, Field(description="the fan")] = False
        chairs: Annotated[int, Field(description="the chairs")] = 0
        guests: Annotated[list[str], Field(default_factory=list, description="the guests")]

    @with_options(RoomOptions)
    def command(read: Callable[..., RoomOptions]) -> None:
        pass

    app = typer.Typer()
    app.command()(command)
    lines = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.splitlines()
    help_lines = {name: next(line for line in lines if f"the {name}" in line) for name in RoomOptions.model_fields}
    assert "[default: light]" in help_lines["light"] and "[default: 0]" in help_lines["chairs"]
    assert "default" not in help_lines["fan"] and "default" not in help_lines["guests"]


def test_with_options_inherited_option_is_in_the_group_of_its_first_class() -> None:
    class KitchenOptions(Options):
        """A group of its own."""

        group = "Kitchen"
        oven: Annotated[int, Field(description="the oven")] = 200

    class MealOptions(KitchenOptions):
        """The same option with another default, and an option without a group."""

        oven: Annotated[int, Field(description="the oven")] = 250
        salt: Annotated[int, Field(description="the salt")] = 1

    @with_options(MealOptions)
    def command(read: Callable[..., MealOptions]) -> None:
        pass

    app = typer.Typer()
    app.command()(command)
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    ungrouped, kitchen = help_text.split("─ Kitchen ─")
    assert "the salt" in ungrouped and "the oven" not in ungrouped
    assert "the oven" in kitchen and "250" in kitchen and "the salt" not in kitchen
