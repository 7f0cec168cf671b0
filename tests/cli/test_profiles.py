"""Profiles: each brings its own address, key and trust, and its key goes to its own service alone."""

import os
import pty
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, Service
from tests.support.ports import free_port


@pytest.fixture
def user(offline: CommandLine, tmp_path: Path) -> CommandLine:
    """Somebody who has no profile yet."""
    return CommandLine(environment={**offline.environment, "XDG_CONFIG_HOME": str(tmp_path / "config")})


def _add(user: CommandLine, name: str, url: str, *more: str, key: str = "cvn_a_b") -> None:
    done = user.run("profiles", "add", name, "--url", url, *more, stdin=key)
    assert done.code == 0, done.err


async def test_a_profile_finds_service_and_key(user: CommandLine, live_service: Service, tmp_path: Path) -> None:
    own, other = live_service.keys.values().__iter__(), f"http://127.0.0.1:{free_port()}"
    key = next(own)
    _add(user, "lab", live_service.url, key=key)
    _add(user, "away", other, "--namespace", "lab-a")
    folder = tmp_path / "config" / "convener" / "profiles"
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == dict.fromkeys(
        ("lab.toml", "lab.key", "away.toml", "away.key"), 0o600
    )
    assert [item["name"] for item in user.run("profiles", "ls", "-o", "json").json["items"]] == ["away", "lab"]
    for words, variables in ((("--profile", "lab"), {}), ((), {"CONVENER_PROFILE": "lab"})):
        # What the environment says of another service does not count.
        elsewhere = {"CONVENER_URL": other, "CONVENER_KEY": "cvn_c_d", "CONVENER_NAMESPACE": "x", **variables}
        shown = await user(*words, "whoami", "-o", "json", **elsewhere)
        assert (shown.code, shown.json["url"]) == (0, live_service.url), shown.err
    assert (await user("--profile", "away", "whoami")).code == 3


def test_the_key_of_a_profile_goes_nowhere_else(user: CommandLine) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    _add(user, "lab", url)
    for words in (
        ("--profile", "lab", "whoami", "--url", "http://127.0.0.1:9"),
        ("--profile", "lab", "--url", url, "status"),
    ):
        refused = user.run(*words)
        assert (refused.code, "leave --url out" in refused.err.replace("\n", " ")) == (2, True), refused
    refused = user.run("--profile", "lab", "api")
    assert (refused.code, "commands that ask a service" in refused.err) == (2, True)


def test_ctrl_c_at_a_question_is_no_refusal(tmp_path: Path) -> None:
    """It ended with 1, as an answer of no."""
    words = [sys.executable, "-m", "app.cli", "profiles", "add", "lab", "--url", "http://127.0.0.1:9"]
    terminal, end = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    with subprocess.Popen(words, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True) as asking:
        shown = b""
        while b"key" not in shown:
            shown += os.read(terminal, 1000)
        asking.send_signal(signal.SIGINT)
        assert asking.wait(30) == 130
    os.close(end)
    os.close(terminal)
    assert not list(tmp_path.glob("convener/profiles/*"))


def test_a_key_that_others_can_read_is_refused(user: CommandLine, tmp_path: Path) -> None:
    key = tmp_path / "lab.key"
    key.write_text("cvn_a_b")
    key.chmod(0o644)
    words = ("profiles", "add", "lab", "--url", "http://127.0.0.1:9", "--key-file", str(key))
    refused = user.run(*words)
    assert (refused.code, "chmod 600" in refused.err) == (4, True)
    key.chmod(0o600)
    assert user.run(*words).code == 0
    assert user.run("--profile", "lab", "status").code == 3
    key.chmod(0o640)
    assert user.run("--profile", "lab", "status").code == 4
    assert user.run("status", CONVENER_URL="http://127.0.0.1:9", CONVENER_KEY_FILE=str(key)).code == 4
    key.unlink()
    assert user.run("--profile", "lab", "status").code == 4


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--profile", "lab", "status"), 2),
        (("--profile", "../lab", "status"), 2),
        (("profiles", "rm", "lab"), 5),
        (("profiles", "add", "a/b", "--url", "http://127.0.0.1:9"), 2),
        (("profiles", "add", "lab", "--url", "http://far.test:9"), 2),
        (("profiles", "add", "lab", "--url", "http://127.0.0.1:9", "--pin", "nonsense"), 2),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(user: CommandLine, words: tuple[str, ...], code: int) -> None:
    refused = user.run(*words, stdin="cvn_a_b")
    assert (refused.code, "What to do" in refused.err) == (code, True), refused


@pytest.mark.parametrize(
    "text", ["url = 1\nkey_file = 'a'", "url = 'a'", "what", "url = 'a'\nkey_file = 'b'\nmore = 1"]
)
def test_a_file_that_was_spoilt_is_named(user: CommandLine, tmp_path: Path, text: str) -> None:
    path = tmp_path / "config" / "convener" / "profiles" / "lab.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    refused = user.run("--profile", "lab", "status")
    assert (refused.code, "lab.toml" in refused.err.replace("\n", "")) == (2, True), refused


def test_a_profile_is_forgotten_with_its_key(user: CommandLine, tmp_path: Path) -> None:
    _add(user, "lab", "http://127.0.0.1:9")
    assert user.run("profiles", "rm", "lab").code == 0
    assert list((tmp_path / "config" / "convener" / "profiles").iterdir()) == []
    # A variable that names none keeps nobody from making it.
    assert user.run("profiles", "ls", CONVENER_PROFILE="lab").code == 0
