"""Files of dumps and their manifests: written as a whole, readable by their owner only, checked by SHA-256."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

# A dump holds everything, key hashes and payloads included.
_FILE_MODE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Description of a dump, stored beside it as `<file>.json`."""

    file: str
    taken_at: str
    revision: str
    server: str
    size_bytes: int
    sha256: str


def manifest_path(file: Path) -> Path:
    """Path of the manifest of a dump."""
    return file.with_name(f"{file.name}.json")


def read_manifest(file: Path) -> Manifest | None:
    """Read the manifest of a dump; None where there is none. Raises ValueError where it cannot be read."""
    try:
        return Manifest(**json.loads(manifest_path(file).read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{manifest_path(file)} is no manifest: {error}") from None


def write_manifest(manifest: Manifest, file: Path) -> None:
    """Write the manifest of a dump."""
    with new_file(manifest_path(file)) as draft:
        draft.write_text(json.dumps(asdict(manifest), indent=2) + "\n")


@contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Provide an empty draft to write into; at the end it is durable and gets its name, after an error it is deleted.

    Raises FileExistsError rather than replace a file, or write one that somebody else is writing.
    """
    _check_absent(file)
    draft = file.with_name(f".{file.name}.partial")
    try:
        descriptor = _open_draft(draft)
    except (FileExistsError, BlockingIOError):
        raise FileExistsError(f"{file} is being written by another process") from None
    try:
        yield draft
        # Content before name before directory: after a crash the file is there as a whole, or not at all.
        os.fsync(descriptor)
        _check_absent(file)
        draft.rename(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    _sync(file.parent)


def _check_absent(file: Path) -> None:
    if file.exists():
        raise FileExistsError(f"{file} exists already")


def _open_draft(draft: Path) -> int:
    """A descriptor of a new draft, locked for as long as this process lives; what a dead one has left is deleted.

    Raises FileExistsError, BlockingIOError.
    """
    with suppress(FileNotFoundError):
        leftover = os.open(draft, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.unlink()
        finally:
            os.close(leftover)
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Before the lock another process may have taken it for a leftover.
        if not os.fstat(descriptor).st_nlink:
            raise FileExistsError(draft)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
