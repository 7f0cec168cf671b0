"""Address and key of the service: from an option, the environment, or the files that `convener up` writes."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from app.terminal.failures import ExitCode, Failure
from worker_agent.connections.trust import SYSTEM_TRUST, Trust, read_trust
from worker_agent.variables import KEY_FILE, OTHER_SETTINGS, PROFILE, STATE_DIRECTORY, default_state_directory

if TYPE_CHECKING:
    from app.settings import Settings
    from app.settings_sources import SettingsError

DEFAULT_URL = "http://127.0.0.1:8765"
OPERATOR_KEY = "operator.key"
ADMIN_KEY = "admin.key"
_MAX_KEY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The address of the service, the key, and which servers may see it."""

    url: str
    key: str = field(repr=False)
    trust: Trust = SYSTEM_TRUST


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of the service; `is_own`: of this machine's, whose keys are kept; `is_named`: it is no mere guess."""

    url: str
    trust: Trust
    is_own: bool
    is_named: bool


def find_address(url: str | None) -> Address:
    """The address to use. Raises Failure for a malformed one."""
    # The programs that run on need no HTTP client at their start, and import this module too.
    from worker_agent.connections.clients import check_address, default_socket

    state = state_directory()
    own_address = _read(state / "url")
    address, is_own = url or own_address or DEFAULT_URL, (url or own_address) == own_address
    # Not the port of this machine's own service: while it is down, anybody may listen there and collect the keys.
    socket = default_socket(state) if is_own and own_address else None
    try:
        trust = read_trust(os.environ)
        address = check_address(f"unix:{socket}" if socket else address, trust)
    except ValueError as error:
        raise Failure(str(error), ExitCode.USAGE, hint="look at --url, CONVENER_URL and the variables of TLS") from None
    return Address(url=address, trust=trust, is_own=is_own, is_named=bool(url or own_address))


def find_access(url: str | None, key_files: Sequence[str] = (OPERATOR_KEY,)) -> Access:
    """The address and key to use. Raises Failure for a malformed address, and without a key."""
    address, state = find_address(url), state_directory()
    if os.environ.get(PROFILE) and url != os.environ.get("CONVENER_URL"):
        raise Failure(
            f"the key of the profile {os.environ[PROFILE]} is for {os.environ.get('CONVENER_URL')}, not for {url}",
            ExitCode.USAGE,
            hint="leave --url out, or the profile",
        )
    key = os.environ.get("CONVENER_KEY", "").strip() or _key_of_file()
    key = key or (_first(state, key_files) if address.is_own else None)
    if key is None:
        raise Failure(
            "there is no key to show to the service",
            ExitCode.KEY,
            hint=f"put one into CONVENER_KEY, or into the file of {KEY_FILE}; `convener up` on this machine leaves one "
            f"in {state}, and `convener key create --database` makes one",
        )
    # Nothing else fits into a header, and the HTTP library would fail without saying which variable is wrong.
    if not key.isascii() or not key.isprintable():
        raise Failure("the key holds characters that no key has", ExitCode.KEY, hint="look at CONVENER_KEY again")
    return Access(url=address.url, key=key, trust=address.trust)


def _key_of_file() -> str | None:
    """The key in the file that the environment names; None without one. Raises Failure."""
    name = os.environ.get(KEY_FILE)
    return read_key(Path(name)) if name else None


def read_key(path: Path) -> str:
    """The key in a file, which nobody else may read. Raises Failure."""
    try:
        with path.open() as file:
            # Of the open file, so that it cannot be exchanged in between.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            key = file.read(_MAX_KEY).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        hint = f"put the key there, for you alone, or name another file as {KEY_FILE}"
        raise Failure(f"cannot read the key in {path} ({reason})", ExitCode.KEY, hint=hint) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Failure(f"others can read the key in {path}", ExitCode.KEY, hint=f"chmod 600 {path}")
    if not key:
        raise Failure(f"there is no key in {path}", ExitCode.KEY, hint="`convener key create` makes one")
    return key


def state_directory() -> Path:
    """The state directory. Raises Failure that names the variable at fault, of any setting."""
    # All settings together take longer to import than the rest of a command, and there are rarely others.
    directory = os.environ.get(STATE_DIRECTORY, "")
    if directory.isspace() or not OTHER_SETTINGS.isdisjoint(os.environ):
        return settings().state_directory
    return Path(os.path.realpath(directory or default_state_directory()))


def settings() -> "Settings":
    """The settings from the environment. Raises Failure that names the variable at fault."""
    from app.settings import Settings
    from app.settings_sources import SettingsError

    try:
        return Settings.from_environment()
    except SettingsError as error:
        raise settings_failure(error) from None


def settings_failure(error: "SettingsError") -> Failure:
    """The failure of a command for settings that cannot be used."""
    hint = "correct it; a variable may be unset, and a line of the file left out"
    return Failure(str(error), ExitCode.USAGE, hint=hint)


def _first(state: Path, names: Sequence[str]) -> str | None:
    """The first of these keys that `convener up` has left here; they are for its own service alone."""
    return next((key for name in names if (key := _read(state / name))), None)


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
