"""The command `gap`: its verbs, and one line for whatever goes wrong."""

import ast
import sys
import warnings
from collections.abc import Callable
from importlib import import_module, resources
from typing import Annotated, Any

import typer

from gap.errors import GapError, GapWarning
from gap.process import Stopped, speaks

VERBS = (
    "demo",
    "pretrain",
    "train",
    "harden",
    "judge",
    "export",
    "stylize",
    "texture",
    "train-stylizer",
    "visualize",
    "compare-styles",
    "traverse",
    "layers",
    "perturb",
    "evaluate",
    "compare",
    "inspect",
    "classifiers",
    "data",
    "attacks",
    "configs",
)
UsageError: Any = typer.BadParameter.__base__  # click's own, wherever this typer keeps it


def main() -> None:
    """Run the command line; errors the user can mend are one line on standard error and exit status 2.

    Of several processes, one writes the line. A signal ends with the status that it asks for.
    """
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", GapWarning)
    warnings.showwarning = _show_warning
    try:
        given = sys.argv[1:] or ["--help"]
        sys.exit(make_app(given[0])(given, standalone_mode=False, prog_name="gap"))
    except UsageError as error:
        sys.exit(_fail(error.format_message()))
    except GapError as error:
        sys.exit(_fail(str(error)))
    except OSError as error:
        sys.exit(_fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error)))
    except Stopped as stopped:
        sys.exit(_fail(str(stopped), stopped.code))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def make_app(verb: str) -> typer.Typer:
    """The app with `verb` loaded. The other verbs are known by name and help only: torch takes seconds to import."""
    app = typer.Typer(
        epilog="Start with: gap demo. Each verb has --help with an example.",
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        callback=_top,
    )
    for name in VERBS:
        if name == verb:
            module = import_module(f"gap.cli.{_module(name)}")
            command = getattr(module, _module(name))
            app.command(name, help=_flowing(command), epilog=f"Example: {module.EXAMPLE}")(command)
        else:
            app.command(name, help=_help_of(name))(lambda: None)
    return app


def _module(verb: str) -> str:
    return verb.replace("-", "_")


def _version(asked: bool) -> None:
    if asked:
        from gap.artefact import versions

        typer.echo(", ".join(f"{name} {version}" for name, version in versions().items()))
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", help="say which gap this is, and which torch", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Generative adversarial perturbations: fool a classifier, measure how well, and harden it."""


def _help_of(verb: str) -> str:
    source = resources.files("gap.cli").joinpath(f"{_module(verb)}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def _flowing(command: Callable[..., None]) -> str:
    """The docstring with its paragraphs in one line each: the terminal breaks them where it ends."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.__doc__ or "").split("\n\n"))


def _fail(message: str, code: int = 2) -> int:
    if speaks():
        sys.stderr.write(f"gap: {' '.join(message.split())}\n")
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(f"gap: {message}\n")
