"""Preparation of a database for `convener up`: its schema, the keys of this machine, and the pool's configuration.

It is a process of its own, because the libraries that it needs would take half of the memory of `up` for as long as
that runs. It writes a JSON object a line to stdout: what to say meanwhile, and in the end the answer or the failure.
"""

import argparse
import asyncio
import json
import signal
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

from app.admin.errors import ConfigRefused
from app.admin.rules.config import ConfigAction, Document
from app.admin.rules.keys import read_key
from app.admin.service import audit, config, sessions
from app.admin.service.access import issue_key
from app.admin.service.config import ChangeRequest
from app.admin.service.keyring import Keyring
from app.admin.store.config import Version
from app.admin.store.keys import NewKey
from app.cli.pool_options import PoolInForce, PoolOptions
from app.cli.stack import KEY_FILES, START_ERRORS, StackError, start_failure
from app.db.database import Database
from app.db.rights import REMEDY, excess_rights
from app.kernel.access import Role
from app.kernel.modes import Mode
from app.llm.service import grant  # noqa: F401 - registers the lock that a change of the configuration takes first
from app.logs import start_logging
from app.secrecy import write_private
from app.settings import Settings, take_settings
from app.terminal.databases import as_failures, author
from app.terminal.failures import ExitCode, Failure

# To be expected.
PREPARATION_ERRORS = (*START_ERRORS, SQLAlchemyError, asyncpg.PostgresError)


async def prepare(
    settings: Settings, options: PoolOptions, say: Callable[[str], None], *, is_alone: bool, with_link: bool
) -> dict[str, Any]:
    """Migrate, make missing keys, configure; return the roles of new keys, the pool, and a link if it was asked for.

    `is_alone` where nobody else uses the database. The link opens one session of the operator, once.
    """
    database = Database(str(settings.session_url))
    try:
        old_revision, new_revision = await audit.migrate(database, by=author("convener up"), is_alone=is_alone)
        if old_revision != new_revision:
            say(f"migrated the database from {old_revision or 'nothing'} to {new_revision}")
        async with database.transaction() as connection:
            if rights := await excess_rights(connection):
                say(f"the role of the database has more rights than it needs ({', '.join(rights)}): {REMEDY}")
        operator, new_roles = await _ensure_keys(database, settings.state_directory)
        pool = await configure(database, settings.mode or Mode.DEVELOPMENT, options, operator)
        link = None
        if with_link:
            async with database.transaction() as connection:
                link = await sessions.create_link(connection, _id_of(operator))
        return {"new_keys": sorted(new_roles), "pool": asdict(pool), "link": link}
    finally:
        await database.close()


async def configure(database: Database, initial: Mode, options: PoolOptions, key: str) -> PoolInForce:
    """Put options in force, by the holder of a key. Raises StackError."""
    try:
        version = await apply(database, initial, options, _id_of(key) or "convener up")
    except ConfigRefused as error:
        remarks = "; ".join(f"{path.rpartition('.')[2]} {message}" for path, message in error.fields)
        raise StackError(f"the pool cannot be so: {remarks}") from None
    pool = version.document.worker_pool
    return PoolInForce(mode=version.mode, min_workers=pool.min_workers, max_workers=pool.max_workers)


async def apply(database: Database, initial: Mode, options: PoolOptions, by: str) -> Version:
    """Put options in force that differ; return the version in force afterwards. Raises ConfigRefused."""
    async with database.transaction() as connection:
        version = await config.current(connection, options.mode or initial)
        if options.mode is not None and options.mode is not version.mode:
            version = (await config.switch(connection, initial, _request(version, options, by), options.mode)).version
        # A version of its own after that of the mode, whose rules its bounds must obey.
        document = _with_bounds(version.document, options)
        if document == version.document:
            return version
        request = _request(version, options, by)
        return (await config.change(connection, initial, request, ConfigAction.PATCH, document)).version


def _request(version: Version, options: PoolOptions, by: str) -> ChangeRequest:
    return ChangeRequest(expected_version=version.version, by=by, reason=options.reason)


def _with_bounds(document: Document, options: PoolOptions) -> Document:
    pool = document.worker_pool
    min_workers = pool.min_workers if options.min_workers is None else options.min_workers
    max_workers = pool.max_workers if options.max_workers is None else options.max_workers
    return replace(document, worker_pool=replace(pool, min_workers=min_workers, max_workers=max_workers))


async def _ensure_keys(database: Database, state: Path) -> tuple[str, set[Role]]:
    """Make the keys of this machine that are missing; return the operator's, and the roles of new ones."""
    keys: dict[Role, str] = {}
    new_roles: set[Role] = set()
    keyring = Keyring(database)
    for role, name in KEY_FILES.items():
        file = state / name
        text = file.read_text().strip() if file.exists() else ""
        # A file may be of another database than this one; its key is then replaced.
        if not text or not await _is_known(keyring, text):
            async with database.transaction() as connection:
                new_key = NewKey(role=role, label=f"{role} of this machine")
                text = (await issue_key(connection, new_key, author("convener up"), "for this machine")).text
            write_private(file, f"{text}\n")
            new_roles.add(role)
        keys[role] = text
    return keys[Role.OPERATOR], new_roles


async def _is_known(keyring: Keyring, text: str) -> bool:
    try:
        await keyring.recognise(text)
    except Exception:
        return False
    return True


def _id_of(key: str) -> str:
    return (read_key(key) or ("", ""))[0]


async def _stoppable(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The result of the work, which SIGTERM cancels, so that what is under way ends in order."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _tell(line: Mapping[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    """Entry point of `python -m app.cli.preparation`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("options", type=json.loads, help="fields of PoolOptions, as JSON")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--link", action="store_true")
    arguments = parser.parse_args()
    try:
        settings = take_settings()
        start_logging(settings.model_copy(update={"log_file": None}))
        mode = arguments.options["mode"]
        options = PoolOptions(**{**arguments.options, "mode": mode and Mode(mode)})
        work = prepare(
            settings, options, lambda text: _tell({"say": text}), is_alone=arguments.alone, with_link=arguments.link
        )
        with as_failures():
            answer = asyncio.run(_stoppable(work))
        _tell({"answer": answer})
    except asyncio.CancelledError:
        raise SystemExit(ExitCode.INTERRUPTED) from None
    except (*PREPARATION_ERRORS, Failure) as error:
        failure = error if isinstance(error, Failure) else start_failure(error)
        fields = {name: getattr(failure, name) for name in ("message", "code", "details", "hint")}
        _tell({"failure": fields})


if __name__ == "__main__":
    main()
