"""The key of the gateway: a fixed one, or one that is read anew from a file or from the output of a command."""

import asyncio
import base64
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from worker_agent.llm.settings import GatewaySettings

log = logging.getLogger(__name__)
_COMMAND_SECONDS = 30.0
# A file costs nothing to read; a command may ask a service for a token.
_AGAIN_SECONDS = 2.0
# Read anew so long before the key expires; a file from when people are told of it on, two days before at the earliest.
_AHEAD_SECONDS = 300.0
_FILE_AHEAD_SECONDS, _FILE_AGAIN_SECONDS = 200_000.0, 60.0
# Who renews a key by itself does so while more than this share of its life is left.
_LATE_SHARE = 0.1
_LONG_LIFE = timedelta(days=1)
_MAX_BYTES = 64 << 10
_NAMES = ("access_token", "key", "token", "api_key")
# Timestamps of JSON are in seconds up to here, in milliseconds above.
_MAX_SECONDS = 1e11


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, empty for a gateway that wants none, and when it expires, where that is known."""

    text: str = field(default="", repr=False)
    expires_at: datetime | None = None


class KeySource:
    """The current key of one worker; for one event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._file, self._command = settings.key_file, settings.key_command
        try:
            self._key = read_key(settings.key, datetime.now(UTC))
        except ValueError:
            self._key = Key(text=settings.key)
        self._is_read = self._file is None and self._command is None
        self._read_at = -_AGAIN_SECONDS
        self._begun_at: datetime | None = None
        self._reading = asyncio.Lock()

    @property
    def expires_at(self) -> datetime | None:
        """When the current key expires, where that is known and whoever renews it has not done so in time."""
        end, begun_at = self._key.expires_at, self._begun_at
        if end is None or begun_at is None:
            return end
        # Tokens that are renewed by themselves live for hours; whatever lives longer is somebody's to renew.
        is_late = end - datetime.now(UTC) <= _LATE_SHARE * (end - begun_at)
        return end if is_late or end - begun_at > _LONG_LIFE else None

    async def current(self) -> Key:
        """The key to call with, read anew where it is about to expire."""
        if not self._is_read or self._is_ending():
            await self.renew(self._key)
        return self._key

    def _is_ending(self) -> bool:
        if self._key.expires_at is None:
            return False
        left = (self._key.expires_at - datetime.now(UTC)).total_seconds()
        if self._command is not None:
            return left < _AHEAD_SECONDS
        is_due = time.monotonic() - self._read_at >= _FILE_AGAIN_SECONDS
        return left < _AHEAD_SECONDS or (left < _FILE_AHEAD_SECONDS and is_due)

    async def renew(self, refused: Key) -> Key:
        """The key after it was refused, or is about to expire: another one where there is one by now."""
        if self._file is None and self._command is None:
            return self._key
        async with self._reading:
            # Others may have waited for the same; and a command is not run for each of many calls.
            if self._key.text != refused.text or time.monotonic() - self._read_at < self._pause_seconds:
                return self._key
            try:
                key = read_key(await self._read(), datetime.now(UTC))
            except (OSError, ValueError, TimeoutError) as error:
                log.warning("the key of the language model cannot be read", extra={"fields": {"why": str(error)}})
                return self._key
            finally:
                # From its end on: those who have waited for a slow command must not run it again one by one.
                self._read_at = time.monotonic()
            if key.text != self._key.text or self._begun_at is None:
                self._begun_at = self._file_written_at() or datetime.now(UTC)
            self._key, self._is_read = key, True
            return self._key

    def _file_written_at(self) -> datetime | None:
        if self._command is not None or self._file is None:
            return None
        try:
            return datetime.fromtimestamp(self._file.stat().st_mtime, UTC)
        except OSError:
            return None

    @property
    def _pause_seconds(self) -> float:
        return 0.0 if self._command is None else _AGAIN_SECONDS

    async def _read(self) -> str:
        if self._command is None:
            assert self._file is not None, "a fixed key is not read"
            return await asyncio.to_thread(_read_file, self._file)
        process = await asyncio.create_subprocess_shell(
            self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, 9)
                await process.wait()
        if process.returncode:
            raise ValueError(f"CONVENER_LLM_KEY_COMMAND ended with exit code {process.returncode}")
        return output[:_MAX_BYTES].decode()


def read_key(text: str, now: datetime) -> Key:
    """Read a key that stands alone, or in JSON under `key` or `access_token` with `expires_at` or `expires_in`.

    A token that says itself when it expires (the claim `exp` of a JWT) is believed.
    """
    plain = text.strip()
    fields: Mapping[str, object] = {}
    if plain.startswith("{"):
        value = json.loads(plain)
        fields = value if isinstance(value, dict) else {}
        plain = next((str(fields[name]) for name in _NAMES if fields.get(name)), "")
    if not plain.isascii() or not plain.isprintable():
        raise ValueError("the key must be a line of printable ASCII")
    return Key(text=plain, expires_at=_expiry(fields, now) or _claimed_expiry(plain))


def _expiry(fields: Mapping[str, object], now: datetime) -> datetime | None:
    at, seconds = fields.get("expires_at") or fields.get("expires"), fields.get("expires_in")
    if isinstance(at, str):
        moment = datetime.fromisoformat(at)
        return moment.replace(tzinfo=moment.tzinfo or UTC)
    if isinstance(at, int | float):
        return _moment(float(at))
    return _moment(now.timestamp() + seconds) if isinstance(seconds, int | float) else None


def _claimed_expiry(token: str) -> datetime | None:
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return _moment(float(claims["exp"]))
    except (ValueError, KeyError, TypeError):
        return None


def _moment(seconds: float) -> datetime | None:
    seconds = seconds / 1000 if seconds > _MAX_SECONDS else seconds
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _read_file(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(_MAX_BYTES)
