"""URLs of PostgreSQL that cannot be read are refused in words that show nothing of them."""

import pytest

from app.kernel.database_urls import check_database_url
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
