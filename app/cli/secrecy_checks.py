"""Checks that the secrets of the service stay with it: memory, environment, files, the database and its server."""

import asyncio
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from app.cli.checks import Check, Status, usable_settings
from app.secrecy import is_closed
from app.settings_sources import SECRET_VARIABLES, SETTINGS_FILE

_SHOWN_PATHS = 3
_ADDRESSES = ("CONVENER_DATABASE_URL", "CONVENER_DATABASE_DIRECT_URL")


def process_memory() -> Iterable[Check]:
    """Yield a check that programs with secrets, of which this is one, are closed to others of their user."""
    if is_closed():
        detail = "programs that hold secrets are closed to other processes of their user, and dump no core"
        yield Check(name="memory", status=Status.OK, detail=detail)
    else:
        detail = "other processes of the same user can read the memory of the API, the loops and commands"
        remedy = "run it on Linux, or give the workers a user of their own"
        yield Check(name="memory", status=Status.WARNING, detail=detail, remedy=remedy)


def environment() -> Iterable[Check]:
    """Yield a check that no secret stands in the environment of whoever asks."""
    names = sorted(name for name in SECRET_VARIABLES & os.environ.keys() if _holds_secret(name))
    names += [name for name in ("CONVENER_KEY", "PGPASSWORD") if os.environ.get(name)]
    if names:
        detail = f"secrets in the environment, which every process of this user can read: {', '.join(names)}"
        file = "PGPASSFILE" if names[0] == "PGPASSWORD" else f"{names[0]}_FILE"
        remedy = f"put each into a file for its owner alone, and name that: {file}=/etc/convener/secret"
        yield Check(name="environment", status=Status.WARNING, detail=detail, remedy=remedy)
    else:
        yield Check(name="environment", status=Status.OK, detail="no secret stands in the environment")


def _holds_secret(name: str) -> bool:
    """Whether a variable of a secret holds one: the name of a file is none, nor an address without its password."""
    if name in _ADDRESSES:
        try:
            parts = urlsplit(os.environ[name])
        except ValueError:
            return True
        return parts.password is not None or "password" in parts.query
    return not name.endswith("_FILE")


def private_files() -> Iterable[Check]:
    """Yield a check that nobody else can read keys, passwords and logs of this machine."""
    settings = usable_settings()
    if settings is None:  # `network` says why
        return
    state, named = settings.state_directory, os.environ.get(SETTINGS_FILE)
    paths = [*_kept_secrets(state), *([Path(named)] if named else []), *filter(None, [settings.tls_key])]
    open_paths = [str(path) for path in paths if _is_open(path)]
    if open_paths:
        shown = ", ".join(open_paths[:_SHOWN_PATHS]) + (" and others" if len(open_paths) > _SHOWN_PATHS else "")
        remedy = f"chmod go= {' '.join(open_paths[:_SHOWN_PATHS])}; `convener up` does so for its own at each start"
        yield Check(name="files", status=Status.FAILED, detail=f"others can read {shown}", remedy=remedy)
    elif paths:
        detail = f"keys, passwords and logs in {state} can be read by their owner only"
        yield Check(name="files", status=Status.OK, detail=detail)


def database_role() -> Iterable[Check]:
    """Yield a check that the role of the service owns its database and has no rights beyond."""
    from app.terminal.databases import bundled_url

    settings = usable_settings()
    if settings is None or not (settings.database_url or (settings.state_directory / "postgres").is_dir()):
        return
    url = settings.session_url or bundled_url()
    if url is None:
        return
    from app.db.rights import REMEDY

    try:
        rights = asyncio.run(_rights(url))
    except Exception as error:  # whatever the driver raises: a check never fails the others
        detail = f"cannot be looked at: {str(error).strip() or type(error).__name__}"
        yield Check(name="database role", status=Status.WARNING, detail=detail, remedy="start the database, and repeat")
        return
    if rights:
        detail = f"has more rights than it needs: {', '.join(rights)}"
        yield Check(name="database role", status=Status.WARNING, detail=detail, remedy=REMEDY)
    else:
        yield Check(name="database role", status=Status.OK, detail="owns its database, and has no rights beyond")


def bundled_server() -> Iterable[Check]:
    """Yield a check of what the bundled PostgreSQL could reach, should it be taken over."""
    settings = usable_settings()
    if settings is None or settings.database_url is not None:
        return
    directory = settings.state_directory / "postgres"
    if not directory.is_dir():
        return
    from app.postgres.accounts import CONFINEMENT_REMEDY, usable_account
    from app.postgres.binaries import find_binaries
    from app.postgres.errors import EmbeddedError

    try:
        binaries = find_binaries(settings.postgres_bin)
        account = usable_account(directory.resolve(), binaries)
    except (EmbeddedError, OSError) as error:
        yield Check(name="bundled server", status=Status.FAILED, detail=str(error), remedy="see above")
        return
    status, remedy = (Status.OK, "") if account.is_confined else (Status.WARNING, CONFINEMENT_REMEDY)
    yield Check(name="bundled server", status=status, detail=account.describe(), remedy=remedy)


# In the order in which they are shown.
SECRECY_CHECKS: Sequence[Callable[[], Iterable[Check]]] = (
    process_memory,
    environment,
    private_files,
    database_role,
    bundled_server,
)


async def _rights(url: str) -> list[str]:
    from app.db.database import Database
    from app.db.rights import excess_rights

    database = Database(url)
    database.outage.is_logged = False  # the check itself tells of it
    try:
        async with database.transaction() as connection:
            return await excess_rights(connection)
    finally:
        await database.close()


def _kept_secrets(state: Path) -> list[Path]:
    """Return the state directory, and keys, passwords and logs in it; PostgreSQL closes its own data."""
    kept = (state, *state.glob("*.key"), *state.glob("logs"), *state.glob("logs/**/*"), state / "postgres" / "password")
    return [path for path in kept if path.exists()]


def _is_open(path: Path) -> bool:
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO))
    except OSError:  # it is gone, or closed to us as well
        return False
