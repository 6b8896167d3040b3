"""The command line: `keel COMMAND [config.toml] [--field value ...]`, built from each command's config."""

import importlib
import inspect
import io
import json
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from keel import __version__
from keel.config import PRESETS, Config, describe, nearest, read_toml
from keel.errors import ConfigError, KeelError, RunError
from keel.recipes import COMMANDS

__all__ = ["main"]

POSITIONAL = ("paths", "runs")
"""Fields that take the words of a command line that belong to no option."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 0, or the error's (2 config, 3 data, 4 model, 5 numerics, 6 run, 7 endpoint,
    8 below a minimum)."""
    words = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # text of the data may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not when Python ends
        return code
    except KeelError as error:
        return _said(error, type(error).__name__)
    except KeyboardInterrupt:
        print("interrupted; a run continues with --resume from its last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _said(RunError(error.strerror or str(error), where=str(error.filename or "operating system"),
                              remedy="Check the path, its permissions and the free space."), "RunError")
    except Exception as error:
        return _said(_unexpected(error), "UnexpectedError")


def _said(error: KeelError, kind: str) -> int:
    if os.environ.get("KEEL_TRACEBACK"):
        traceback.print_exc()
    print(f"{kind}: {error}", file=sys.stderr)
    return error.exit_code


def _unexpected(error: Exception) -> KeelError:
    """What nobody foresaw, placed at the innermost line of keel or of the user's own code (a gold function)."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), "<")
    own = [frame for frame in frames if not frame.filename.startswith(libraries) or "/keel/" in frame.filename]
    place = (own or frames)[-1]
    text = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
    return KeelError(text[:400], where=f"{place.filename}:{place.lineno} ({place.name})",
                     remedy="If that line is yours, mend it; if not, this is a bug in keel. With KEEL_TRACEBACK=1 in "
                            "the environment the whole trace is printed. Finished checkpoints are intact.")


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("--version", "-V"):
        print(f"keel {__version__}")
        return 0
    name, rest = _command(words)
    module_name, config_name, line = COMMANDS[name]
    module = importlib.import_module(module_name)
    config_class: type[Config] = getattr(module, config_name)
    if "--help" in rest or "-h" in rest:
        print(_help(name, line, config_class, _resumes(module)))
        return 0
    return _run(name, module, config_class, rest)


def _run(name: str, module: Any, config_class: type[Config], rest: list[str]) -> int:
    file, overrides, flags = _parse(rest, config_class)
    if "resume" in flags:
        from keel.runs import is_finished, saved_config

        folder = Path(flags["resume"])
        if not _resumes(module):
            raise ConfigError(f"`keel {name}` cannot be resumed", remedy="It keeps no checkpoints; run it again.")
        if file or overrides:
            raise ConfigError("--resume takes its settings from the run", remedy="Give --resume RUN alone.")
        config = config_class.checked(saved_config(folder, name.replace("-", "_")) | {"out": str(folder)},
                                      where=str(folder / "config.toml"))
        if is_finished(folder):
            print(f"{name}: {folder} is already finished")
            if hasattr(module, "concluded"):  # what follows from the result; a gate has to hold every time
                module.concluded(config)
            return 0
        module.run(config, resume=True)
        print(f"{name}: done, see {folder}")
        return 0
    config = config_class.resolve(_preset(file, name, config_class), overrides)
    if "print-config" in flags:
        print(config.to_toml(), end="")
        return 0
    result = module.run(config)
    if hasattr(result, "folder"):
        print(f"{name}: done, see {result.folder}")
    return 0


def _command(words: list[str]) -> tuple[str, list[str]]:
    for size in (2, 1):
        name = " ".join(words[:size])
        if len(words) >= size and name in COMMANDS:
            return name, words[size:]
    family = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if family:
        raise ConfigError(f"`keel {words[0]}` needs one more word", remedy="One of: " + ", ".join(family))
    raise ConfigError(f"unknown command {words[0]!r}{nearest(words[0], list(COMMANDS))}",
                      remedy="`keel --help` lists the commands.")


def _parse(rest: list[str], config_class: type[Config]) -> tuple[str | None, dict[str, Any], dict[str, str]]:
    """Config file, `field -> text`, and the flags every command has."""
    fields = list(describe(config_class))
    positional = [field.name for field in fields if field.several and field.name in POSITIONAL]
    several = [field.name for field in fields if field.several or field.kind == "list of tables"]
    file: str | None = None
    overrides: dict[str, Any] = {}
    flags: dict[str, str] = {}
    _require_utf8(rest)
    words, key, value = list(rest), "", ""
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if positional and not word.endswith(".toml"):
                overrides.setdefault(positional[0], []).append(word)
            elif key in several and not _is_settings(word):
                raise ConfigError(f"{word!r} belongs to no option and is no config file or preset", remedy="Several "
                                  f"values are one list: --{key} '{_as_list(value, word)}'; or give --{key} again.")
            elif file is not None:
                raise ConfigError(f"two config files: {file!r} and {word!r}", remedy="Options are --field value.")
            else:
                file = word
            continue
        name, equals, value = word[2:].partition("=")
        if name == "print-config":
            flags[name] = ""
            continue
        if not equals:
            if not words or (words[0].startswith("--") and len(words[0]) > 2):
                raise ConfigError(f"--{name} has no value", remedy=f"Write --{name} VALUE.")
            value = words.pop(0)
        key = name.replace("-", "_")
        if name == "resume":
            flags[name] = value
        else:
            overrides[key] = _joined(overrides.get(key), value) if key in several else value
    return file, overrides, flags


def _require_utf8(words: list[str]) -> None:
    for word in words:
        if any("\udc80" <= char <= "\udcff" for char in word):
            raise ConfigError(f"{word!r} is not UTF-8", remedy="Rename the file, or set a UTF-8 locale.")


def _is_settings(word: str) -> bool:
    """True for a config file or the name of a preset, of whichever command."""
    return word.endswith(".toml") or Path(word).is_file() or (PRESETS / f"{word}.toml").is_file()


def _as_list(value: str, word: str) -> str:
    """How two values of an option are written as one."""
    return f'[{value if value[:1] == "{" else json.dumps(value)}, {json.dumps(word)}]' if value[:1] != "[" else (
        f"{value[:-1]}, {json.dumps(word)}]")


def _joined(before: str | list[str] | None, value: str) -> str | list[str]:
    """An option of several values, given once more."""
    return value if before is None else [*([before] if isinstance(before, str) else before), value]


def _preset(file: str | None, command: str, config_class: type[Config]) -> str | None:
    """A config file, or the name of one that comes with keel for this command."""
    if file is None or file.endswith(".toml") or Path(file).exists():
        return file
    known, own = sorted(path.stem for path in PRESETS.glob("*.toml")), _presets(config_class)
    if file not in known:
        raise ConfigError(f"no config file or preset {file!r}{nearest(file, known)}",
                          remedy=f"Presets: {', '.join(own) or 'none'}; or give a path that ends in .toml.")
    if file not in own:
        raise ConfigError(f"{file!r} is no preset of `keel {command}`",
                          remedy=f"Its presets: {', '.join(own) or 'none'}.")
    return str(PRESETS / f"{file}.toml")


def _presets(config_class: type[Config]) -> list[str]:
    """Names of the settings that come with keel and fit these fields and what they may hold."""
    return [path.stem for path in sorted(PRESETS.glob("*.toml")) if config_class.has_room_for(read_toml(path))]


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  keel {name:<{width}}  {line}" for name, (_, _, line) in COMMANDS.items()]
    return "\n".join([
        "keel: from raw human preferences to an aligned, monitored language model", "", *lines, "",
        "keel COMMAND --help lists every field with its range and default; --print-config prints a complete file;",
        "--resume RUN continues a run. Begin with: keel demo"])


def _resumes(module: Any) -> bool:
    return "resume" in inspect.signature(module.run).parameters


def _help(name: str, line: str, config_class: type[Config], resumes: bool) -> str:
    rows = list(describe(config_class))
    lines = [f"keel {name} [config.toml | preset] [--field value ...]", f"  {line}", ""]
    for row in rows:
        limits = f", {row.limits}" if row.limits else ""
        lines += [f"  --{row.name}  ({row.kind}{limits}; default {row.default})", f"        {row.description}"]
    if presets := _presets(config_class):
        lines += ["", f"presets: {', '.join(presets)}"]
    lines += ["", "  --print-config  print the complete settings and stop"]
    return "\n".join([*lines, *(["  --resume RUN    continue a run from its last checkpoint"] if resumes else [])])

