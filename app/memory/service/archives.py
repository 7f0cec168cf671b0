"""A dump in a file, and its manifest beside it: written as a whole, readable by its owner only, checked by SHA-256."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

_MODE = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a dump is; kept beside it as `<file>.json`."""

    file: str
    taken_at: str
    revision: str
    server: str
    size_bytes: int
    sha256: str


def manifest_of(file: Path) -> Path:
    """Where the manifest of a dump is."""
    return file.with_name(f"{file.name}.json")


def read_manifest(file: Path) -> Manifest | None:
    """The manifest beside a dump, None where there is none. Raises ValueError where it cannot be read."""
    try:
        return Manifest(**json.loads(manifest_of(file).read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{manifest_of(file)} is no manifest: {error}") from None


def write_manifest(manifest: Manifest, file: Path) -> None:
    """Put the manifest beside a dump."""
    with appearing(manifest_of(file)) as draft:
        draft.write_text(json.dumps(asdict(manifest), indent=2) + "\n")


@contextmanager
def appearing(file: Path) -> Iterator[Path]:
    """An empty draft to write into; in the end it is on disk and takes the name, after an error it is gone.

    Raises FileExistsError rather than to replace anything.
    """
    if file.exists():
        raise FileExistsError(f"{file} exists already")
    draft = file.with_name(f".{file.name}.{os.getpid()}.partial")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _MODE))
    try:
        yield draft
        _make_durable(draft)
        draft.rename(file)
    finally:
        draft.unlink(missing_ok=True)
    _make_durable(file.parent)


def checksum(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
