"""Arguments of the programs of PostgreSQL, which must never hold a password, and their errors."""

from pathlib import Path

import pytest

from app.memory.service.dumps import Dumps, connection_arguments
from app.postgres.binaries import Binaries
from app.postgres.errors import DumpFailed


@pytest.mark.parametrize(
    ("url", "plain", "password"),
    [
        ("postgresql://me:secret@host:5433/db", "postgresql://me@host:5433/db", "secret"),
        ("postgresql://me:s%40c%2Fret%3A@host/db", "postgresql://me@host/db", "s@c/ret:"),
        ("postgresql://me@host/db", "postgresql://me@host/db", None),
        ("postgresql://host/db", "postgresql://host/db", None),
        ("postgresql:///db?host=/run/pg&port=1", "postgresql:///db?host=%2Frun%2Fpg&port=1", None),
        (
            "postgresql://m%40e:secret@a:1,b:2/db?sslmode=require&x=y",
            "postgresql://m%40e@a:1,b:2/db?sslmode=require",
            "secret",
        ),
        ("postgresql://me@host/db?password=secret&user=you", "postgresql://me@host/db?user=you", "secret"),
    ],
)
def test_the_password_goes_by_environment_alone(url: str, plain: str, password: str | None) -> None:
    arguments, environment = connection_arguments(url)
    assert arguments == ["--no-password", f"--dbname={plain}"]
    assert environment == ({"PGPASSWORD": password} if password else {})
    assert "secret" not in "".join(arguments)


def test_nothing_secret_is_shown_in_the_list_of_processes(binaries: Binaries, tmp_path: Path) -> None:
    """A program that stands in for pg_dump writes down what it was given."""
    for name in ("postgres", "initdb", "pg_dump"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$@" > "$0.arguments"\necho "$PGPASSWORD" > "$0.password"\n')
        (tmp_path / name).chmod(0o755)
    dumps = Dumps(binaries=Binaries(directory=tmp_path, version=binaries.version))
    dumps.dump("postgresql://me:hunter2@host/db", tmp_path / "file", lambda _: None)
    assert "hunter2" not in (tmp_path / "pg_dump.arguments").read_text()
    assert (tmp_path / "pg_dump.password").read_text() == "hunter2\n"


def test_a_failure_says_why(binaries: Binaries, tmp_path: Path) -> None:
    with pytest.raises(DumpFailed, match=r"pg_dump: .*connect"):
        Dumps(binaries=binaries).dump("postgresql://me:secret@127.0.0.1:1/db", tmp_path / "file", lambda _: None)
    (tmp_path / "file").write_text("x" * 100)
    with pytest.raises(DumpFailed, match=r"pg_restore: .*archive"):
        Dumps(binaries=binaries).contents(tmp_path / "file")
