"""Options: typed, read from YAML, overridden by `--set a.b=c`, with errors that name the option and the problem."""

import re
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from gap.core.errors import GapError, unknown_name_error
from gap.core.paths import is_file

# Errors of reading YAML: its own, and those of Python's types for values such as `!!int x` and 2001-13-32.
YAML_FAULTS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class Options(BaseModel):
    """Options of one command. An unknown key is an error, which names the most similar known key.

    `group` is the heading of the options that a class itself declares, where the help lists them separately.
    """

    group: ClassVar[str | None] = None
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def read(cls, *layers: dict[str, Any]) -> Self:
        """Options from nested layers, of which later ones override earlier ones; raises GapError of one line."""
        merged: dict[str, Any] = {}
        for layer in layers:
            merged = deep_merge(merged, layer)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise _to_gap_error(cls, error) from error

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values for YAML."""
        return self.model_dump(mode="json")


def split_names(given: Any) -> Any:
    """A list of names from "a,b,c" or ["a,b", "c"]. Any other value is returned unchanged: pydantic checks it."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return given
    return [part for name in names for part in name.split(",") if part]


def command_line_note(field: FieldInfo, key: str) -> Any:
    """The value of a key in `json_schema_extra`, where fields hold notes for the command line; None without one.

    `positional` says that the option has no flag; `complete` says which names complete its values.
    """
    return field.json_schema_extra.get(key) if isinstance(field.json_schema_extra, dict) else None


def named_configs() -> list[str]:
    """The names of the configs that are part of gap."""
    return sorted(path.name[:-5] for path in resources.files("gap.configs").iterdir() if path.name.endswith(".yaml"))


def read_config(name: str) -> dict[str, Any]:
    """A config by its name in gap or by path; raises GapError when it does not exist or is not a mapping."""
    if name in named_configs():
        return read_yaml(resources.files("gap.configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name)
    if is_file(name):
        return read_yaml_file(Path(name))
    if Path(name).suffix in (".yaml", ".yml"):
        raise GapError(f"there is no config file {name}")
    raise unknown_name_error("config", name, named_configs())


def read_yaml_file(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file, read safely."""
    return _mapping(load_yaml_file(path), str(path))


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping, read safely."""
    return _mapping(load_yaml(text, where), where)


def load_yaml_file(path: Path) -> Any:
    """The content of a YAML file, read safely; raises GapError where the file cannot be read or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GapError(f"{path} is not readable YAML: {error}") from error
    except (OSError, ValueError) as error:
        raise GapError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    return load_yaml(text, str(path))


def load_yaml(text: str, where: str) -> Any:
    """The content of a YAML text, read safely; raises GapError where it is not YAML."""
    try:
        return yaml.safe_load(text)
    except YAML_FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GapError(f"{where} is not readable YAML: {reason}") from error


def _mapping(content: Any, source: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise GapError(f"{source} must hold a mapping of options")
    return content


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["generator.pixel_unshuffle=2", "lr=0.001"]` as nested options; values are read as YAML."""
    nested: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise GapError(f"cannot read --set {text!r}; write --set key=value or --set section.key=value")
        try:
            parsed = yaml.safe_load(value)
        except YAML_FAULTS as error:
            raise GapError(f"cannot read the value of --set {text!r}") from error
        for part in reversed(key.strip().split(".")):
            parsed = {part: parsed}
        nested = deep_merge(nested, parsed)
    return nested


def deep_merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`under` updated with the values of `over`, section by section."""
    merged = dict(under)
    for key, value in over.items():
        are_sections = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = deep_merge(merged[key], value) if are_sections else value
    return merged


def _to_gap_error(options: type[BaseModel], error: ValidationError) -> GapError:
    # Unknown names come first: the option that is missing may be a misspelled one.
    first = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    path = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        return unknown_name_error("option", path, _paths(options))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, GapError):
        return GapError(f"{path}: {cause}")
    if first["type"] == "missing":
        return _missing(options, path)
    if first["type"] == "list_type":
        return GapError(f"option {path}={first['input']!r}: write a list, as [a, b]")
    if first["type"] == "literal_error":
        return unknown_name_error(path, str(first["input"]), re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    message = str(cause) if cause else first["msg"][:1].lower() + first["msg"][1:]
    return GapError(f"option {path}={first['input']!r}: {message}" if path else message)


def _missing(options: type[BaseModel], path: str) -> GapError:
    """The error for a required option without a value; `path` is its name, after those of its sections."""
    field = options.model_fields.get(path)
    if field is None:
        return GapError(f"option {path} is missing")
    if command_line_note(field, "positional"):
        return GapError(f"{path} is missing: name it without a flag")
    return GapError(f"option {path} is missing; give `{path}`: {field.description}")


def _paths(options: type[BaseModel], prefix: str = "") -> list[str]:
    paths = []
    for name, field in options.model_fields.items():
        paths.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            paths += _paths(field.annotation, f"{prefix}{name}.")
    return paths
