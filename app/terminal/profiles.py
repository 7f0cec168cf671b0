"""Profiles: for each control plane a file with its address, the file of the key, and whom to trust."""

import json
import os
import re
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from app.secrecy import write_private
from app.terminal.failures import ExitCode, Failure

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SUFFIX = ".toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A control plane, and the key for it; names of files are absolute."""

    url: str
    key_file: str
    ca_file: str | None = None
    pin: str | None = None
    namespace: str | None = None
    allow_plain_http: bool = False

    def variables(self) -> dict[str, str | None]:
        """The variables of commands; what the profile does not name is None."""
        return {
            "CONVENER_URL": self.url,
            "CONVENER_KEY": None,
            "CONVENER_KEY_FILE": self.key_file,
            "CONVENER_CA_FILE": self.ca_file,
            "CONVENER_TLS_PIN": self.pin,
            "CONVENER_NAMESPACE": self.namespace,
            "CONVENER_ALLOW_PLAIN_HTTP": "true" if self.allow_plain_http else None,
        }


def directory() -> Path:
    """The directory of the profiles of this user."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "convener" / "profiles"


def names() -> list[str]:
    """The names of all profiles."""
    return sorted(path.stem for path in directory().glob(f"*{_SUFFIX}"))


def path_of(name: str, suffix: str = _SUFFIX) -> Path:
    """The file of a profile, or of the key that is kept beside it. Raises Failure for what is no name."""
    if _NAME.fullmatch(name) is None:
        hint = "use letters, digits, and - _ . after the first"
        raise Failure(f"{name!r} is no name of a profile", ExitCode.USAGE, hint=hint)
    return directory() / f"{name}{suffix}"


def read(name: str) -> Profile:
    """The profile of this name. Raises Failure."""
    path = path_of(name)
    try:
        values = tomllib.loads(path.read_text())
        profile = Profile(**values)
    except FileNotFoundError:
        others = f"there are {', '.join(names())}" if names() else "there is none yet"
        hint = f"{others}; `convener profiles add {name} --url URL` makes it"
        raise Failure(f"there is no profile {name}", ExitCode.USAGE, hint=hint) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
        hint = f"correct the file, or make it anew: `convener profiles add {name} --url URL`"
        raise Failure(f"the profile {path} cannot be used: {error}", ExitCode.USAGE, hint=hint) from None
    for field, value in values.items():
        if not isinstance(value, bool if field == "allow_plain_http" else str):
            raise Failure(f"the profile {path} cannot be used: {field} is of another type", ExitCode.USAGE)
    return profile


def write(name: str, profile: Profile) -> None:
    """Store a profile, for this user alone."""
    path = path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Text and truth are written in TOML as they are in JSON.
    lines = [
        f"{field} = {json.dumps(value, ensure_ascii=False)}"
        for field, value in asdict(profile).items()
        if value not in (None, False)
    ]
    write_private(path, "\n".join(lines) + "\n")
