"""Mode and bounds that `convener up` is asked for: written down once, and only what differs."""

import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from app.admin.store.config import Version
from app.cli import up_run
from app.cli.pool_options import PoolInForce, PoolOptions
from app.cli.preparation import apply, configure
from app.cli.stack import Preparation, Stack, StackError
from app.cli.supervisor import Supervisor
from app.db.database import Database
from app.kernel.access import Role
from app.kernel.modes import Mode
from app.settings import Settings
from tests.support.sql import value
from worker_agent.connections.trust import SYSTEM_TRUST


async def _granted(database: Database, wish: PoolOptions) -> Version:
    return await apply(database, Mode.DEVELOPMENT, wish, by="me")


async def test_without_a_wish_a_new_database_gets_the_preset(database: Database) -> None:
    for _ in range(2):
        found = await _granted(database, PoolOptions())
        assert (found.version, found.mode, found.document.worker_pool.max_workers) == (1, Mode.DEVELOPMENT, 5)


async def test_mode_and_bounds_become_a_version_once(database: Database) -> None:
    wish = PoolOptions(mode=Mode.PRODUCTION, min_workers=2, max_workers=12, reason="convener up")
    for _ in range(2):
        found = await _granted(database, wish)
        pool = found.document.worker_pool
        assert (found.mode, pool.min_workers, pool.max_workers) == (Mode.PRODUCTION, 2, 12)
        assert (found.version, found.changed_by, found.reason) == (2, "me", "convener up")
    assert await value(database, "SELECT count(*) FROM audit") == 2


async def test_another_mode_is_switched_to(database: Database) -> None:
    await _granted(database, PoolOptions())
    found = await _granted(database, PoolOptions(mode=Mode.TRUSTED_TESTER, reason="guests"))
    assert (found.mode, found.document.worker_pool.max_workers, found.version) == (Mode.TRUSTED_TESTER, 50, 2)
    assert (await _granted(database, PoolOptions())).version == 2


async def test_bounds_that_cannot_be_are_refused_in_words(database: Database) -> None:
    with pytest.raises(StackError, match="min_workers must not be above max_workers, which is 5"):
        await configure(database, Mode.DEVELOPMENT, PoolOptions(min_workers=9), "cvn_id_secret")


@pytest.mark.parametrize(
    ("wish", "size", "words"),
    [
        (PoolOptions(), 3, "3, always (development allows 2 to 5)"),
        (PoolOptions(), 9, "5, always (development allows 2 to 5; 9 were asked for)"),
        (PoolOptions(), 0, "none are started here"),
        (PoolOptions(mode=Mode.PRODUCTION, min_workers=2, max_workers=12), 3, "3 now, then 2 to 12 as the queue needs"),
    ],
)
async def test_the_welcome_says_what_the_pool_will_do(
    database: Database, tmp_path: Path, wish: PoolOptions, size: int, words: str
) -> None:
    machine = Stack(
        url="",
        own_address="",
        trust=SYSTEM_TRUST,
        preparation=Preparation(
            keys={},
            new_keys=frozenset(),
            pool=await configure(database, Mode.DEVELOPMENT, wish, ""),
        ),
        supervisor=Supervisor(None, [], tmp_path / "children.json"),
    )
    assert words in up_run._pool_plan(machine, Settings(pool_size=size))


@pytest.mark.parametrize(("is_terminal", "is_new"), [(True, True), (False, True), (True, False), (False, False)])
def test_no_journal_gets_the_key_of_the_operator_and_everybody_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, is_new: bool
) -> None:
    """A key is not new either where a start made it that failed afterwards."""
    machine = Stack(
        url="http://here",
        own_address="unix:/here",
        trust=SYSTEM_TRUST,
        preparation=Preparation(
            keys={Role.OPERATOR: "cvn_a_secret"},
            new_keys=frozenset({Role.OPERATOR} if is_new else ()),
            pool=PoolInForce(mode=Mode.DEVELOPMENT, min_workers=2, max_workers=5),
        ),
        supervisor=Supervisor(None, [], tmp_path / "children.json"),
    )
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    # Colour that was forced makes no terminal of a journal.
    monkeypatch.setattr(up_run, "console", Console(file=stream, force_terminal=True))
    welcome = str(up_run._welcome(machine, Settings(state_directory=tmp_path)).renderable)
    assert ("cvn_a_secret" in welcome) == (is_terminal and is_new)
    assert str(tmp_path / "operator.key") in welcome


def test_the_command_for_another_terminal_can_be_pasted(tmp_path: Path) -> None:
    machine = Stack(
        url="http://here",
        own_address="unix:/here",
        trust=SYSTEM_TRUST,
        preparation=Preparation(
            keys={}, new_keys=frozenset(), pool=PoolInForce(mode=Mode.DEVELOPMENT, min_workers=2, max_workers=5)
        ),
        supervisor=Supervisor(None, [], tmp_path / "children.json"),
    )
    state = tmp_path / "Anna's state"
    welcome = str(up_run._welcome(machine, Settings(state_directory=state)).renderable)
    words = shlex.split(welcome.partition("In another terminal: ")[2])
    assert words == [f"CONVENER_STATE_DIRECTORY={state}", "convener", "status"]


def test_whoever_grants_permits_finishes_before_the_limits_change() -> None:
    """The lock is registered by the module that grants them, which a process of its own has to bring along."""
    code = "import app.cli.preparation; from app.admin.service import config; print(len(config._LOCKS))"
    process = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "1"
