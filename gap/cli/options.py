"""Command-line options from option classes, which define each option once."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from gap.cli.completion import completer_of, configs
from gap.core.files import STANDARD_OUTPUT, descriptor
from gap.core.options import Options, command_line_note, deep_merge, parse_assignments, read_config

Config = Annotated[
    str | None,
    typer.Option("--config", help="Options from a config: a name of `gap configs`, or a path.", autocompletion=configs),
]
Assign = Annotated[
    list[str] | None,
    typer.Option("--set", help="One option as in a config, NAME=VALUE or SECTION.NAME=VALUE; repeatable."),
]

# Options of training commands.
Out = Annotated[Path, typer.Option("--out", help="Folder for the result.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the unfinished training in --out, with its options.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the result of an earlier run in --out.")]


def _reserve_standard_output(context: typer.Context, path: Path | None) -> Path | None:
    """The path of JSON output. If that is standard output, other output goes to standard error."""
    if path == Path("-"):
        path = STANDARD_OUTPUT
    if path and descriptor(path) == 1:
        context.with_resource(redirect_stdout(sys.stderr))
    return path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json", help="File for the result as JSON; - is standard output.", callback=_reserve_standard_output
    ),
]


def with_options(options: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the fields of an option class to a command as flags, in addition to its own parameters.

    The command's first parameter, `read`, is a function that returns the options. `--config`, `--set` and the flags
    override, in this order, the layers that are passed to it. Fields of a section become flags with their own name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own_parameters = inspect.signature(command).parameters
        takes_context = "context" in own_parameters
        option_fields = list(_iter_fields(options))
        fields = {path[-1]: (path, field) for path, field, _ in option_fields}

        def run(
            context: typer.Context, config: str | None = None, assign: list[str] | None = None, **arguments: Any
        ) -> None:
            command_arguments = {name: arguments.pop(name) for name in list(arguments) if name not in fields}
            if takes_context:
                command_arguments["context"] = context
            assigned = parse_assignments(assign or [])
            flags: dict[str, Any] = {}
            for name, value in arguments.items():
                if is_given(context, name) and value is not None and value != []:
                    path, field = fields[name]
                    numbers = isinstance(value, list) and _item_type(field.annotation) in (int, float)
                    flags = deep_merge(flags, _nest(path, _split_commas(value) if numbers else value))
            layers = [read_config(config)] if config else []
            command(lambda *base: options.read(*base, *layers, assigned, flags), **command_arguments)

        parameters = [_parameter("context", typer.Context, inspect.Parameter.empty)]
        parameters += [p for p in own_parameters.values() if p.name not in ("read", "context")]
        parameters += [_to_typer_option(path[-1], field, group) for path, field, group in option_fields]
        parameters += [_parameter("config", Config, None), _parameter("assign", Assign, None)]
        # Typer makes the flags from this attribute. `inspect` documents it, but the type of functions does not have it.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter is on the command line, rather than its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _iter_fields(
    options: type[Options], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo, str | None]]:
    """The fields with their paths and the group of the class that first declares them."""
    for name, field in options.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield from _iter_fields(field.annotation, (*path, name))
        else:
            owner = next(base for base in reversed(options.__mro__) if name in inspect.get_annotations(base))
            yield (*path, name), field, vars(owner).get("group")


def _to_typer_option(name: str, field: FieldInfo, group: str | None) -> inspect.Parameter:
    """A flag that shows the field's default in the help, under the heading of the field's group."""
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    flag = "--" + name.replace("_", "-")
    hint = _typer_type(field.annotation)
    help_text = f"{field.description} (required, here or in a config)" if field.is_required() else field.description
    completer = completer_of(field)
    option: Any
    if command_line_note(field, "positional"):
        option = typer.Argument(help=help_text, show_default=False, autocompletion=completer)
        default = None
    elif field.annotation is bool:
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}", help=help_text, show_default=bool(default), rich_help_panel=group
        )
    else:
        option = typer.Option(flag, help=help_text, rich_help_panel=group, autocompletion=completer)
        default = _as_text(default, field.annotation)
    return _parameter(name, Annotated[hint, option], default)


def _as_text(default: Any, annotation: Any) -> Any:
    """A default as it is written on the command line; None for an empty one."""
    if isinstance(default, list | tuple):
        items = list(map(str, default))
        return ([",".join(items)] if _item_type(annotation) in (int, float) else items) if items else None
    return None if default in (None, "") else str(default)


def _typer_type(annotation: Any) -> Any:
    """The type of a flag for typer. Flags of lists can be repeated; lists of numbers may also be written a,b,c."""
    annotation = _strip_optional(annotation)
    if get_origin(annotation) in (list, tuple):
        return list[str] | None
    if get_origin(annotation) is Literal:
        return str | None
    if annotation in (int, float, bool, str, Path):
        return annotation | None
    return str | None


def _strip_optional(annotation: Any) -> Any:
    """A type without None."""
    if get_origin(annotation) in (Union, UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _item_type(annotation: Any) -> Any:
    """The type of the items of a list or tuple."""
    return get_args(_strip_optional(annotation))[0]


def _split_commas(texts: list[str]) -> list[str]:
    return [part for text in texts for part in text.split(",")]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _nest(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    nested: Any = str(value) if isinstance(value, Path) else value
    for part in reversed(path):
        nested = {part: nested}
    return nested
