"""What the command line and the environment may say."""

import os
import pwd
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from tests.worker_agent.fake_control_plane import POOL_KEY
from worker_agent.confinement import Confinement, Method, handler_user, protected_paths
from worker_agent.daemon import DaemonSettings
from worker_agent.file_view import view_files
from worker_agent.handler_environment import inherited
from worker_agent.handlers import Handler, collect_handlers, parse_handler
from worker_agent.options import read_options
from worker_agent.probing import UnusableHandler
from worker_agent.wire import AGENT_TYPES

ENVIRONMENT = {"CONVENER_URL": "http://127.0.0.1:8765/", "CONVENER_KEY": POOL_KEY}
ECHO = "ranking=tests.worker_agent.agents:echo"
TABLE = "tests.worker_agent.agents"


def read(*arguments: str, **environment: str) -> DaemonSettings:
    return read_options(arguments, ENVIRONMENT | environment)[0]


def rules_here() -> Confinement:
    """Rules for code in the current directory."""
    user = handler_user(None)
    view = view_files(uid=None if user is None else user[0])
    return Confinement(method=Method.NAMESPACES if sys.platform == "linux" else Method.NONE, view=view, user=user)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, **environment: str) -> str:
    with pytest.raises(SystemExit) as caught:
        read(*arguments, **environment)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "verysecret" not in message
    return message.rsplit("error: ", 1)[-1]


def test_keys_of_people_are_hidden_from_handlers(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(POOL_KEY)
    settings = read("--handlers", TABLE, CONVENER_KEY_FILE=str(key), XDG_CONFIG_HOME=str(tmp_path / "config"))
    assert {str(key), str(tmp_path / "config" / "convener")} <= set(settings.confinement.view.hidden)


def test_the_environment_is_enough() -> None:
    settings = read("--handlers", TABLE)
    assert (settings.url, settings.pool_key) == ("http://127.0.0.1:8765", POOL_KEY)
    assert settings.profile["capabilities"] == list(AGENT_TYPES)
    assert not settings.is_launched
    assert settings.profile["memory_gb"] > 0
    assert settings.profile["name"]
    assert "verysecret" not in repr(settings)


def test_a_launched_worker_without_usable_handlers_begins_in_order_to_say_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = read("--handlers", "no_such_module", "--launched-as=me")
    assert "no_such_module" in str(settings.not_ready_reason)
    assert (settings.handlers, settings.profile["capabilities"]) == ({}, list(AGENT_TYPES))
    assert read("--launched-as=me").not_ready_reason
    message = refused(capsys, "--handlers", "no_such_module")
    assert "No module named 'no_such_module'" in message
    assert f"looked for in this directory, {os.getcwd()}, in PYTHONPATH" in message


def test_secrets_may_come_through_a_pipe_which_wins_and_is_closed() -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"CONVENER_KEY": "cvn_launch_key", "CONVENER_LLM_KEY": "of the model"}')
    os.close(writing)
    url = "http://127.0.0.1:1/v1"
    settings = read(
        "--handler", ECHO, f"--secrets-fd={reading}", "--launched-as=me", CONVENER_LLM_URL=url, CONVENER_LLM_MODELS="m"
    )
    assert (settings.pool_key, settings.is_launched) == ("cvn_launch_key", True)
    assert settings.language_model is not None
    assert settings.language_model.key == "of the model"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


@pytest.mark.parametrize("text", ["", "[]", '{"CONVENER_KEY": 1}'])
def test_what_comes_through_the_pipe_must_be_an_object_of_texts(capsys: pytest.CaptureFixture[str], text: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    assert refused(capsys, "--handler", ECHO, f"--secrets-fd={reading}")


def test_the_key_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("cvn_other_key\n")
    assert read("--handler", ECHO, "--key-file", str(file)).pool_key == "cvn_other_key"


def test_further_variables_are_passed_to_handlers_by_name_or_prefix() -> None:
    settings = read("--handler", ECHO, "--pass-env", "HF_HOME,AWS_*", CONVENER_HANDLER_PASS_ENV="MY_OPTION")
    assert settings.confinement.passed_variables == ("MY_OPTION", "HF_HOME", "AWS_*")
    environment = {"PATH": "/bin", "AWS_REGION": "x", "HF_HOME": "/m", "HF_TOKEN": "t", "CONVENER_KEY": "secret"}
    assert inherited(settings.confinement.passed_variables, environment).keys() == {"PATH", "AWS_REGION", "HF_HOME"}
    # Not even a pattern that fits all names passes on what is the service's.
    assert inherited(("C*", "P*"), {"CONVENER_LLM_KEY": "s", "PGPASSWORD": "s", "PGHOST": "h"}) == {"PGHOST": "h"}


def test_an_explicit_handler_wins_over_a_table() -> None:
    settings = read("--handlers", TABLE, "--handler", ECHO, "--capabilities", "ranking,generation")
    assert settings.handlers == {
        "ranking": Handler(target="tests.worker_agent.agents:echo"),
        "generation": Handler(target="tests.worker_agent.agents:HANDLERS", key="generation"),
    }
    assert settings.profile["capabilities"] == ["generation", "ranking"]


def test_only_what_has_a_handler_is_offered() -> None:
    assert read("--handler", ECHO).profile["capabilities"] == ["ranking"]


def test_programs_are_handlers() -> None:
    assert parse_handler("evolution=command:sh -c 'exit 75'") == (
        "evolution",
        Handler(command=("sh", "-c", "exit 75")),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no handler"),
        (("--url", "ftp://x", "--handler", ECHO), "not an address"),
        (("--url", "127.0.0.1:8765", "--handler", ECHO), "not an address"),
        (("--handler", ECHO, "--capabilities", "poetry"), "choose from generation"),
        (("--handler", ECHO, "--capabilities", ""), "choose from generation"),
        (("--handler", ECHO, "--capabilities", "generation"), "no handler for generation"),
        (("--handler", "poetry=a:b"), "TYPE being one of"),
        (("--handler", "ranking=nothing"), "module:function"),
        (("--handler", "ranking=tests.worker_agent.agents:nobody"), "AttributeError"),
        (("--handler", "ranking=no.such.module:f"), "ModuleNotFoundError"),
        (("--handler", "ranking=command:/no/such/program x"), "no such program"),
        (("--handler", "ranking=command:'"), "No closing quotation"),
        (("--handlers", "worker_agent"), "no attribute 'HANDLERS'"),
        (("--handler", ECHO, "--labels", "site"), "KEY=VALUE"),
        (("--handler", ECHO, "--pass-env", "CONVENER_KEY"), "never passed to handlers"),
        (("--handler", ECHO, "--pass-env", "PGPASSWORD"), "never passed to handlers"),
        (("--handler", ECHO, "--pass-env", "A B"), "names of variables"),
        (("--handler", ECHO, "--gpus", "many"), "many is neither a number of GPUs nor all"),
        (("--handler", ECHO, "--gpus", "-1"), "-1 is neither a number of GPUs nor all"),
        (("--handler", ECHO, "--memory-gb", "0"), "must be positive"),
        (("--handler", ECHO, "--cpu", "nan"), "must be positive"),
        (("--handler", ECHO, "--key-file", "/no/such/file"), "No such file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *arguments)


def test_without_an_address_it_says_how_to_give_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --url, or set CONVENER_URL" in refused(capsys, "--handler", ECHO, CONVENER_URL="")


@pytest.mark.parametrize("key", ["", "  ", "two\nlines", "cvn_é"])
def test_a_key_must_be_a_key(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no usable pool key" in refused(capsys, "--handler", ECHO, CONVENER_KEY=key)


def test_a_table_with_nonsense_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_agents.py").write_text("print('noise')\nHANDLERS = {'poetry': print, 'ranking': 3}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnusableHandler, match=r"'poetry'\] is no agent type; .*'ranking'\] is not a function"):
        collect_handlers({}, ["broken_agents"], rules_here())


def test_a_module_that_kills_its_interpreter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadly_agents.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnusableHandler, match="could not be imported"):
        collect_handlers({}, ["deadly_agents"], rules_here())


def test_a_user_without_a_home_directory_has_rules_for_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that has only a number, in a container that sets no HOME."""

    def nobody(_: object) -> NoReturn:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert Path("/named") in protected_paths({}, [Path("/named")])


def test_help_shows_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "convener-worker --url" in shown
    assert "3  the key was refused" in shown
