"""Command-line options made from option classes: each is written once, in the class, and typed everywhere."""

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
    list[str] | None, typer.Option("--set", help="One option by its path in a config, such as seed=1; repeatable.")
]

# Of verbs that train.
Out = Annotated[Path, typer.Option("--out", help="Folder for the result.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the unfinished training in --out, with its options.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the result of an earlier run in --out.")]


def _reserve_standard_output(context: typer.Context, path: Path | None) -> Path | None:
    """Where JSON goes to standard output, everything for people goes to standard error until the verb ends."""
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
    """Give a command the fields of an option class as flags, beside its own parameters.

    The command's first parameter, `read`, gives the options: over any layers handed to it come `--config`, `--set` and
    the flags. Fields of a section become flags of their own name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        leaves = list(_iter_fields(options))
        fields = {path[-1]: (path, field) for path, field, _ in leaves}

        def run(config: str | None = None, assign: list[str] | None = None, **given: Any) -> None:
            own = {name: given.pop(name) for name in list(given) if name not in fields}
            assigned = parse_assignments(assign or [])
            flags: dict[str, Any] = {}
            for name, value in given.items():
                if value is not None and value != []:
                    path, field = fields[name]
                    numbers = isinstance(value, list) and _item_type(field.annotation) in (int, float)
                    flags = deep_merge(flags, _nest(path, _split_commas(value) if numbers else value))
            layers = [read_config(config)] if config else []
            command(lambda *base: options.read(*base, *layers, assigned, flags), **own)

        parameters = [p for p in inspect.signature(command).parameters.values() if p.name != "read"]
        parameters += [_to_typer_option(path[-1], field, group) for path, field, group in leaves]
        parameters += [_parameter("config", Config, None), _parameter("assign", Assign, None)]
        # Typer makes the flags from this; `inspect` documents it, and the types of functions lack it.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _iter_fields(
    options: type[Options], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo, str | None]]:
    """Each field with its path and the group of the class that declared it first."""
    for name, field in options.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            yield from _iter_fields(field.annotation, (*path, name))
        else:
            owner = next(base for base in reversed(options.__mro__) if name in inspect.get_annotations(base))
            yield (*path, name), field, vars(owner).get("group")


def _to_typer_option(name: str, field: FieldInfo, group: str | None) -> inspect.Parameter:
    """A flag that is None unless given; its default stands in the help, under the heading of its group."""
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    shown: Any = ",".join(map(str, default)) if isinstance(default, list | tuple) else default
    flag = "--" + name.replace("_", "-")
    hint = _typer_type(field.annotation)
    described = f"{field.description} (required, here or in a config)" if field.is_required() else field.description
    completer = completer_of(field)
    option: Any
    if command_line_note(field, "positional"):
        option = typer.Argument(help=described, show_default=False, autocompletion=completer)
    elif field.annotation is bool:
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}", help=described, show_default="on" if default else False, rich_help_panel=group
        )
    else:
        default_shown = str(shown) if shown not in (None, "") else False
        option = typer.Option(
            flag, help=described, show_default=default_shown, rich_help_panel=group, autocompletion=completer
        )
    return _parameter(name, Annotated[hint, option], None)


def _typer_type(annotation: Any) -> Any:
    """The type that typer parses a flag as; lists are given by repeating the flag, those of numbers also as a,b,c."""
    annotation = _strip_optional(annotation)
    if get_origin(annotation) in (list, tuple):
        return list[str] | None
    if get_origin(annotation) is Literal:
        return str | None
    if annotation in (int, float, bool, str, Path):
        return annotation | None
    return str | None


def _strip_optional(annotation: Any) -> Any:
    """What a type is besides None."""
    if get_origin(annotation) in (Union, UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _item_type(annotation: Any) -> Any:
    """What a list or a tuple is of."""
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
