"""Errors that are to be expected: a sentence, what to do, and the documented exit code; JSON where it was asked for."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from asyncpg import InvalidPasswordError, ReadOnlySQLTransactionError, TooManyConnectionsError
from typer.main import get_command

from app.cli.preparation import PREPARATION_ERRORS
from app.cli.stack import StackError, start_failure
from app.db.database import Database
from app.http.tls import UnusableCertificate
from app.kernel.errors import DatabaseUnavailable
from app.settings_sources import SettingsError
from app.terminal.databases import check_database
from app.terminal.failures import ExitCode, Failure
from app.workers.provisioners.environment import HandlersRefused
from tests.conftest import named
from tests.support.command_line import COMMAND, CommandLine
from tests.support.ports import free_port
from tests.support.sql import execute


def _nobody() -> str:
    return f"postgresql://a:b@127.0.0.1:{free_port()}/x"


def _ended(command: str, state: Path, variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    others = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
    environment = {**others, "CONVENER_STATE_DIRECTORY": str(state), "COLUMNS": "200", **variables}
    words = [sys.executable, "-m", "app.cli", *command.split()]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "variables", "code", "words"),
    [
        ("up --port 0", {"CONVENER_PORT": "abc"}, 2, "CONVENER_PORT"),
        ("demo --state /proc/nowhere", {}, 1, "cannot use /proc/nowhere"),
        ("loops", {"CONVENER_DATABASE_URL": _nobody(), "CONVENER_STATE_DIRECTORY": "/proc/nowhere"}, 1, "cannot use"),
        ("worker --bogus", {}, 2, "error: unrecognized arguments: --bogus"),
    ],
)
def test_what_keeps_a_program_from_starting(
    tmp_path: Path, command: str, variables: dict[str, str], code: int, words: str
) -> None:
    done = _ended(command, tmp_path, variables)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 6


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path: Path, database_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = {"CONVENER_PORT": str(taken.getsockname()[1])}
        done = _ended("api", tmp_path, {"CONVENER_DATABASE_URL": database_url} | port)
    assert (done.returncode, "cannot listen on 127.0.0.1:" in done.stderr) == (1, True), done.stderr
    assert ("CONVENER_PORT" in done.stderr, "Traceback" in done.stderr) == (True, False)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "/nowhere"), 1, "cannot use /nowhere"),
        (OSError(28, "No space left on device"), 1, "no room"),
        (OSError(28, "No space left on device", "/full"), 1, "no room for /full"),
        (ConnectionRefusedError(111, "Connection refused"), 3, "the database cannot be reached"),
        (DatabaseUnavailable(), 3, "the database cannot be reached"),
        (InvalidPasswordError("password authentication failed"), 1, "the database refused"),
        (TooManyConnectionsError("too many connections for role"), 3, "no connection left"),
        (ReadOnlySQLTransactionError("cannot execute CREATE TABLE"), 1, "the database takes no writes"),
        (SettingsError("CONVENER_PORT: no number"), 2, "CONVENER_PORT"),
        (StackError("port 1 is taken; choose another"), 1, "choose another"),
        (UnusableCertificate("no certificate; make one"), 2, "make one"),
        (HandlersRefused("the workers cannot use the handlers ranking"), 1, "cannot use the handlers"),
    ],
)
def test_every_error_of_a_start_has_its_code(error: Exception, code: int, words: str) -> None:
    assert isinstance(error, PREPARATION_ERRORS)
    failure = start_failure(error)
    assert (failure.code, words in failure.message) == (code, True), failure.message


async def test_programs_start_without_a_database_but_not_with_one_that_refuses(server_url: str, empty_url: str) -> None:
    await check_database(_nobody())  # it is waited for
    for url, hint in ((empty_url, "convener db migrate"), (named(server_url, "nowhere"), "CONVENER_DATABASE_URL")):
        with pytest.raises(Failure) as refused:
            await check_database(url)
        assert refused.value.code is ExitCode.REFUSED
        assert hint in str(refused.value.hint)


@pytest.mark.parametrize("option", ["sslmode=bogus", "connect_timeout=3"])
async def test_an_address_with_an_option_that_means_nothing_is_not_waited_for(server_url: str, option: str) -> None:
    with pytest.raises(Failure, match="the address of the database makes no sense") as refused:
        await check_database(f"{server_url}?{option}")
    assert (refused.value.code, option.partition("=")[0] in refused.value.details[0]) == (ExitCode.USAGE, True)


@pytest.mark.parametrize(
    ("revision", "hint"), [("2026_12_02_closed_holds", "convener db migrate"), ("next_year", "start that one again")]
)
async def test_programs_do_not_start_on_a_schema_that_was_not_made_for_them(
    own_database: Database, revision: str, hint: str
) -> None:
    await execute(own_database, "UPDATE alembic_version SET version_num = $1", revision)
    if revision == "next_year":
        await check_database(own_database.url)
        await execute(own_database, "DELETE FROM served_revisions")
    with pytest.raises(Failure) as refused:
        await check_database(own_database.url)
    assert refused.value.code is ExitCode.REFUSED
    assert f"the schema is at {revision}" in refused.value.message
    assert hint in str(refused.value.hint)


async def test_a_database_that_lets_nobody_in_is_an_outage(server_url: str) -> None:
    database = Database(named(server_url, "nowhere"))
    with pytest.raises(DatabaseUnavailable):
        async with database.transaction():
            pass
    assert database.outage.is_on
    await database.close()


def _commands(group: Any, *path: str) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from _commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


_COMMANDS = dict(_commands(get_command(COMMAND)))
# Words that the parsers of commands want.
_ID = str(uuid4())
_WORDS = {
    "agents get": "ranking",
    "alerts ack": "1",
    "alerts get": "1",
    "checkpoints export": "1 x",
    "checkpoints get": "1",
    "checkpoints verify": "1",
    "config rollback": "1",
    "config set": "worker_pool.max_workers=9",
    "context get": "x y",
    "context history": "x y",
    "context ls": "x",
    "context put": "x y 1",
    "context rm": "x y",
    "dead-letters get": _ID,
    "dead-letters purge": "--goal x --yes",
    "dead-letters requeue": _ID,
    "degradation set": "1",
    "goals create": "--objective y",
    "goals extend": "x --max-iterations 9",
    "goals get": "x",
    "goals pause": "x",
    "goals report": "x --iteration 1 --quality 1",
    "goals resume": "x",
    "goals stop": "x",
    "key create": "reader --label x",
    "key enrol": "--label x",
    "key revoke": "x",
    "key rotate": "x",
    "llm budgets rm": "agent ranking",
    "llm budgets set": "agent ranking token_budget=9",
    "llm models add": "x",
    "llm models get": "x",
    "llm models set": "x burst=2",
    "llm reset": "x",
    "metrics push": "x 1",
    "profiles add": "x --url http://127.0.0.1:9",
    "profiles rm": "x",
    "queues pause": "ranking",
    "queues resume": "ranking",
    "queues weight": "ranking 1",
    "tasks cancel": _ID,
    "tasks change": f"{_ID} --priority low",
    "tasks get": _ID,
    "tasks logs": _ID,
    "tasks requeue": _ID,
    "tasks submit": "--agent ranking",
    "weights override": "ranking=1 --for 60s",
    "weights set": "ranking=1",
    "why": _ID,
    "workers drain": "x",
    "workers evict": "x",
    "workers get": "x",
    "workers restart": "x",
    "workers stop": "x",
}


def _words(path: str) -> list[str]:
    return [*path.split(), *_WORDS.get(path.replace("keys", "key"), "").split()]


@pytest.mark.parametrize("path", [path for path in _COMMANDS if path != "worker"])
def test_every_command_tells_programs_of_wrong_usage(offline: CommandLine, path: str) -> None:
    done = offline.run(*path.split(), "--bogus", "-o", "json")
    assert (done.code, done.out) == (2, "")
    failure = json.loads(done.err)
    assert failure["exit_code"] == 2
    assert "No such option" in failure["error"]
    assert "--help" in failure["hint"]


def _asks_the_service(path: str) -> bool:
    names = {each.name for each in _COMMANDS[path].params}
    # What is away is a finding of doctor, and tests of its own say which.
    return names >= {"url", "fmt"} and not path.startswith("db ") and path != "doctor"


@pytest.mark.parametrize("path", [path for path in _COMMANDS if _asks_the_service(path)])
def test_every_command_tells_programs_of_a_service_that_is_away(offline: CommandLine, path: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for code, key in ((4, None), (3, "cvn_a_b")):
        done = offline.run(*_words(path), "-o", "json", CONVENER_URL=url, CONVENER_KEY=key)
        assert done.code == code, done
        assert json.loads(done.err)["exit_code"] == code


@pytest.mark.parametrize(("file", "words"), [("/dev/full", "there is no room"), ("/proc/nowhere/x", "cannot use")])
def test_a_file_that_cannot_be_written(offline: CommandLine, file: str, words: str) -> None:
    done = offline.run("openapi", "--write", file)
    assert (done.code, words in done.err, "What to do" in done.err) == (1, True, True)


def test_a_database_without_a_schema_is_no_success(empty_url: str) -> None:
    for more in ((), ("-o", "json")):
        done = CommandLine(environment={"CONVENER_DATABASE_URL": empty_url}).run("db", "status", *more)
        assert done.code == 1


@pytest.mark.parametrize("words", [("-o", "json"), ("--output", "json"), ("--output=json",)])
def test_errors_are_json_where_the_answer_would_be(words: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = CommandLine(environment={"CONVENER_URL": url, "CONVENER_KEY": "cvn_a_b"}).run("tasks", "ls", *words)
    assert (done.code, done.out) == (3, "")
    failure = json.loads(done.err)
    assert failure["exit_code"] == 3
    assert url in failure["error"]
    assert failure["hint"]


@pytest.mark.parametrize(
    "words",
    [
        ("metrics", "push", "speed", "nan"),
        ("goals", "report", "orbits", "--iteration", "1", "--quality", "inf"),
        ("tasks", "submit", "--agent", "generation", "--payload", '{"a": "\\ud800"}'),
        # A byte of the command line that is no UTF-8.
        ("tasks", "ls", "--goal", "\udcff"),
        ("goals", "get", "\udcff"),
    ],
)
def test_a_value_that_json_or_an_address_has_no_room_for(offline: CommandLine, words: tuple[str, ...]) -> None:
    done = offline.run(*words, CONVENER_KEY="cvn_a_b")
    assert done.code == ExitCode.USAGE
    assert "a value cannot be sent" in done.err
    assert done.out == ""


def test_a_payload_that_is_nested_too_deeply(offline: CommandLine) -> None:
    done = offline.run("tasks", "submit", "--agent", "generation", "--payload", "[" * 100_000)
    assert done.code == ExitCode.USAGE
    assert "the payload is not JSON" in done.err
