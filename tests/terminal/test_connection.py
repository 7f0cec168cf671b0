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
    assert (found.url, found.key) == (f"unix:{state}/api.sock", "cvn_operator_x")
    assert find_access(None, (ADMIN_KEY, OPERATOR_KEY)).key == "cvn_admin_x"
    assert "cvn_operator_x" not in repr(found)


def test_the_environment_comes_first(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _leave(state, "http://127.0.0.1:4321")
    monkeypatch.setenv("CONVENER_KEY", " cvn_mine_x ")
    found = find_access("https://far.test/")
    assert (found.url, found.key) == ("https://far.test", "cvn_mine_x")


@pytest.mark.parametrize("url", ["https://far.test:4321", "http://localhost:4321", "http://127.0.0.1:4322"])
def test_the_keys_of_this_machine_go_to_its_own_service_alone(state: Path, url: str) -> None:
    _leave(state, "http://127.0.0.1:4321")
    with pytest.raises(Failure) as failure:
        find_access(url)
    assert failure.value.code is ExitCode.KEY
    assert "`convener key create --database` makes one" in str(failure.value.hint), "without, it wants a key itself"


def test_the_port_of_the_own_service_is_never_used_for_a_key(state: Path) -> None:
    """While the service is down, anybody may listen there; only its owner can make the socket."""
    for url in ("http://127.0.0.1:4321", "http://this-host.test:4321", "https://this-host.test:4321"):
        _leave(state, url)
        for found in (find_access(None), find_access(url)):
            assert (found.url, found.key) == (f"unix:{state}/api.sock", "cvn_operator_x")


def test_where_a_socket_has_no_place_the_port_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setenv("CONVENER_STATE_DIRECTORY", str(deep))
    _leave(deep, "http://127.0.0.1:4321")
    assert find_access(None).url == "http://127.0.0.1:4321"


def test_a_key_does_not_cross_the_network_in_clear_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVENER_KEY", "cvn_mine_x")
    with pytest.raises(Failure) as failure:
        find_access("http://far.test:8765")
    assert failure.value.code is ExitCode.USAGE
    assert "use https://" in failure.value.message
    monkeypatch.setenv("CONVENER_ALLOW_PLAIN_HTTP", "true")
    assert find_access("http://far.test:8765").url == "http://far.test:8765"


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
    _leave(tmp_path, "http://127.0.0.1:1")
    file.write_text(f'state_directory = "{tmp_path}"\n')
    plain = {"CONVENER_STATE_DIRECTORY": None, "CONVENER_SETTINGS_FILE": None}
    done = await offline("--settings", str(file), "status", **plain)
    assert (done.code, "api.sock" in done.err) == (3, True)
    file.write_text("prot = 1\n")
    done = await offline("status", **{**plain, "CONVENER_SETTINGS_FILE": str(file)})
    assert done.code == 2
    assert "did you mean port?" in done.err
