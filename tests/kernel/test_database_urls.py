"""URLs of PostgreSQL that cannot be read are refused in words that show nothing of them."""

import pytest
from asyncpg import connect_utils

from app.kernel.database_urls import check_database_url, server_urls
from app.settings import Settings
from app.settings_sources import SettingsError


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:se#cret@host/db",
        "postgresql://user:se/cret@host/db",
        "postgresql://user:se?cret@host/db",
        "postgresql://user:12/cret@host/db",
        "postgresql://user:12#cret@host/db",
        "postgresql://user:secret@host:99999/db",
        "postgresql://user:secret@host:secret/db",
        "postgresql://user:secret@[::1/db",
        "postgresql://user:secret@.../db",
        "postgresql://user:secret@a..b:5432/db",
        f"postgresql://user:secret@{'a' * 70}/db",
        "postgresql://user:secret@one,,two/db",
        "postgresql://user:secret@one,/db",
        "postgresql://user:secret@/db?host=one,,two",
        "postgresql://user:secret@/db?host=one,two&port=1,2,3",
        "postgresql://user:secret@/db?host=one,two&port=1,x",
        "mysql+psycopg://user:secret@host/db",
        "postgresql:user:secret@host/db",
    ],
)
def test_what_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({"CONVENER_DATABASE_URL": url})
    message = str(refused.value)
    assert "CONVENER_DATABASE_URL" in message
    assert "postgresql://" in message or "CONVENER_DATABASE_PASSWORD" in message
    assert "cret" not in message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user@host/db",
        "postgres://user:12345@host:5432/db",
        "postgresql://user:a%23b%2F%40@[::1]:5432/db?sslmode=require",
        "postgresql+asyncpg://user:x@one:5432,two:5433/db?target_session_attrs=primary",
        "postgresql://user:x@/db?host=/var/run/postgresql&port=5433",
        "postgresql://user:x@%2Fvar%2Frun/db",
        f"postgresql://user@%2Fvar%2Frun%2F{'a' * 80}/db",
        "postgresql://user@realm:x@host/db",
        "postgresql://",
    ],
)
def test_what_the_driver_takes_is_taken(url: str) -> None:
    check_database_url(url)


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("postgresql://u:x@one:1,two:2/db", ["one:1", "two:2"]),
        ("postgresql://u:x@one,two/db?sslmode=require", ["one:5432", "two:5432"]),
        ("postgresql://u:x@/db?host=one,two&port=1,2", ["one:1", "two:2"]),
        ("postgresql://u:x@/db?host=one,two&port=7", ["one:7", "two:7"]),
        ("postgresql://u:x@/db?host=one,two", ["one:5432", "two:5432"]),
        ("postgresql:///db?user=u&password=x&host=one:1,two:2&sslmode=require", ["one:1", "two:2"]),
        ("postgresql://u:x@[::1]:1,two:2/db", ["::1:1", "two:2"]),
        ("postgresql://u:x@/db?host=%2Frun,two&port=1,2", ["/run/.s.PGSQL.1", "two:2"]),
        ("postgresql://u:x@%2Frun,two:2/db", ["/run/.s.PGSQL.5432", "two:2"]),
    ],
)
def test_of_several_servers_each_is_tried_by_itself_and_only_for_writes(
    url: str, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the query were one address to us, so that any of them was taken, a standby too."""
    monkeypatch.delenv("PGPORT", raising=False)
    check_database_url(url)
    servers = [_as_the_driver_reads(server) for server in server_urls(url)]
    assert servers == [(place, "u", "x", "db", "read-write") for place in places]
    chosen = f"{url}{'&' if '?' in url else '?'}target_session_attrs=any"
    assert {_as_the_driver_reads(server)[-1] for server in server_urls(chosen)} == {"any"}


def test_one_server_is_taken_as_it_is() -> None:
    for url in ("postgresql://u@one/db", "postgresql://u@/db?host=one", "postgresql:///db", "postgresql://"):
        assert server_urls(url) == [url]


def _as_the_driver_reads(url: str) -> tuple[str, str, str, str, str]:
    names = (
        "host port user password passfile database service servicefile server_settings target_session_attrs krbsrvname"
    )
    nothing = dict.fromkeys([*names.split(), "gsslib"])
    parse = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]  # no public way leads there
    ((address,), read) = parse(dsn=url, ssl=False, direct_tls=False, **nothing)
    place = address if isinstance(address, str) else ":".join(map(str, address))
    return place, read.user, read.password, read.database, read.target_session_attrs.value
