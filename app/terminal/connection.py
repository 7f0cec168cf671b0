"""Address and key of the service: from an option, the environment, or the files that `convener up` writes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.settings import Settings, SettingsError
from app.terminal.failures import ExitCode, Failure

DEFAULT_URL = "http://127.0.0.1:8765"
OPERATOR_KEY = "operator.key"
ADMIN_KEY = "admin.key"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The address of the service, and the key."""

    url: str
    key: str = field(repr=False)


def find_access(url: str | None, key_files: Sequence[str] = (OPERATOR_KEY,)) -> Access:
    """The address and key to use. Raises Failure for a malformed address, and without a key."""
    state = settings().state_directory
    address = _check_url(url or _read(state / "url") or DEFAULT_URL)
    key = os.environ.get("CONVENER_KEY", "").strip() or _kept_key(address, state, key_files)
    if key is None:
        raise Failure(
            "there is no key to show to the service",
            ExitCode.KEY,
            hint=f"put one into CONVENER_KEY; `convener up` on this machine leaves one in {state}, "
            "and `convener key create` makes one",
        )
    # Nothing else fits into a header, and the HTTP library would fail without saying which variable is wrong.
    if not key.isascii() or not key.isprintable():
        raise Failure("the key holds characters that no key has", ExitCode.KEY, hint="look at CONVENER_KEY again")
    return Access(url=address, key=key)


def settings() -> Settings:
    """The settings from the environment. Raises Failure that names the variable at fault."""
    try:
        return Settings.from_environment()
    except SettingsError as error:
        raise Failure(
            str(error), ExitCode.USAGE, hint="correct it; a variable may be unset, and a line of the file left out"
        ) from None


def is_loopback(url: str) -> bool:
    """Whether the address is on this very machine."""
    return httpx.URL(url).host in _LOOPBACK


def _check_url(url: str) -> str:
    try:
        parts = httpx.URL(url)
        usable = parts.scheme in ("http", "https") and bool(parts.host) and (parts.port or 80) < 65536
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise Failure(f"not an address: {url!r}", ExitCode.USAGE, hint=f"write it like {DEFAULT_URL}")
    return url.rstrip("/")


def _kept_key(url: str, state: Path, names: Sequence[str]) -> str | None:
    """The stored key of this machine; None for an address elsewhere, which must never see it."""
    # `url` holds the address of `convener up`, which may listen on another one than loopback.
    if not is_loopback(url) and url != _read(state / "url"):
        return None
    return next((key for name in names if (key := _read(state / name))), None)


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
