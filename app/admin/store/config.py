"""Versions of the deployment configuration: the last one is in force."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import ConfigAction, Document, as_json, from_json
from app.db import pages
from app.db.pages import Page
from app.kernel.modes import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """The content of the next version."""

    mode: Mode
    document: Document
    changed_by: str
    reason: str
    action: ConfigAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Version(NewVersion):
    """A stored version of the configuration."""

    version: int
    changed_at: datetime


_COLUMNS = "version, mode, document, changed_at, changed_by, reason, action"

_LAST = text(f"SELECT {_COLUMNS} FROM config_versions ORDER BY version DESC LIMIT 1")

_READ = text(f"SELECT {_COLUMNS} FROM config_versions WHERE version = :version")

# Compare-and-set: of two writers that both see the expected version as the last one, the primary key admits one; the
# other waits for its commit and then inserts nothing.
_WRITE = text(f"""
INSERT INTO config_versions (version, mode, document, changed_by, reason, action)
SELECT CAST(:expected AS bigint) + 1, :mode, CAST(:document AS jsonb), :changed_by, :reason, :action
WHERE coalesce((SELECT version FROM config_versions ORDER BY version DESC LIMIT 1), 0) = :expected
ON CONFLICT DO NOTHING
RETURNING {_COLUMNS}
""")

_HISTORY = f"SELECT {_COLUMNS} FROM config_versions WHERE version < :before ORDER BY version DESC"


async def last(connection: AsyncConnection) -> Version | None:
    """The version in force; None while there is none."""
    return _first(await connection.execute(_LAST))


async def read(connection: AsyncConnection, version: int) -> Version | None:
    """The version with this number; None when there is none."""
    return _first(await connection.execute(_READ, {"version": version}))


async def write(connection: AsyncConnection, expected_version: int, new: NewVersion) -> Version | None:
    """Add the version after `expected_version` (0: there is none yet); None when that is not the last one any more.

    Waits for a concurrent transaction that writes the same version, until it commits or rolls back.
    """
    values = {"mode": new.mode, "changed_by": new.changed_by, "reason": new.reason, "action": new.action}
    document = json.dumps(as_json(new.document), allow_nan=False)
    return _first(await connection.execute(_WRITE, {**values, "expected": expected_version, "document": document}))


async def history(connection: AsyncConnection, *, below: int, limit: int) -> Page[Version]:
    """Versions numbered below `below`, newest first."""
    return await pages.read(connection, _HISTORY, {"before": below}, limit, _version)


def _first(rows: Any) -> Version | None:
    row = rows.mappings().first()
    return _version(row) if row else None


def _version(row: Any) -> Version:
    fields = {"mode": Mode(row["mode"]), "action": ConfigAction(row["action"]), "document": from_json(row["document"])}
    return Version(**{**row, **fields})
