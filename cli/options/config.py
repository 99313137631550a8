"""The configuration file: defaults for options, under their long names.

temp = 0.7            # for every command that has --temp
drafter = "suffix"
models = ["~/models"] # folders whose models are found by their names

[chat]                # for one command
markdown = true

[aliases]             # names of models
small = "~/models/SmolLM2-135M-Instruct-Q4_0.gguf"

[profiles.poet]       # for a command with --profile poet
model = "small"
temp = 1.1
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specx.backends.errors import FileError, UsageError
from specx.backends.places import expanded, model_aliases, model_folders, user_folder
from specx.cli.terminal.files import decode, read_bytes

__all__ = ["config_path", "know_models", "option_defaults", "profile_defaults", "profile_names"]

MODELS, ALIASES, PROFILES = "models", "aliases", "profiles"  # what holds no options of a command
MOST_TEXT = 1 << 20  # characters
MOST_DOTS = 2000  # in a line: what a dotted key takes grows as their square


def config_path() -> Path | None:
    """The file: SPECX_CONFIG, or config.toml in the user's configuration directory if there is one."""
    if named := os.environ.get("SPECX_CONFIG"):
        return expanded(Path(named))
    folder = user_folder("config")
    usual = None if folder is None else folder / "config.toml"
    return usual if usual is not None and os.path.isfile(usual) else None  # noqa: PTH113 - is_file raises where it may not look


def option_defaults(path: Path, running: str, commands: Mapping[str, Any]) -> dict[str, Any]:
    """What the file sets for one command, as parameter -> value. Its models and aliases are known then.

    All of the file is checked, but of the other commands only those are looked up that it depends on.

    Args:
        path: the file.
        running: the name of the command.
        commands: every click command by name.

    Raises:
        FileError: the file cannot be read.
        UsageError: it is no TOML, or names an option or a command that does not exist.
    """
    content = know_models(path)
    for name, profile in _profiles(path, content).items():
        _of_any_command(path, f"{PROFILES}.{name}.", profile, running, commands)
    content.pop(PROFILES, None)
    tables = {name: table for name, table in content.items() if isinstance(table, dict)}
    plain = {key: value for key, value in content.items() if key not in tables}
    defaults = _of_any_command(path, "", plain, running, commands)
    for name, table in tables.items():
        if name not in commands:
            allowed = ", ".join((*commands, ALIASES, PROFILES))
            raise UsageError(f"{path}: there is no command {name!r}", f"tables are {allowed}")
        known = _options(commands[name])
        for key, value in table.items():
            if key not in known:
                raise _unknown(path, f"{name}.{key}", set(known))
            default = _default(path, key, value, known[key])
            if name == running:
                defaults.update(default)
    return defaults


def know_models(path: Path) -> dict[str, Any]:
    """Let folders and aliases of models be known, and return the rest of the file.

    Raises:
        FileError, UsageError: as in `option_defaults`.
    """
    content = _read(path)
    model_folders[:] = _folders(path, content.pop(MODELS, []))
    model_aliases.clear()
    model_aliases.update(_aliases(path, content.pop(ALIASES, {})))
    return content


def profile_names() -> list[str]:
    """The profiles of the file, if there is one."""
    path = config_path()
    return [] if path is None else list(_profiles(path, _read(path)))


def profile_defaults(name: str, running: str, commands: Mapping[str, Any]) -> dict[str, Any]:
    """What the profile `name` of the file sets for one command, as parameter -> value.

    Raises:
        FileError, UsageError: as in `option_defaults`; there is no such profile.
    """
    path = config_path()
    if path is None:
        folder = user_folder("config")
        where = "the file that SPECX_CONFIG names" if folder is None else str(folder / "config.toml")
        hint = f"write it into {where}, below a line [{PROFILES}.{name}]"
        raise UsageError(f"there is no profile {name!r}, and no configuration file", hint)
    profiles = _profiles(path, _read(path))
    if name not in profiles:
        known = (
            f"there are {', '.join(profiles)}" if profiles else f"write it below a line [{PROFILES}.{name}]"
        )
        raise UsageError(f"{path}: there is no profile {name!r}", known)
    return _of_any_command(path, f"{PROFILES}.{name}.", profiles[name], running, commands)


def _of_any_command(
    path: Path, table: str, content: Mapping[str, Any], running: str, commands: Mapping[str, Any]
) -> dict[str, Any]:
    """What options of any command set for the `running` one; those of others are checked, too."""
    defaults: dict[str, Any] = {}
    for key, value in content.items():
        takers = [running, *(name for name in commands if name != running)]
        taken = next((name for name in takers if key in _options(commands[name])), None)
        if taken is None:
            every = {name for command in commands.values() for name in _options(command)}
            raise _unknown(path, table + key, every)
        default = _default(path, table + key, value, _options(commands[taken])[key])
        if taken == running:
            defaults.update(default)
    return defaults


def _profiles(path: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    profiles = content.get(PROFILES, {})
    tables = profiles.values() if isinstance(profiles, dict) else [profiles]
    if not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}: {PROFILES} holds something else than profiles", f"write [{PROFILES}.NAME]")
    for name, table in profiles.items():
        if "profile" in table:
            raise UsageError(f"{path}: the profile {name} names a profile", "write its options out")
    return dict(profiles)


def _folders(path: Path, value: Any) -> list[Path]:
    folders = [_text(path, MODELS, folder) for folder in _as_list(value)]
    if "" in folders:
        raise UsageError(f"{path}: {MODELS} holds an empty name", "give the names of folders")
    return [expanded(Path(folder)) for folder in folders]


def _aliases(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(model, str) for model in value.values()):
        raise UsageError(
            f"{path}: {ALIASES} are no names of models", 'a line looks like: small = "model.gguf"'
        )
    return value


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        data = read_bytes(path)
    except FileError as problem:
        raise FileError(
            problem.message.replace("cannot read", "cannot read the configuration", 1),
            "let SPECX_CONFIG name a file that can be, or leave it out",
        ) from problem
    text = decode(data, str(path))
    if len(text) > MOST_TEXT or any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise UsageError(
            f"{path} is no configuration: it is too long, or a line of it has thousands of dots",
            "a line looks like: temp = 0.7",
        )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path} is not valid TOML: {problem}", "a line looks like: temp = 0.7") from problem


def _options(command: Any) -> dict[str, tuple[Any, bool]]:
    """Long name -> (parameter, whether the name switches it off)."""
    known = {}
    for parameter in command.params:
        for names, off in ((parameter.opts, False), (parameter.secondary_opts, True)):
            known.update({name[2:]: (parameter, off) for name in names if name.startswith("--")})
    return known


def _default(path: Path, key: str, value: Any, option: tuple[Any, bool]) -> dict[str, Any]:
    parameter, off = option
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise UsageError(f"{path}: {key} is {value!r}", "give true or false")
        return {parameter.name: value != off}
    if getattr(parameter, "multiple", False):
        return {parameter.name: [_text(path, key, item) for item in _as_list(value)]}
    return {parameter.name: _text(path, key, value)}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(path: Path, key: str, value: Any) -> str:
    """The value as it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float) and "\0" not in str(value):  # which nobody can type
        return str(value)
    raise UsageError(f"{path}: {key} is {value!r}", "give one value")


def _unknown(path: Path, key: str, known: set[str]) -> UsageError:
    from difflib import get_close_matches

    close = get_close_matches(key.rpartition(".")[2], known)
    hint = (
        f"did you mean {' or '.join(close)}?" if close else "names are those of the options, without dashes"
    )
    return UsageError(f"{path}: there is no option {key!r}", hint)
