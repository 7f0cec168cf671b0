"""Where the command line finds the service and the key, and who never gets to see it."""

from pathlib import Path

import pytest

from app.terminal.connection import ADMIN_KEY, OPERATOR_KEY, find_access
from app.terminal.failures import ExitCode, Failure
from tests.support.command_line import CommandLine


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CONVENER_KEY", "CONVENER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONVENER_STATE_DIRECTORY", str(tmp_path))
    return tmp_path


def _leave(state: Path, url: str) -> None:
    (state / "url").write_text(f"{url}\n")
    (state / OPERATOR_KEY).write_text("cvn_operator_x\n")
    (state / ADMIN_KEY).write_text("cvn_admin_x\n")


def test_what_up_left_behind_is_found(state: Path) -> None:
    _leave(state, "http://127.0.0.1:4321")
    found = find_access(None)
    assert (found.url, found.key) == ("http://127.0.0.1:4321", "cvn_operator_x")
    assert find_access(None, (ADMIN_KEY, OPERATOR_KEY)).key == "cvn_admin_x"
    assert "cvn_operator_x" not in repr(found)


def test_the_environment_comes_first(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _leave(state, "http://127.0.0.1:4321")
    monkeypatch.setenv("CONVENER_KEY", " cvn_mine_x ")
    found = find_access("http://far.test/")
    assert (found.url, found.key) == ("http://far.test", "cvn_mine_x")


def test_the_key_of_this_machine_never_leaves_it(state: Path) -> None:
    _leave(state, "http://127.0.0.1:4321")
    with pytest.raises(Failure) as failure:
        find_access("http://far.test:4321")
    assert failure.value.code is ExitCode.KEY
    assert find_access("http://localhost:4321").key == "cvn_operator_x"
    _leave(state, "http://this-host.test:4321")
    assert find_access(None).key == "cvn_operator_x"


def test_without_a_key_one_is_told_how_to_get_one(state: Path) -> None:
    with pytest.raises(Failure) as failure:
        find_access(None)
    assert failure.value.code is ExitCode.KEY
    assert "convener up" in str(failure.value.hint)
    assert "convener key create" in str(failure.value.hint)


@pytest.mark.parametrize("url", ["127.0.0.1:8765", "ftp://x", "http://", "http://x:99999999", "http://[::1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(Failure) as failure:
        find_access(url)
    assert failure.value.code is ExitCode.USAGE


def test_a_key_with_a_line_end_inside_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVENER_KEY", "cvn_a\nb")
    with pytest.raises(Failure) as failure:
        find_access(None)
    assert failure.value.code is ExitCode.KEY
    assert "cvn_a" not in failure.value.message


async def test_settings_may_stand_in_a_file(offline: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "convener.toml"
    (tmp_path / "url").write_text("http://127.0.0.1:1\n")
    (tmp_path / "operator.key").write_text("cvn_a_b\n")
    file.write_text(f'state_directory = "{tmp_path}"\n')
    plain = {"CONVENER_STATE_DIRECTORY": None, "CONVENER_SETTINGS_FILE": None}
    done = await offline("--settings", str(file), "status", **plain)
    assert (done.code, "http://127.0.0.1:1" in done.err) == (3, True)
    file.write_text("prot = 1\n")
    done = await offline("status", **{**plain, "CONVENER_SETTINGS_FILE": str(file)})
    assert done.code == 2
    assert "did you mean port?" in done.err
