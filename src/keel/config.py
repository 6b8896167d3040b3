"""Typed settings: TOML file plus `--field value`, resolved into one frozen model, with errors that name the field."""

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from keel.errors import ConfigError

__all__ = ["PRESETS", "Config", "FieldHelp", "describe", "nearest", "read_toml"]

PRESETS = Path(__file__).parent / "presets"
"""Named settings that come with keel, one TOML file each."""

SHORT_FOR = ("path", "url")
"""Text where a table is expected stands for this field of it: policy = "models/mine" is policy.path."""


class Config(BaseModel):
    """Base of every recipe's settings: frozen, unknown fields refused, numbers must be finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @classmethod
    def resolve(cls, file: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Defaults, then the file, then the overrides (`"sampling.top_p": "0.9"`), checked together.

        Raises:
            ConfigError: the file cannot be read, a field is unknown, or a value is out of range.
        """
        values = read_toml(Path(file)) if file is not None else {}
        for dotted, value in (overrides or {}).items():
            _assign(cls, values, dotted, value)
        return cls.checked(values, where=str(file) if file is not None else None)

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str | None = None) -> Self:
        """Build from a plain mapping; pydantic's complaints become one ConfigError that lists them all."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            names = [field.name for field in describe(cls)]
            complaints = [_complaint(problem, names) for problem in error.errors()]
            raise ConfigError("; ".join(complaints), where=where,
                              remedy="`--help` lists every field with its range and default.") from error

    @classmethod
    def has_room_for(cls, values: Mapping[str, Any]) -> bool:
        """True where these values are known and in range; required fields may be missing."""
        try:
            cls.model_validate(dict(values))
        except ValidationError as error:
            return all(problem["type"] == "missing" for problem in error.errors())
        return True

    def to_toml(self) -> str:
        """The complete settings as a TOML file. TOML has no null: a field that is off reads `"none"`."""
        return tomli_w.dumps(_spelled_none(self.model_dump(mode="json")))

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, values: Any) -> Any:
        if isinstance(values, str):
            return next(({name: values} for name in SHORT_FOR if name in cls.model_fields), values)
        if not isinstance(values, dict):
            return values
        given = {name: None if value == "none" else value for name, value in values.items()}
        for name, value in given.items():
            default = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(value, dict) and isinstance(default, Config):
                given[name] = _merged(default.model_dump(), value)
        return given


class FieldHelp(typing.NamedTuple):
    """One line of `--help`: a field's dotted name, type, allowed values, default and meaning."""

    name: str
    kind: str
    limits: str
    default: str
    description: str
    several: bool
    """True where a list of plain values is taken."""


def describe(config: type[Config], prefix: str = "", within: Config | str | None = None) -> Iterator[FieldHelp]:
    """Every field of a config, nested ones by their dotted names, those of the tables in a list as `list[].field`.

    Args:
        config: the settings.
        prefix: dotted name of the field that holds them.
        within: that field's default, whose values stand before the config's own; or "none" where it is off.
    """
    for name, field in config.model_fields.items():
        nested, found = _nested(field), field.get_default(call_default_factory=True)
        if isinstance(within, Config):
            found = getattr(within, name)
        if nested is not None:
            off = "none" if found is None or within == "none" else None
            yield from describe(nested, f"{prefix}{name}.", found if isinstance(found, Config) else off)
            continue
        item = _item(field)
        required = field.is_required() and not isinstance(within, Config)
        default = "none" if required and within == "none" else "required" if required else _shown(found)
        kind = _kind(field.annotation) if item is None else "list of tables"
        several = "list[" in kind or ("tuple[" in kind and "..." in kind)
        yield FieldHelp(prefix + name, kind, _limits(field), default, field.description or "", several)
        if item is not None and "[]" not in prefix:  # one level deep: what tables in tables hold is shown elsewhere
            yield from describe(item, f"{prefix}{name}[].")


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    tails = [candidate for candidate in known if candidate.rsplit(".", 1)[-1] == name]
    found = tails or close
    return f"; did you mean {found[0]!r}?" if found else ""


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file as a dict.

    Raises:
        ConfigError: no such file, not TOML, or not text.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file: {error.strerror}", where=str(file),
                          remedy="Give the path of a TOML file, or the name of a preset from `--help`.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a TOML file: {error}", where=str(file),
                          remedy='TOML is `field = value` per line; text is quoted: policy = "models/mine".') from error


def _assign(config: type[Config], values: dict[str, Any], dotted: str, value: Any) -> None:
    known = {field.name: field for field in describe(config)}
    in_lists = [name for name in known if "[]" in name]
    if (plain := re.sub(r"\.\d+|\[\d*\]", "", dotted)) in [name.replace("[]", "") for name in in_lists]:
        within, _, field = plain.partition(".")
        raise ConfigError(f"{dotted!r} is a field of the tables in a list",
                          remedy=f"Give the whole list: --{within} '[{{{field} = ...}}, ...]', or write a [[{within}]] "
                                 "table per entry in the config file.")
    known = {name: field for name, field in known.items() if name not in in_lists}
    off = value == "none" and any(name.startswith(f"{dotted}.") for name in known)  # --critic none: no critic
    short = next((f"{dotted}.{name}" for name in SHORT_FOR if f"{dotted}.{name}" in known), None)
    if short is not None and not off:
        dotted = short  # --policy DIR is --policy.path DIR
    elif dotted not in known and not off:
        raise ConfigError(f"unknown field {dotted!r}{nearest(dotted, list(known))}",
                          remedy="`--help` lists every field with its range and default.")
    *path, last = dotted.split(".")
    for part in path:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = _parsed(value)
    if dotted in known and known[dotted].kind == "list of tables":
        given = value if isinstance(value, list) else [value]  # a list: the option was given several times
        values[last] = [table for one in given for table in _tables(dotted, _parsed(one))]
    elif dotted in known and known[dotted].several and isinstance(values[last], str):
        values[last] = [values[last]]


def _tables(dotted: str, value: Any) -> Any:
    """One table, or what stands for one, as a list of it."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        raise ConfigError(f"{dotted} is not a list of tables: {value[:80]}",
                          remedy="On the command line: '[{name = \"a\", weight = 0.5}, ...]', as in TOML; in a config "
                                 f"file, a [[{dotted}]] table per entry.")
    return value if isinstance(value, list | tuple) else [value]


def _parsed(value: Any) -> Any:
    """Text of the command line: lists and tables as TOML, anything else for pydantic to convert."""
    if not isinstance(value, str):
        return value
    if value[:1] in "[{" and value:
        try:
            return tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            return value
    return value


def _complaint(problem: Any, names: list[str]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown field {name!r}{nearest(name, names)}"
    if problem["type"] == "missing":
        return f"field {name!r} is required"
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return message
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return f"{name}: {message}"  # what is said of a table names its fields; the whole of it would bury that
    # A secret in the wrong place is not repeated: a token where its variable belongs, a password in an address.
    shown = "[hidden]" if name.endswith("token_env") else re.sub(r"//[^/\s]*@", "//[hidden]@", repr(problem["input"]))
    return f"{name} = {shown if len(shown) <= 80 else shown[:80] + '...'}: {message[0].lower()}{message[1:]}"


def _merged(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A table that sets some fields of a default leaves the others as they are, however deep."""
    both = {name: _merged(default[name], value) if isinstance(value, dict) and isinstance(default.get(name), dict)
            else value for name, value in given.items()}
    return default | both


def _spelled_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _spelled_none(held) for name, held in value.items()}
    if isinstance(value, list):
        return [_spelled_none(held) for held in value]
    return "none" if value is None else value


def _nested(field: FieldInfo) -> type[Config] | None:
    """The Config that a field is, or may be."""
    origin, kinds = typing.get_origin(field.annotation), typing.get_args(field.annotation)
    if origin in (types.UnionType, typing.Union):
        return _only([kind for kind in kinds if kind is not type(None)])
    return _only([field.annotation])


def _item(field: FieldInfo) -> type[Config] | None:
    """The Config that a field holds a list of."""
    origin, kinds = typing.get_origin(field.annotation), typing.get_args(field.annotation)
    return _only([kind for kind in kinds if kind is not Ellipsis]) if origin in (list, tuple) else None


def _only(kinds: list[Any]) -> type[Config] | None:
    only = kinds[0] if len(kinds) == 1 else None
    return only if isinstance(only, type) and issubclass(only, Config) else None


def _kind(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " | ".join(str(choice) for choice in typing.get_args(annotation))
    if origin in (types.UnionType, typing.Union):
        return " | ".join(_kind(part) for part in typing.get_args(annotation))
    if origin is not None:
        inner = ", ".join(_kind(part) for part in typing.get_args(annotation))
        return f"{origin.__name__}[{inner}]"
    if annotation is type(None):
        return "none"
    return "..." if annotation is Ellipsis else getattr(annotation, "__name__", str(annotation))


def _limits(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [f"{sign} {getattr(rule, name)}" for rule in field.metadata for name, sign in signs.items()
             if getattr(rule, name, None) is not None]
    return ", ".join(found)


def _shown(value: Any) -> str:
    # A line break would break the line that shows it.
    return "none" if value is None else str(value).replace("\n", "\\n").replace("\t", "\\t")
