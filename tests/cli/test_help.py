"""Help is there for every command, and says what scripts need to know."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from pydantic_core import SchemaError
from typer.main import get_command

from app.cli import main
from app.cli.commands import ENTRIES, load
from app.terminal.failures import ExitCode
from tests.support.command_line import COMMAND, CommandLine, words_of


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", sorted(_commands(get_command(COMMAND))), ids=" ".join)
def test_every_command_has_help_with_examples(offline: CommandLine, path: tuple[str, ...]) -> None:
    if path == ("worker",):
        return
    done = offline.run(*path, "--help")
    assert (done.code, done.err) == (0, "")
    assert "Examples:" in done.out
    assert " ".join(("convener", *path)).replace("keys", "key") in done.out.split("Examples:")[1]


def test_no_help_loses_words_in_brackets() -> None:
    """Rich takes them for markup: `pip install 'convener[top]'` was shown without the extra."""
    group: Any = get_command(COMMAND)
    for path in _commands(group):
        command = group
        for name in path:
            command = command.get_command(None, name)
        texts = [command.help or "", *(getattr(parameter, "help", None) or "" for parameter in command.params)]
        assert not [text for text in texts if re.search(r"(?<!\\)\[[a-z]", text)], path


def test_examples_are_accepted_as_they_are_printed() -> None:
    """Those with an id had dots in its place, and who copied one was told that it is no id."""
    group: Any = get_command(COMMAND)
    count = 0
    for path in _commands(group):
        command = group
        for name in path:
            command = command.get_command(None, name)
        for line in (command.epilog or "").splitlines():
            words = words_of(line)
            if words[: len(path)] == [*path]:
                command.make_context(" ".join(path), words[len(path) :])
                count += 1
    assert count > 200


@pytest.mark.parametrize(
    "command",
    ["convener --help", "convener tasks --help", "convener simulate step", "convener tasks list", "convener-worker -h"],
)
def test_a_reader_that_has_gone_ends_a_command_as_it_ends_others(command: str) -> None:
    """It ended with 1, as after a refusal, and the worker with a trace."""
    name, *words = command.split()
    program = [sys.executable, "-m", {"convener": "app.cli", "convener-worker": "worker_agent"}[name], *words]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        # What is wrong with a command goes to stderr, which a shell may lead into the same pipe.
        errors = writing if "list" in words else subprocess.PIPE
        done = subprocess.run(program, stdout=writing, stderr=errors, text=True, timeout=60, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr or "") == (-signal.SIGPIPE, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device that stands for a full disk is Linux's")
@pytest.mark.parametrize(
    ("module", "word", "code"),
    [("app.cli", "--help", 1), ("worker_agent", "--help", 2), ("worker_agent", "--version", 2)],
)
def test_help_for_which_there_is_no_room_is_told_in_a_sentence(module: str, word: str, code: int) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", module, word],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, "there is no room" in done.stderr, "Traceback" in done.stderr) == (code, True, False)


@pytest.mark.parametrize("command", ["worker_agent", "app.cli worker", "app.cli tasks list"])
def test_a_command_without_any_standard_output_says_what_is_wrong_with_it(command: str) -> None:
    """As a shell starts it with `>&-`; a worker ended with a trace, whatever its options were."""
    program = [sys.executable, "-m", *command.split(), "--no-such-option"]
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *program]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (ExitCode.USAGE, False), done.stderr


@pytest.mark.parametrize("place", ["app.secrecy.close_process", "app.cli.commands.build"])
def test_ctrl_c_while_modules_are_loaded_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.secrecy.close_process", lambda: None)
    monkeypatch.setattr(place, interrupt)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == ExitCode.INTERRUPTED


@pytest.mark.parametrize(("cause", "code"), [("  KeyboardInterrupt: ", ExitCode.INTERRUPTED), ("no such type", None)])
def test_so_does_one_that_pydantic_has_made_an_error_of(
    monkeypatch: pytest.MonkeyPatch, cause: str, code: ExitCode | None
) -> None:
    def interrupt() -> None:
        raise SchemaError(f'Error building "model" validator:\n{cause}')

    monkeypatch.setattr("app.secrecy.close_process", lambda: None)
    monkeypatch.setattr("app.cli.commands.build", interrupt)
    with pytest.raises(SchemaError if code is None else SystemExit) as end:
        main()
    assert code is None or (isinstance(end.value, SystemExit) and end.value.code == code)


def test_the_exit_codes_are_documented(offline: CommandLine) -> None:
    done = offline.run("--help")
    listed = done.out.split("Exit codes:")[1]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == [str(code.value) for code in ExitCode]
    assert all(name in done.out for name in ("up", "demo", "status", "tasks", "workers", "key", "db", "openapi"))


@pytest.mark.parametrize("name", ENTRIES)
def test_commands_are_listed_as_they_are(name: str) -> None:
    command, entry = load(name), ENTRIES[name]
    assert command.name == name
    assert " ".join(command.help.split()).startswith(entry.summary) or hasattr(command, "list_commands")


def test_the_list_of_commands_imports_none_of_them() -> None:
    """A press of TAB, and --help, wait for what is imported."""
    heavy = "{'httpx', 'pydantic', 'sqlalchemy', 'fastapi'}"
    show = "from app.cli.commands import build; build()(['--help'], standalone_mode=False)"
    script = f"import atexit, sys; atexit.register(lambda: sys.stderr.write(str({heavy} & {{*sys.modules}}))); {show}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Start here" in done.stdout
    assert done.stderr == "set()"


@pytest.mark.parametrize("arguments", [["status"], ["tasks", "ls"], ["workers", "ls"], ["goals", "ls"], ["events"]])
def test_a_command_imports_what_it_uses(arguments: list[str]) -> None:
    """Whoever calls the service needs none of its libraries, and no other command line than this."""
    heavy = "{'app.settings', 'asyncpg', 'fastapi', 'psutil', 'pygments', 'sqlalchemy', 'starlette', 'tomllib'}"
    show = f"import atexit, sys; atexit.register(lambda: sys.stderr.write(str({heavy} & {{*sys.modules}})))"
    script = f"{show}; from app.cli.commands import build; build()({arguments})"
    nobody = {"CONVENER_URL": "http://127.0.0.1:9", "CONVENER_KEY": "none", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=nobody, check=False)
    assert "cannot reach the service at http://127.0.0.1:9 (Connection refused)" in " ".join(done.stderr.split())
    assert done.stderr.endswith("set()"), done.stderr


@pytest.mark.parametrize("words", ["tasks ", "doctor -", "--profile ", "why ", "up -", "demo -", "top -"])
def test_a_press_of_tab_imports_no_library_of_the_service(words: str) -> None:
    heavy = "{'app.settings', 'asyncpg', 'fastapi', 'sqlalchemy', 'starlette'}"
    show = f"import atexit, sys; atexit.register(lambda: sys.stderr.write(str({heavy} & {{*sys.modules}})))"
    script = f"{show}; from app.cli.commands import build; build()(prog_name='convener')"
    asked = {
        "_CONVENER_COMPLETE": "complete_bash",
        "COMP_WORDS": f"convener {words}",
        "COMP_CWORD": str(1 + words.count(" ")),
    }
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **asked}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr.endswith("set()"), done.stderr


def test_version(offline: CommandLine) -> None:
    assert offline.run("--version").out == f"convener {version('convener')}\n"


def test_wrong_usage(offline: CommandLine) -> None:
    for arguments in (["tusks"], ["tasks", "ls", "--limit", "0"], ["tasks", "cancel"], ["status", "-o", "xml"]):
        done = offline.run(*arguments)
        assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "tasks submit --agent ranking --priority urgent",
            "'urgent' is not one of 'low', 'medium', 'high', 'critical'",
        ),
        ("tasks ls --limit 0", "must be 1 or more"),
        ("tasks ls --limit ten", "must be a whole number"),
        ("up --port 70000", "must be 65535 or less"),
        ("goals report kepler --iteration 1 --quality high", "must be a number"),
        ("goals create --objective x --compute-budget soon", "soon is not a time like 90s, 30min, 2h or 3d"),
        ("events --kind lost", "lost is no kind of event"),
        ("alerts ls --severity high", "'high' is not one of 'warning', 'critical'"),
        ("config mode fast", "'fast' is not one of 'development', 'production', 'trusted_tester'"),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(offline: CommandLine, words: str, sentence: str) -> None:
    done = offline.run(*words.split(), "-o", "json") if not words.startswith("up") else offline.run(*words.split())
    assert done.code == 2
    assert f": {sentence}" in done.err
    assert "Invalid value for '" in done.err, "it says of which option"
