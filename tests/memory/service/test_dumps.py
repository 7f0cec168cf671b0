"""Arguments of the programs of PostgreSQL, which must never hold a password, and their errors."""

from pathlib import Path

import asyncpg
import pytest

from app.memory.service.dumps import Dumps, connection_arguments
from app.postgres.binaries import Binaries
from app.postgres.errors import DumpFailed


@pytest.mark.parametrize(
    ("url", "plain", "password"),
    [
        ("postgresql://me:secret@host:5433/db", "postgresql://me@host:5433/db", "secret"),
        ("postgresql://me:s%40c%2Fret%3A@host/db", "postgresql://me@host/db", "s@c/ret:"),
        ("postgresql://me@host/db", "postgresql://me@host/db", ""),
        ("postgresql://host/db", "postgresql://host/db", ""),
        ("postgresql:///db?host=/run/pg&port=1", "postgresql:///db?host=%2Frun%2Fpg&port=1", ""),
        (
            "postgresql://m%40e:secret@a:1,b:2/db?sslmode=require&x=y",
            "postgresql://m%40e@a:1,b:2/db?target_session_attrs=read-write&sslmode=require",
            "secret",
        ),
        (
            "postgresql:///db?host=a,b&target_session_attrs=any",
            "postgresql:///db?target_session_attrs=read-write&host=a%2Cb&target_session_attrs=any",
            "",
        ),
        ("postgresql://me@host/db?password=secret&user=you", "postgresql://me@host/db?user=you", "secret"),
    ],
)
def test_the_password_is_in_no_argument(url: str, plain: str, password: str) -> None:
    arguments, found = connection_arguments(url)
    assert arguments == ["--no-password", f"--dbname={plain}"]
    assert found == password
    assert "secret" not in "".join(arguments)


async def test_nothing_secret_is_shown_in_the_list_of_processes(
    binaries: Binaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that stands in for pg_dump writes down what it was given."""
    monkeypatch.setenv("CONVENER_DATABASE_URL", "postgresql://me:hunter2@host/db")
    monkeypatch.setenv("PGPASSWORD", "another")
    script = '#!/bin/sh\n(echo "$@"; env) > "$0.shown"\nstat -L -c %a "$PGPASSFILE" > "$0.mode"\n'
    for name in ("postgres", "initdb", "pg_dump"):
        (tmp_path / name).write_text(script + 'cat "$PGPASSFILE" > "$0.password"\n')
        (tmp_path / name).chmod(0o755)
    dumps = Dumps(binaries=Binaries(directory=tmp_path, version=binaries.version))
    await dumps.dump("postgresql://me:hunter%3A%5C2@host/db", tmp_path / "file", lambda _: None)
    assert "hunter" not in (tmp_path / "pg_dump.shown").read_text()
    assert "PGPASSWORD" not in (tmp_path / "pg_dump.shown").read_text()
    assert (tmp_path / "pg_dump.password").read_text() == "*:*:*:*:hunter\\:\\\\2\n"
    assert (tmp_path / "pg_dump.mode").read_text() == "600\n", "libpq passes over a file that others could read"


async def test_variables_that_the_driver_does_not_follow_lead_to_no_other_server(
    binaries: Binaries, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dump is of the database that the service works on, as that stores it."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE words (word text); INSERT INTO words VALUES ('\N{GREEK SMALL LETTER PI}')")
    await connection.close()
    for name, value in {
        "PGSERVICE": "of somebody else",
        "PGHOSTADDR": "127.0.0.254",
        "PGOPTIONS": "-c no.such=",
        "PGCLIENTENCODING": "LATIN1",
    }.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            await Dumps(binaries=binaries).dump(database_url, tmp_path / name, lambda _: None)
        words = Dumps(binaries=binaries)._run("pg_restore", ["--table=words", "--file=-", str(tmp_path / name)])
        assert "\N{GREEK SMALL LETTER PI}" in words


async def test_a_failure_says_why(binaries: Binaries, tmp_path: Path) -> None:
    with pytest.raises(DumpFailed, match=r"pg_dump: .*connect"):
        await Dumps(binaries=binaries).dump("postgresql://me:secret@127.0.0.1:1/db", tmp_path / "file", lambda _: None)
    (tmp_path / "file").write_text("x" * 100)
    with pytest.raises(DumpFailed, match=r"pg_restore: .*archive"):
        Dumps(binaries=binaries).contents(tmp_path / "file")


def test_a_program_that_says_nothing_had_perhaps_no_room_to(tmp_path: Path) -> None:
    """It says it in a temporary file, and a backup is not damaged because that cannot be written."""
    (tmp_path / "pg_restore").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "pg_restore").chmod(0o755)
    with pytest.raises(DumpFailed, match="TMPDIR"):
        Dumps(binaries=Binaries(directory=tmp_path, version=18)).contents(tmp_path / "file")
