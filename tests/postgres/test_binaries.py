"""Finding PostgreSQL: the configured directory is believed or refused, and a refusal says what to do."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from app.postgres import binaries as module
from app.postgres.binaries import (
    DUMPING,
    SERVER,
    Binaries,
    find_binaries,
    find_version,
    inspect_binaries,
    newest_binaries,
)
from app.postgres.errors import BinariesMissing


def fake_installation(directory: Path, answer: str, names: Sequence[str] = SERVER) -> Path:
    directory.mkdir(parents=True)
    for name in names:
        program = directory / name
        program.write_text(f"#!/bin/sh\necho '{answer}'\n")
        program.chmod(0o755)
    return directory


def test_finds_a_supported_version_and_its_programs(binaries: Binaries) -> None:
    assert binaries.version >= 15
    assert binaries.program("pg_dump").is_file()
    with pytest.raises(BinariesMissing, match="pg_nonsense"):
        binaries.program("pg_nonsense")


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("postgres (PostgreSQL) 18.6", 18),
        ("postgres (PostgreSQL) 19beta1", 19),
        ("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)", 15),
    ],
)
def test_reads_every_form_of_version(tmp_path: Path, answer: str, version: int) -> None:
    directory = fake_installation(tmp_path / "bin", answer)
    assert inspect_binaries(directory) == Binaries(directory=directory, version=version)


def test_a_configured_directory_is_never_passed_over(tmp_path: Path) -> None:
    old = fake_installation(tmp_path / "old", "postgres (PostgreSQL) 14.9")
    with pytest.raises(BinariesMissing, match=r"PostgreSQL 14, older than 15.*CONVENER_POSTGRES_BIN"):
        find_binaries(str(old))
    with pytest.raises(BinariesMissing, match="has no postgres"):
        find_binaries(str(tmp_path / "absent"))


def test_a_broken_program_is_refused(tmp_path: Path) -> None:
    directory = fake_installation(tmp_path / "bin", "")
    with pytest.raises(BinariesMissing, match="does not run"):
        inspect_binaries(directory)


def test_takes_the_newest_installation_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_installation(tmp_path / "9.6" / "bin", "postgres (PostgreSQL) 9.6.2")
    fake_installation(tmp_path / "16" / "bin", "postgres (PostgreSQL) 16.1")
    pattern = str((tmp_path / "*" / "bin").relative_to("/"))
    monkeypatch.setattr(module, "SYSTEM_PATTERNS", (pattern,))
    monkeypatch.setattr(module, "_bundled_directories", lambda: iter(()))
    assert find_binaries().version == 16


def test_says_what_to_do_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_bundled_directories", lambda: iter(()))
    monkeypatch.setattr(module, "_system_directories", lambda: iter(()))
    with pytest.raises(BinariesMissing, match="pip install"):
        find_binaries()


def test_dumps_take_programs_of_exactly_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in (16, 18):
        # A client's installation has no server.
        fake_installation(tmp_path / str(version) / "bin", f"pg_dump (PostgreSQL) {version}.1", DUMPING)
    monkeypatch.setattr(module, "SYSTEM_PATTERNS", (str((tmp_path / "*" / "bin").relative_to("/")),))
    monkeypatch.setattr(module, "_bundled_directories", lambda: iter(()))
    assert find_version(16).directory == tmp_path / "16" / "bin"
    assert newest_binaries(DUMPING).version == 18
    with pytest.raises(BinariesMissing, match=r"PostgreSQL 17; there is 18 in .*Install postgresql-client-17"):
        find_version(17)
    with pytest.raises(BinariesMissing, match="Install postgresql-18"):
        find_version(18, SERVER)
    with pytest.raises(BinariesMissing, match=r"PostgreSQL 18; there is 16 in"):
        find_version(18, configured_directory=str(tmp_path / "16" / "bin"))
