"""The command `gap`: its subcommands, and error messages of one line."""

import ast
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module, resources
from typing import Annotated, Any

import typer

from gap.cli.machine import prepare_machine
from gap.cli.streams import install
from gap.core.errors import GapError, GapWarning, is_out_of_memory
from gap.core.process import TrainingInterrupted, is_main_process

COMMANDS = (
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
    "layer-robustness",
    "perturb",
    "evaluate",
    "compare",
    "inspect",
    "classifiers",
    "data",
    "attacks",
    "configs",
)
DEBUG = "--debug"
COMPLETION = "_GAP_COMPLETE"  # the variable by which a shell requests completions
UsageError: Any = typer.BadParameter.__base__  # click's class, which depends on the version of typer


def main() -> None:
    """Run the command line. Errors are printed on one line of standard error.

    The exit status is 2 for errors that the user can fix, 1 for others, and that of the signal after a signal. Of
    several processes, only the main process prints errors that the user can fix. With --debug, tracebacks are printed
    too.
    """
    install()
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", GapWarning)
    warnings.showwarning = _show_warning
    arguments, debug = _without_debug(sys.argv[1:])
    arguments = arguments or ["--help"]
    verb = _verb_to_complete() if COMPLETION in os.environ else arguments[0]
    prepare_machine(arguments)
    try:
        sys.exit(make_app(verb)(arguments, standalone_mode=False, prog_name="gap"))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except TrainingInterrupted as interruption:
        sys.exit(_exit_with_error(str(interruption), interruption.code))
    except Exception as error:  # a user's network may raise anything
        if debug:
            traceback.print_exception(error)
        sys.exit(_exit_with_error(*_message_and_code(error)))


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, and whether tracebacks are requested."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != DEBUG]
    is_debug = len(options) < end or os.environ.get("GAP_DEBUG", "0") not in ("", "0")
    return options + arguments[end:], is_debug


def _verb_to_complete() -> str:
    """The subcommand of a command line that is being completed. The variable of the line depends on the shell."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return next((word for word in line.split() if word in COMMANDS), "")


def _message_and_code(error: Exception) -> tuple[str, int]:
    """The message of an error, and the exit status."""
    match error:
        case UsageError():
            return error.format_message(), 2
        case GapError():
            return str(error), 2
        case OSError():
            return f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 2
    name, reason = type(error).__name__, next(filter(None, map(str.strip, str(error).splitlines())), "")
    line = f"{name}: {reason}" if reason else name
    if is_out_of_memory(error):
        return f"out of memory ({line}); make --batch-size, --size or --images smaller, or take a smaller network", 1
    return f"{line}; run again with {DEBUG} for the whole traceback", 1


def make_app(verb: str) -> typer.Typer:
    """The app with the command `verb`. Of other commands only name and help are loaded: torch is slow to import."""
    app = typer.Typer(
        epilog="Start with: gap demo. Each verb has --help with an example.",
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        callback=_root_callback,
    )
    for name in COMMANDS:
        if name == verb:
            module = import_module(f"gap.cli.commands.{_module(name)}")
            command = getattr(module, _module(name))
            app.command(name, help=_unwrap_paragraphs(command), epilog=f"Example: {module.EXAMPLE}")(command)
        else:
            app.command(name, help=_short_help(name))(lambda: None)
    return app


def _module(verb: str) -> str:
    return verb.replace("-", "_")


def _version(context: typer.Context, is_set: bool) -> None:
    if is_set and not context.resilient_parsing:
        from gap.core.artifact import versions

        typer.echo(", ".join(f"{name} {version}" for name, version in versions().items()))
        raise typer.Exit


def _root_callback(
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show the whole traceback of an error; the variable GAP_DEBUG=1 does the same.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the versions of gap and torch.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Generative adversarial perturbations: attack a classifier, evaluate attacks, and harden it."""


def _short_help(verb: str) -> str:
    source = resources.files("gap.cli.commands").joinpath(f"{_module(verb)}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def _unwrap_paragraphs(command: Callable[..., None]) -> str:
    """The docstring with each paragraph on one line, which the terminal wraps to its width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.__doc__ or "").split("\n\n"))


def _exit_with_error(message: str, code: int) -> int:
    if is_main_process() or code == 1:  # code 1: such an error may occur in one process only
        sys.stderr.write(f"gap: {_with_flags(' '.join(message.split()))}\n")
    return code


def _with_flags(message: str) -> str:
    """A message with flags in place of arguments: the library writes `batch_size`, the command line --batch-size."""
    return re.sub(r"`([a-z]+(?:_[a-z]+)*)`", lambda match: f"--{match[1].replace('_', '-')}", message)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    sys.stderr.write(f"gap: {_with_flags(str(message))}\n")
