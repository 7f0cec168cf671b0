"""What `convener doctor` tells about memory, environment, files, the database's role and the bundled server."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from app.cli import secrecy_checks
from app.cli.checks import Check, Status
from app.postgres.binaries import Binaries
from app.postgres.cluster import Cluster


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of the settings, with a key and a log, all private."""
    for name in [name for name in os.environ if name.startswith(("CONVENER_", "PG"))]:
        monkeypatch.delenv(name)
    state = tmp_path / "state"
    (state / "logs").mkdir(parents=True, mode=0o700)
    state.chmod(0o700)
    for name in ("operator.key", "logs/api.log"):
        (state / name).touch(mode=0o600)
    monkeypatch.setenv("CONVENER_STATE_DIRECTORY", str(state))
    return state


def _only(checks: Iterable[Check]) -> Check:
    (check,) = checks
    assert bool(check.remedy) == (check.status is not Status.OK)
    return check


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_program_with_secrets_is_closed(state: Path) -> None:
    """The command closes itself before it does anything; as a part of the test it cannot."""
    shown = subprocess.run([sys.executable, "-m", "app.cli", "doctor"], capture_output=True, text=True)
    assert re.search(r"^ok +memory ", shown.stdout, re.MULTILINE), shown
    assert _only(secrecy_checks.process_memory()).status is Status.WARNING


def test_secrets_in_the_environment_are_named_and_not_shown(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _only(secrecy_checks.environment()).status is Status.OK
    monkeypatch.setenv("CONVENER_LLM_KEY_FILE", "/etc/convener/llm.key")
    assert _only(secrecy_checks.environment()).status is Status.OK
    # Its password is in a file.
    monkeypatch.setenv("CONVENER_DATABASE_URL", "postgresql://convener@127.0.0.1:6432/convener")
    assert _only(secrecy_checks.environment()).status is Status.OK
    monkeypatch.setenv("CONVENER_DATABASE_DIRECT_URL", "postgresql://convener:hidden@db1,db2/convener")
    assert "CONVENER_DATABASE_DIRECT_URL" in _only(secrecy_checks.environment()).detail
    # What cannot be read may hold one.
    monkeypatch.setenv("CONVENER_DATABASE_DIRECT_URL", "postgresql://convener:hidden@[db1/convener")
    assert "CONVENER_DATABASE_DIRECT_URL" in _only(secrecy_checks.environment()).detail
    monkeypatch.delenv("CONVENER_DATABASE_DIRECT_URL")
    monkeypatch.setenv("CONVENER_LLM_KEY", "cvn_1_hidden")
    monkeypatch.setenv("CONVENER_KEY", "cvn_2_hidden")
    check = _only(secrecy_checks.environment())
    assert check.status is Status.WARNING
    assert "CONVENER_LLM_KEY, CONVENER_KEY" in check.detail
    assert "hidden" not in str(check)
    assert "CONVENER_LLM_KEY_FILE=" in check.remedy
    monkeypatch.delenv("CONVENER_LLM_KEY")
    assert "CONVENER_KEY_FILE=" in _only(secrecy_checks.environment()).remedy


@pytest.mark.parametrize("name", ["", "operator.key", "logs", "logs/api.log"])
def test_what_others_can_read_is_a_failure(state: Path, name: str) -> None:
    assert _only(secrecy_checks.private_files()).status is Status.OK
    (state / name).chmod(0o640 if (state / name).is_file() else 0o750)
    check = _only(secrecy_checks.private_files())
    assert (check.status, str(state / name) in check.remedy) == (Status.FAILED, True)


def test_a_role_with_more_rights_than_it_needs_is_named(
    state: Path, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role of the tests makes databases."""
    monkeypatch.setenv("CONVENER_DATABASE_URL", server_url)
    check = _only(secrecy_checks.database_role())
    assert check.status is Status.WARNING
    assert "createdb" in check.detail or "superuser" in check.detail


def test_a_database_that_is_away_is_no_failure(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVENER_DATABASE_URL", "postgresql://me:hidden@127.0.0.1:1/none")
    check = _only(secrecy_checks.database_role())
    assert check.status is Status.WARNING
    assert "hidden" not in str(check)


def test_the_bundled_server_is_looked_at_without_a_change(state: Path, binaries: Binaries) -> None:
    assert list(secrecy_checks.bundled_server()) == []
    cluster = Cluster(directory=state / "postgres", binaries=binaries, settings={"fsync": "off"})
    with cluster.lock():
        cluster.initialise()
    before = {path: path.lstat().st_uid for path in cluster.directory.rglob("*")}
    check = _only(secrecy_checks.bundled_server())
    assert ("of its own" if os.geteuid() == 0 else "your user") in check.detail or check.status is Status.WARNING
    assert {path: path.lstat().st_uid for path in cluster.directory.rglob("*")} == before
