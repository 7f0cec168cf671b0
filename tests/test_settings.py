"""Settings from variables and from a file: the variable wins, and what is wrong is named with where it stands."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from app.kernel.modes import Mode
from app.settings import Settings
from app.settings_sources import SETTINGS_FILE, SettingsError
from app.terminal.connection import state_directory
from app.terminal.failures import Failure
from tests.support.command_line import COMMAND


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "convener.toml"
    path.touch(mode=0o600)
    return path


def _read(file: Path, text: str, **variables: str) -> Settings:
    file.write_text(text)
    return Settings.from_environment({SETTINGS_FILE: str(file), **variables})


def test_every_kind_of_setting_may_stand_in_the_file(file: Path) -> None:
    found = _read(
        file,
        """
        database_url = "postgresql://user@host/convener"
        mode = "trusted_tester"
        state_directory = "/var/lib/convener"
        port = 9000
        lease_seconds = 20
        queue_quotas = [0.2, 0.4, 0.6, 1.0]
        log_json = true
        """,
    )
    assert found.database_url == "postgresql://user@host/convener"
    assert found.mode is Mode.TRUSTED_TESTER
    assert found.state_directory == Path("/var/lib/convener")
    assert (found.port, found.lease_seconds, found.log_json) == (9000, 20.0, True)
    assert found.queue_quotas == (0.2, 0.4, 0.6, 1.0)


def test_the_state_directory_is_the_same_wherever_its_path_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment({"CONVENER_STATE_DIRECTORY": "x/../state"})
    assert settings.state_directory == tmp_path / "state"


def test_an_empty_one_is_none_and_not_wherever_the_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("CONVENER_STATE_DIRECTORY", "")
    assert Settings.from_environment().state_directory == state_directory() == tmp_path / "convener"


def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("CONVENER_STATE_DIRECTORY", raising=False)
    monkeypatch.setattr(Path, "home", none)
    for find in (Settings.from_environment, state_directory):
        with pytest.raises(FileNotFoundError, match="no home directory, so set CONVENER_STATE_DIRECTORY"):
            find()
    monkeypatch.setenv("CONVENER_STATE_DIRECTORY", str(tmp_path))
    assert Settings.from_environment().state_directory == state_directory() == tmp_path


@pytest.mark.parametrize("command", ["up", "demo"])
def test_so_is_one_that_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    group: Any = get_command(COMMAND)
    context = group.get_command(None, command).make_context(command, ["--state", "state"])
    assert context.params["state"] == tmp_path / "state"


@pytest.mark.parametrize(
    ("name", "text"),
    [("HISTORY_DAYS", "500000"), ("EVENTS_DAYS", "1000000"), ("HOST", ""), ("HOST", " "), ("HOST", "0.0.0.0 ")]
    + [("HOST", text) for text in ("-1", "0", "256.0.0.1", "127.0.0.1:8765", "http://127.0.0.1", "[::1]", "a..b")],
)
def test_what_would_delete_all_or_listen_everywhere_is_refused(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"CONVENER_{name}"):
        Settings.from_environment({f"CONVENER_{name}": text})


@pytest.mark.parametrize("text", ["abc", "10.0.0.1/8", "10.0.0.7,", "10.0.0.7 10.0.0.8", " ", "*,10.0.0.7"])
def test_proxies_that_are_no_addresses_are_refused(text: str) -> None:
    """Nobody connects by such a name, so that the limit of failed keys counted all clients as one."""
    with pytest.raises(SettingsError, match=r"^CONVENER_TRUSTED_PROXIES: must be addresses .* such as 10\.0\.0\.7"):
        Settings.from_environment({"CONVENER_TRUSTED_PROXIES": text})


@pytest.mark.parametrize("text", ["", "*", "127.0.0.1", "10.0.0.7, ::1,10.1.0.0/16"])
def test_proxies_may_be_all_and_networks(text: str) -> None:
    assert Settings.from_environment({"CONVENER_TRUSTED_PROXIES": text}).trusted_proxies == text


@pytest.mark.parametrize("text", ["localhost", "vm_1.lab-2.example.org", "::1", "fe80::1%eth0", "0.0.0.0", "1a"])
def test_the_host_is_an_address_or_a_name(text: str) -> None:
    assert Settings.from_environment({"CONVENER_HOST": text}).host == text


_PATHS = [name for name, field in Settings.model_fields.items() if Path in get_args(field.annotation)]


@pytest.mark.parametrize(
    ("name", "text"), [*((name, text) for name in _PATHS for text in ("", " \t")), ("state_directory", " ")]
)
def test_a_blank_path_is_refused(name: str, text: str) -> None:
    """It was the directory in which the process was started: the API ended there with an error of its socket."""
    sentence = rf"^CONVENER_{name.upper()}: (must be a path, such as /run/convener|cannot read \s)"
    with pytest.raises(SettingsError, match=sentence):
        Settings.from_environment({f"CONVENER_{name.upper()}": text})


def test_commands_that_read_no_other_setting_refuse_a_blank_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVENER_STATE_DIRECTORY", " ")
    with pytest.raises(Failure, match=r"^CONVENER_STATE_DIRECTORY: must be a path"):
        state_directory()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("DATABASE_PASSWORD", "CONVENER_DATABASE_URL: must be set where database_password is"),
        ("WEBHOOK_SECRET", "CONVENER_WEBHOOK_URL: must be set where webhook_secret or webhook_hosts is; to nothing "),
        ("WEBHOOK_HOSTS", "CONVENER_WEBHOOK_URL: must be set where webhook_secret or webhook_hosts is; to nothing "),
    ],
)
def test_what_belongs_to_an_address_is_refused_without_it(file: Path, name: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}"):
        Settings.from_environment({f"CONVENER_{name}": "s" * 32})
    with pytest.raises(
        SettingsError, match=re.escape(f"{file}: {sentence.partition('_')[2].partition(':')[0].lower()}: ")
    ):
        _read(file, f'{name.lower()} = "{"s" * 32}"')


def test_a_variable_wins_over_the_file(file: Path) -> None:
    found = _read(file, 'port = 9000\nhost = "0.0.0.0"', CONVENER_PORT="9001")
    assert (found.port, found.host) == (9001, "0.0.0.0")


@pytest.mark.parametrize("name", ["", "../other", "a|b", "my host", "n" * 101, "-f"])
def test_a_name_of_this_host_that_makes_no_paths_and_workers_is_refused(name: str) -> None:
    """No worker could register, or its log be written, and why stood nowhere."""
    with pytest.raises(SettingsError, match="CONVENER_HOST_NAME"):
        Settings.from_environment({"CONVENER_HOST_NAME": name})
    assert Settings.from_environment({"CONVENER_HOST_NAME": "node-1.lab_2"}).host_name == "node-1.lab_2"


_READ = """
import pydantic, psutil, app.settings_sources, app.settings_values
process = psutil.Process()
before = process.memory_full_info().uss
import app.settings
print(process.memory_full_info().uss - before)
"""


def test_what_reads_the_settings_takes_little_memory() -> None:
    """Each process has it; a bound of a pattern, 100 times the letters of all alphabets, took 9 MiB."""
    printed = subprocess.run([sys.executable, "-c", _READ], check=True, capture_output=True, text=True, timeout=60)
    assert 0 < int(printed.stdout) < 5 << 20


def test_a_variable_wins_also_over_what_is_wrong_in_the_file(file: Path) -> None:
    assert _read(file, "port = -1", CONVENER_PORT="9001").port == 9001


def test_without_a_file_nothing_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "convener.toml").write_text("port = 9000")
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environment({}).port == Settings().port
    assert Settings.from_environment({SETTINGS_FILE: ""}).port == Settings().port


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 9000", "prot is no setting, did you mean port?"),
        ("CONVENER_PORT = 9000", "did you mean port?"),
        ("[worker_pool]\nmin_workers = 3", "worker_pool is no setting"),
        ("a = 1\nb = 2", "a is no setting; b is no setting"),
        ("port = 99999", "port: "),
        ('port = "many"', "port: "),
        ('database_url = "mysql://host"', "database_url: "),
        ("queue_quotas = [1.0]", "queue_quotas: "),
        ("port = ", "is no TOML"),
        ("port = 1\nport = 2", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(file: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=r"convener\.toml") as caught:
        _read(file, text)
    assert said in str(caught.value)


def test_what_is_wrong_in_a_variable_is_named_as_one(file: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        _read(file, "port = 9000\nhistory_days = 0", CONVENER_EVENTS_DAYS="0")
    assert "CONVENER_EVENTS_DAYS: " in str(caught.value)
    assert "convener.toml: history_days: " in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    for path in (missing, tmp_path):
        with pytest.raises(SettingsError, match=f"{SETTINGS_FILE}: cannot read {path}"):
            Settings.from_environment({SETTINGS_FILE: str(path)})
    missing.write_bytes(b"host = '\xff'")
    with pytest.raises(SettingsError, match="is no TOML"):
        Settings.from_environment({SETTINGS_FILE: str(missing)})


@pytest.mark.parametrize(
    ("mode", "text", "warned"),
    [
        (0o644, 'llm_key = "cvn_a_b_c_d_e_f_g_h"', True),
        (0o640, 'database_url = "postgresql://host/db"', True),
        (0o600, 'llm_key = "cvn_a_b_c_d_e_f_g_h"', False),
        (0o644, "port = 9000", False),
    ],
)
def test_a_secret_that_others_can_read_is_warned_of(
    file: Path, caplog: pytest.LogCaptureFixture, mode: int, text: str, warned: bool
) -> None:
    file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        _read(file, text)
    assert bool(caplog.records) is warned
    assert "cvn_a_b" not in caplog.text
    assert not warned or f"chmod 600 {file}" in caplog.text


_CLASS = '[{"deployment": "gpus", "agents": ["generation"], "gpus": 1, "resources": {"scope": 2}, "limit": 8}]'


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("PORT", "abc", "must be a whole number"),
        ("PORT", "1.5", "must be a whole number"),
        ("PORT", "99999", "must be 65535 or less"),
        ("POOL_SIZE", "-1", "must be 0 or more"),
        ("DRAIN_SECONDS", "soon", "must be a number"),
        ("LOG_JSON", "maybe", "must be true or false"),
        ("LOG_LEVEL", "loud", "must be 'debug', 'info', 'warning' or 'error'"),
        ("MODE", "fast", "must be 'development', 'production' or 'trusted_tester'"),
        ("DATABASE_URL", "mysql://{x}", "must begin with postgresql://"),
    ],
)
def test_a_wrong_value_is_answered_in_a_plain_sentence(name: str, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment({f"CONVENER_{name}": text})
    assert str(raised.value) == f"CONVENER_{name}: {sentence}"


def test_classes_of_workers_are_json_or_tables(tmp_path: Path) -> None:
    (given,) = Settings.from_environment({"CONVENER_KUBERNETES_CLASSES": _CLASS}).kubernetes_classes
    assert (given.deployment, given.agents, given.gpus, given.limit) == ("gpus", ("generation",), 1, 8)
    assert (given.resources, given.cores) == ((("scope", 2),), 0)
    file = tmp_path / "settings.toml"
    table = 'deployment = "gpus"\nagents = ["generation"]\ngpus = 1\nresources = {scope = 2}\nlimit = 8\n'
    file.write_text(f"[[kubernetes_classes]]\n{table}")
    assert Settings.from_environment({"CONVENER_SETTINGS_FILE": str(file)}).kubernetes_classes == (given,)
    assert Settings.from_environment({"CONVENER_KUBERNETES_CLASSES": ""}).kubernetes_classes == ()


def test_handlers_of_single_types_are_json_or_a_list(tmp_path: Path) -> None:
    handlers = ("ranking=command:./rank --fast, 'a b'", "generation=my_agents:generate")
    variables = {"CONVENER_WORKER_HANDLER": json.dumps(handlers)}
    assert Settings.from_environment(variables).worker_handler == handlers
    file = tmp_path / "settings.toml"
    file.write_text(f"worker_handler = {json.dumps(handlers)}")
    assert Settings.from_environment({"CONVENER_SETTINGS_FILE": str(file)}).worker_handler == handlers
    assert Settings.from_environment({"CONVENER_WORKER_HANDLER": ""}).worker_handler == ()
    for text in (handlers[0], "[1]", '{"ranking": "command:./rank"}', "1"):
        with pytest.raises(SettingsError, match="CONVENER_WORKER_HANDLER"):
            Settings.from_environment({"CONVENER_WORKER_HANDLER": text})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus", "must be a JSON list of objects"),
        ('{"deployment": "gpus"}', "CONVENER_KUBERNETES_CLASSES"),
        ('[{"agents": []}]', "CONVENER_KUBERNETES_CLASSES: 0.deployment: is missing"),
        ('[{"deployment": "gpus", "gpu": 1}]', "CONVENER_KUBERNETES_CLASSES: 0.gpu: there is no such field"),
        ('[{"deployment": "gpus", "agents": ["nobody"]}]', "CONVENER_KUBERNETES_CLASSES: 0.agents.0"),
        ('[{"deployment": "gpus"}, {"deployment": "gpus"}]', "each must have a deployment of its own"),
        ('[{"deployment": "convener-workers"}]', "each must have a deployment of its own"),
    ],
)
def test_a_class_that_cannot_be_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        Settings.from_environment({"CONVENER_KUBERNETES_CLASSES": text})
