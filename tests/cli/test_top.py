"""`convener top`: what it shows, how it acts, and what it does where it cannot."""

import asyncio
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from app.cli import top
from app.cli.top_api import RemoteViewer
from app.cli.top_app import Choice, Question, Top
from app.kernel.access import Role
from app.terminal.client import Client
from app.terminal.connection import Access
from tests.support.command_line import CommandLine, Service
from tests.support.ports import free_port


async def _app(live_service: Service, role: Role, url: str | None = None) -> Top:
    access = Access(url=live_service.url, key=live_service.keys[role])

    def whoami() -> Any:
        with Client(access) as client:
            return client.get("/whoami")

    key = await asyncio.to_thread(whoami)
    return Top(RemoteViewer(Access(url=url or access.url, key=access.key), key), 0.2)


async def _until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await pilot.pause(0.05)


def _texts(app: Top, table: str) -> list[list[str]]:
    shown = app.query_one(f"#{table}", DataTable)
    return [[cell.plain for cell in shown.get_row_at(number)] for number in range(shown.row_count)]


def _row(app: Top, table: str, first: str) -> list[str]:
    return next((row for row in _texts(app, table) if row[0] == first), [])


async def _enter(pilot: Pilot[None], app: Top, table: str, first: str) -> None:
    shown = app.query_one(f"#{table}", DataTable)
    shown.focus()
    shown.move_cursor(row=[row[0] for row in _texts(app, table)].index(first))
    await pilot.press("enter")


async def test_it_shows_what_goes_on_and_acts_after_a_question(live_service: Service, convener: CommandLine) -> None:
    worker = await live_service.register("top-1")
    app = await _app(live_service, Role.OPERATOR)
    async with app.run_test(size=(140, 60)) as pilot:
        await _until(pilot, lambda: bool(_texts(app, "agents")) and bool(_row(app, "workers", "top-1")))
        assert str(app.query_one("#verdict", Static).render()) != "looking"
        assert [row[1] for row in _texts(app, "attention")], "the loops do not run, so something is told of"
        # Escape leaves everything as it is.
        await _enter(pilot, app, "agents", "ranking")
        await _until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("escape")
        await _until(pilot, lambda: not isinstance(app.screen, Question))
        assert (await convener("queues", "status", "-o", "json")).json["paused"] == []
        await _enter(pilot, app, "agents", "ranking")
        await _until(pilot, lambda: isinstance(app.screen, Question))
        app.screen.query_one(Input).value = "upkeep"
        await pilot.press("enter")
        await _until(pilot, lambda: "paused" in _row(app, "agents", "ranking"))
        (pause,) = (await convener("queues", "status", "-o", "json")).json["paused"]
        assert (pause["agent_type"], pause["reason"]) == ("ranking", "upkeep")
        await _enter(pilot, app, "agents", "ranking")
        await _until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("enter")
        await _until(pilot, lambda: "leased" in _row(app, "agents", "ranking"))
        # Of several actions one is chosen first; they are drain, restart and stop.
        await _enter(pilot, app, "workers", "top-1")
        await _until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("enter")
        await _until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("enter")
        await _until(pilot, lambda: "draining" in _row(app, "workers", "top-1"))
    assert (await convener("workers", "get", worker["worker_id"], "-o", "json")).json["directive"] == "drain"


@pytest.mark.parametrize("width", [80, 120, 200])
async def test_what_to_do_is_on_the_screen_whatever_its_width(live_service: Service, width: int) -> None:
    app = await _app(live_service, Role.OPERATOR)
    async with app.run_test(size=(width, 60)) as pilot:
        await _until(pilot, lambda: bool(_texts(app, "attention")))
        table = app.query_one("#attention", DataTable)
        await _until(pilot, lambda: table.virtual_size.width > 0)
        await pilot.pause()
        assert table.virtual_size.width <= width
        texts = [text for row in _texts(app, "attention") for text in row[1:]]
        lines = [row.height for row in table.ordered_rows]
        # Nothing is cut: the lines of a row hold the longer of its sentences.
        wide = max(column.width for column in table.ordered_columns)
        assert sum(lines) * wide >= max(map(len, texts))
        assert max(lines) > 1 or max(map(len, texts)) <= wide


async def test_a_key_is_offered_what_it_may_do(live_service: Service) -> None:
    app = await _app(live_service, Role.READER)
    async with app.run_test(size=(140, 60)) as pilot:
        await _until(pilot, lambda: bool(_texts(app, "agents")))
        await _enter(pilot, app, "agents", "ranking")
        await _until(pilot, lambda: bool(app._notifications))
        assert not isinstance(app.screen, Question)


async def test_a_question_fits_into_a_narrow_terminal(live_service: Service) -> None:
    app = await _app(live_service, Role.OPERATOR)
    async with app.run_test(size=(40, 60)) as pilot:
        await _until(pilot, lambda: bool(_texts(app, "agents")))
        await _enter(pilot, app, "agents", "ranking")
        await _until(pilot, lambda: isinstance(app.screen, Question))
        await _until(pilot, lambda: 0 < app.screen.query_one(".question").region.width <= 40)


async def test_an_outage_is_told_and_waited_out(live_service: Service) -> None:
    app = await _app(live_service, Role.OPERATOR, f"http://127.0.0.1:{free_port()}")
    async with app.run_test() as pilot:
        await _until(pilot, lambda: "does not answer" in str(app.query_one("#verdict", Static).render()))


async def test_a_look_under_way_may_end_after_the_parts_of_the_screen(live_service: Service) -> None:
    """As on a busy machine: quitting ended with a traceback."""
    app = await _app(live_service, Role.OPERATOR)
    async with app.run_test() as pilot:
        await _until(pilot, lambda: "looking" not in str(app.query_one("#verdict", Static).render()))
        await app.screen.remove_children()
        await app.action_refresh().wait()


async def test_where_there_is_no_terminal_or_no_package_it_says_what_to_do(
    convener: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = await convener("top")
    assert (refused.code, "convener status --watch" in refused.err) == (2, True)
    monkeypatch.setattr(top, "find_spec", lambda name: None if name == "textual" else importlib.util.find_spec(name))
    refused = await convener("top")
    assert (refused.code, "convener[top]" in refused.err) == (1, True)
