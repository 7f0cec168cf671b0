"""Secrets stay inside the process: closed memory, no environment, a pipe that can be read once, private files."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app import secrecy
from app.settings import Settings, take_settings
from app.settings_sources import SECRET_VARIABLES, SECRETS, SettingsError, hide_secret_files

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
_SECRET = "cvn_0123_letmein"
_READ_AND_WAIT = """
import os, sys
from app.settings import take_settings
settings = take_settings()
left = [name for name in os.environ if "SECRET" in name or "LLM_KEY" in name]
print(settings.llm_key, settings.database_url, left)
sys.stdout.flush()
sys.stdin.read()
"""


Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def child() -> Iterator[Start]:
    """Starts a program that takes its settings, and returns it with its first line."""
    children = []

    def start(*, handed: dict[str, str] | None = None, **variables: str) -> tuple["subprocess.Popen[str]", str]:
        environment = {**os.environ, **variables}
        with secrecy.handed_over(handed or {}) as descriptor:
            if handed is not None:
                environment[secrecy.SECRETS_FD] = str(descriptor)
            command = [sys.executable, "-c", _READ_AND_WAIT]
            process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=[descriptor],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        children.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline()

    yield start
    for process in children:
        process.kill()
        process.communicate()


@linux
def test_a_variable_is_gone_once_it_was_read_even_for_the_kernel(child: Start) -> None:
    process, line = child(CONVENER_LLM_KEY=_SECRET, CONVENER_DATABASE_URL="postgresql://u:hidden@h/d")
    assert line == f"{_SECRET} postgresql://u:hidden@h/d []\n"
    # As the tests may run as root, whom no process is closed to, it is the overwriting that is seen here.
    if os.geteuid() == 0:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert _SECRET.encode() not in environment
        assert b"hidden" not in environment


def test_what_is_handed_over_is_in_no_environment_and_no_command(child: Start) -> None:
    process, line = child(handed={"CONVENER_LLM_KEY": _SECRET})
    assert line == f"{_SECRET} None []\n"
    assert _SECRET not in " ".join(psutil.Process(process.pid).cmdline())
    if os.geteuid() == 0:
        assert _SECRET not in str(psutil.Process(process.pid).environ())
        descriptors = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert len([name for name in descriptors if name.startswith("pipe:")]) == 2, "stdin and stdout alone"


@linux
def test_others_of_the_same_user_cannot_look_inside(child: Start) -> None:
    process, _ = child()
    look = f"import sys; open('/proc/{process.pid}/'+sys.argv[1]).read()"
    for name in ("environ", "maps", "mem", "auxv"):
        as_user = [] if os.geteuid() else ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        seen = subprocess.run([*as_user, sys.executable, "-c", look, name], capture_output=True, text=True)
        assert "PermissionError" in seen.stderr, (name, seen)


@linux
def test_closing_forbids_dumps() -> None:
    program = "import resource; from app.secrecy import close_process, is_closed; close_process(); "
    program += "print(is_closed(), resource.getrlimit(resource.RLIMIT_CORE))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "True (0, 0)\n"


@pytest.mark.parametrize("module", ["app.main", "app.background"])
def test_a_program_without_a_database_closes_itself_and_says_what_is_missing(module: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")}
    done = subprocess.run([sys.executable, "-m", module], env=environment, capture_output=True, text=True)
    assert (done.returncode, "CONVENER_DATABASE_URL is not set" in done.stderr) == (2, True)


def test_what_was_handed_over_badly_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.close_process", lambda: None)
    reader, writer = os.pipe()
    os.close(writer)
    monkeypatch.setenv(secrecy.SECRETS_FD, str(reader))
    with pytest.raises(SettingsError, match="handed over cannot be read"):
        take_settings()


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_may_stand_in_a_file_of_its_own(tmp_path: Path, name: str) -> None:
    file, url = tmp_path / "secret", "postgresql://user@host/db"
    variables = {"CONVENER_WEBHOOK_HOSTS": "one.example.org,two.example.org", "CONVENER_WEBHOOK_SECRET": "s" * 32}
    is_database = name in ("database_url", "database_direct_url")
    one, two = (url, f"{url}2") if is_database else ("https://one.example.org/x", "https://two.example.org/x")
    variables |= {"CONVENER_DATABASE_URL": url, "CONVENER_WEBHOOK_URL": "https://one.example.org/"}
    file.write_text(f"{one}\n")
    variable = f"CONVENER_{name.upper()}"
    variables.pop(variable, None)
    assert {variable, f"{variable}_FILE"} <= SECRET_VARIABLES
    assert getattr(Settings.from_environment(variables | {f"{variable}_FILE": str(file)}), name) == one
    both = variables | {f"{variable}_FILE": str(file), variable: two}
    assert getattr(Settings.from_environment(both), name) == two


def test_workers_are_to_keep_the_files_of_secrets_from_handlers() -> None:
    environment = {"CONVENER_DATABASE_PASSWORD_FILE": "/code/db", "CONVENER_HANDLER_HIDE": "/code/data"}
    hide_secret_files(environment)
    assert environment["CONVENER_HANDLER_HIDE"] == "/code/data:/code/db"


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"CONVENER_LLM_KEY_FILE: cannot read .*none"):
        Settings.from_environment({"CONVENER_LLM_KEY_FILE": str(tmp_path / "none")})


def test_a_password_joins_its_url_whatever_it_is_made_of() -> None:
    variables = {
        "CONVENER_DATABASE_URL": "postgresql://user@host:5432/db?a=b",
        "CONVENER_DATABASE_PASSWORD": "p@ss:/% x",
    }
    assert Settings.from_environment(variables).database_url == "postgresql://user:p%40ss%3A%2F%25%20x@host:5432/db?a=b"
    for url in ("postgresql://user:one@host/db", "postgresql://host/db"):
        with pytest.raises(SettingsError, match="must name a user and no password"):
            Settings.from_environment(variables | {"CONVENER_DATABASE_URL": url})


def test_a_password_joins_the_addresses_of_several_servers() -> None:
    direct = "postgresql://user@one,two:5433/db?target_session_attrs=read-write"
    variables = {"CONVENER_DATABASE_URL": "postgresql://user@host/db", "CONVENER_DATABASE_PASSWORD": "word"}
    settings = Settings.from_environment(variables | {"CONVENER_DATABASE_DIRECT_URL": direct})
    assert settings.session_url == settings.database_direct_url == direct.replace("user@", "user:word@")


def test_a_direct_address_alone_is_refused() -> None:
    with pytest.raises(SettingsError, match="says nothing without database_url"):
        Settings.from_environment({"CONVENER_DATABASE_DIRECT_URL": "postgresql://user@host/db"})


def test_secrets_show_in_no_representation() -> None:
    values = dict.fromkeys(SECRETS, "hidden" * 6)
    values |= dict.fromkeys(["database_url", "database_direct_url"], "postgresql://u@hidden/d")
    values |= {"webhook_url": "https://example.org/hidden"}
    assert "hidden" not in repr(Settings(**values, webhook_hosts=("example.org",)))


def test_logs_are_private_also_those_that_were_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    old = tmp_path / "old.log"
    old.write_text("before\n")
    old.chmod(0o644)
    with os.fdopen(secrecy.open_log(old), "a") as log:
        log.write("after\n")
    (tmp_path / "other.log").touch(mode=0o644)
    os.close(secrecy.open_log(tmp_path / "new.log"))
    secrecy.make_private(tmp_path)
    assert old.read_text() == "before\nafter\n"
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_private_file_is_written_at_once_or_not_at_all(tmp_path: Path) -> None:
    """Who reads an address while it is written anew does not take it for missing, and a kill leaves no empty key."""
    path = tmp_path / "url"
    path.write_text("former")
    path.chmod(0o644)
    with path.open() as reader:
        secrecy.write_private(path, "new")
        assert reader.read() == "former"
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    with pytest.raises(UnicodeEncodeError):
        secrecy.write_private(path, "\ud800")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("url", "new")]


def test_a_private_directory_lies_in_no_open_one_that_was_made_for_it(tmp_path: Path) -> None:
    """The loops made the state directory for their logs, open to others, of which `convener doctor` then warned."""
    state = tmp_path / "state"
    secrecy.make_private(state / "logs" / "workers")
    made = (state, state / "logs", state / "logs" / "workers")
    assert [path.stat().st_mode & 0o777 for path in made] == [0o700] * 3
