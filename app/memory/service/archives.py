"""Files of dumps and their manifests: written as a whole, readable by their owner only, checked by SHA-256."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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


def write_manifest(manifest: Manifest, draft: Path) -> None:
    """Write the manifest of a dump into a draft."""
    draft.write_text(json.dumps(asdict(manifest), indent=2) + "\n")


@contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Provide an empty draft to write into; at the end it is durable and gets its name, after an error it is deleted.

    Raises FileExistsError rather than replace a file, or write one that somebody else is writing.
    """
    _check_absent(file)
    draft = file.with_name(f".{file.name}.partial")
    with ExitStack() as stack:
        try:
            # Beside the draft, as no other process may read or write what is locked where the lock is mandatory (CIFS).
            if stack.enter_context(_lock(file.with_name(f".{file.name}.lock"))):
                # Of a process that was killed: whoever writes it has the lock.
                draft.unlink(missing_ok=True)
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _FILE_MODE))
        except FileExistsError:
            raise FileExistsError(f"{file} is being written by another process") from None
        try:
            yield draft
            # Content before name before directory: after a crash the file is there as a whole, or not at all.
            _sync(draft)
            _check_absent(file)
            draft.rename(file)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    _sync(file.parent)


def remove_abandoned(directory: Path) -> Iterator[Path]:
    """Delete the drafts in a directory that nobody writes any more, as after kill -9, and yield each."""
    for draft in directory.glob(".*.partial"):
        lock = draft.with_suffix(".lock")
        # A draft of ours has a lock beside it; one without is somebody else's.
        with suppress(OSError):
            if lock.exists():
                with _lock(lock) as is_locked:
                    if is_locked:
                        draft.unlink()
                        yield draft


def _check_absent(file: Path) -> None:
    if file.exists():
        raise FileExistsError(f"{file} exists already")


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Keep a lock for as long as this process lives; false where the file system has none. Raises FileExistsError."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, _FILE_MODE)
    try:
        is_locked = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(path) from None
        except OSError:
            is_locked = False
        # Before the lock another process may have ended, and deleted it.
        if not os.fstat(descriptor).st_nlink:
            raise FileExistsError(path)
        try:
            yield is_locked
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


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
