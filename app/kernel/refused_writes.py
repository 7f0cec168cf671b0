"""Writes that a database refuses for a state of its own, such as a full disk: why, and what mends it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class WriteTrouble(StrEnum):
    """Why a database refuses writes; the value is the `reason` of the problem, and the code of the finding."""

    FULL = "database_full"
    READ_ONLY = "database_read_only"
    SHORT = "database_short"


MEANINGS: Mapping[WriteTrouble, str] = {
    WriteTrouble.FULL: "the database has no room on its disk",
    WriteTrouble.READ_ONLY: "the database takes no writes: it is a standby, or may only be read",
    WriteTrouble.SHORT: "the database lacks memory or files, or its disk fails",
}
REMEDIES: Mapping[WriteTrouble, str] = {
    WriteTrouble.FULL: "make room on the disk of PostgreSQL (its data, its log in pg_wal, its temporary files); "
    "all goes on by itself then, and nothing that was accepted is lost",
    WriteTrouble.READ_ONLY: "name the primary in CONVENER_DATABASE_URL, not a standby, and look for "
    "default_transaction_read_only, which may be set for the server, the database or its role",
    WriteTrouble.SHORT: "the log of PostgreSQL says more; look at the memory, the files and the disk of its machine",
}

# Resources, files and what has no state of its own; and missing rights, as which a read-only file system counts.
_OF_SYSTEM = ("53", "58", "XX", "42501")


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedWrite:
    """A write that was refused, and the words of the server for it."""

    trouble: WriteTrouble
    words: str

    @property
    def sentence(self) -> str:
        """The meaning of the trouble, with the words of the server."""
        return f"{MEANINGS[self.trouble]} ({self.words})"


def trouble_of(sqlstate: str, words: str) -> WriteTrouble | None:
    """Why a server refuses a write with this error; None for an error of any other kind."""
    # Some errors of the system have no state of their own, such as that of a quota, and are told by its words. Errors
    # of values have the words of whoever sent them.
    of_system = words if sqlstate.startswith(_OF_SYSTEM) else ""
    if sqlstate == "53100" or "No space left on device" in of_system or "Disk quota exceeded" in of_system:
        return WriteTrouble.FULL
    if sqlstate == "25006" or "Read-only file system" in of_system:
        return WriteTrouble.READ_ONLY
    # Too many connections refuse reads as well.
    is_short = sqlstate.startswith("53") and sqlstate != "53300"
    return WriteTrouble.SHORT if is_short or sqlstate == "58030" else None
