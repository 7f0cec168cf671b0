"""Sources of the settings: variables of the environment, a TOML file, and files with one secret each."""

import difflib
import logging
import os
import stat
import tomllib
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from app.kernel.text import plain_message

log = logging.getLogger(__name__)
_PREFIX = "CONVENER_"
SETTINGS_FILE = f"{_PREFIX}SETTINGS_FILE"
_FILE = "_FILE"
_HIDDEN = f"{_PREFIX}HANDLER_HIDE"
# Settings that no other program may read: they are taken out of the environment, and may stand in files of their own.
SECRETS = ("database_direct_url", "database_password", "database_url", "llm_key", "webhook_secret", "webhook_url")


class SettingsError(Exception):
    """The environment, or the file that it names, holds a value that cannot be used."""


def variable_of(name: str) -> str:
    """The variable of a setting."""
    return _PREFIX + name.upper()


# With the names of their files, which lead to them.
SECRET_VARIABLES = frozenset(variable_of(name) + suffix for name in SECRETS for suffix in ("", _FILE))


def read_file(path: Path, names: Collection[str]) -> dict[str, Any]:
    """The settings in a file. Raises SettingsError for a file that cannot be read and for unknown names."""
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
            # Of the open file, so that it cannot be exchanged between reading and this look.
            readable = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & (stat.S_IRGRP | stat.S_IROTH)
    except OSError as error:
        raise SettingsError(f"{SETTINGS_FILE}: cannot read {path} ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no TOML: {error}") from None
    if unknown := [name for name in values if name not in names]:
        raise SettingsError(f"{path}: " + "; ".join(_unknown(name, names) for name in unknown))
    secrets = sorted(values.keys() & set(SECRETS))
    if secrets and readable:
        log.warning("%s holds %s and others can read it: `chmod 600 %s`", path, " and ".join(secrets), path)
    return values


def read_secrets(source: Mapping[str, str], variables: Collection[str]) -> dict[str, str]:
    """The secrets that have a file of their own and no variable. Raises SettingsError."""
    paths = {name: source.get(variable_of(name) + _FILE) for name in SECRETS if name not in variables}
    secrets = {}
    for name, path in paths.items():
        if path:
            try:
                secrets[name] = Path(path).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "no text"
                raise SettingsError(f"{variable_of(name)}{_FILE}: cannot read {path} ({reason})") from None
    return secrets


def hide_secret_files(environment: MutableMapping[str, str]) -> None:
    """Have workers keep the files of secrets from handlers, beside whose code they may lie."""
    paths = [path for name in sorted(SECRET_VARIABLES) if name.endswith(_FILE) and (path := environment.get(name))]
    if paths:
        named = filter(None, [environment.get(_HIDDEN)])
        environment[_HIDDEN] = os.pathsep.join([*named, *map(os.path.abspath, paths)])


def problem(error: Any, variables: Collection[str], path: Path | None) -> str:
    """The sentence on an error of validation, with where the value comes from."""
    name, *within = map(str, error["loc"])
    where = variable_of(name) if name in variables or path is None else f"{path}: {name}"
    place = f"{'.'.join(within)}: " if within else ""
    return f"{where}: {place}{plain_message(error)}"


def _unknown(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name.lower().removeprefix(_PREFIX.lower()), names, n=1)
    return f"{name} is no setting" + (f", did you mean {near[0]}?" if near else "")
