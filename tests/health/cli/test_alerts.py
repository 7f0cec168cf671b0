"""`convener alerts` against the real service."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from app.db.database import Database
from app.health.rules.finding import AlertKey, AlertRule, Level, Symptom
from app.health.store import alerts
from app.kernel.access import Role
from tests.support.command_line import CommandLine, Service
from tests.support.sql import execute


@pytest.fixture
async def alert(live_service: Service) -> AsyncIterator[int]:
    """The number of an alert that stands."""
    database = Database(live_service.database_url)
    symptom = Symptom(
        code="breaker_open",
        key=AlertKey(rule=AlertRule.BREAKER_OPEN, subject=uuid4().hex),
        level=Level.CRITICAL,
        message="[bold]it fails\x1b[2J",
        advice="ask the provider",
        facts={"share": 0.5},
    )
    async with database.transaction() as connection:
        opened = await alerts.open_alert(connection, symptom)
    assert opened is not None
    yield opened.id
    await execute(database, "DELETE FROM alerts WHERE id = $1", opened.id)
    await database.close()


async def test_see_it_say_so_and_see_that(convener: CommandLine, alert: int) -> None:
    result = await convener("alerts", "ls", "--severity", "critical")
    assert result.code == 0
    line = next(line for line in result.out.splitlines() if line.strip().startswith(str(alert)))
    assert "open" in line
    assert "[bold]it fails" in line
    assert "\x1b" not in result.out
    result = await convener("alerts", "ack", str(alert), "--note", "on it")
    assert (result.code, "on it" in result.out, "acknowledged" in result.out) == (0, True, True)
    shown = (await convener("alerts", "get", str(alert), "-o", "json")).json
    assert (shown["state"], shown["note"]) == ("acknowledged", "on it")
    assert "ask the provider" in (await convener("alerts", "get", str(alert))).out
    items = (await convener("alerts", "ls", "--state", "acknowledged", "--rule", "breaker_open", "-o", "json")).json
    assert [item["id"] for item in items["items"]] == [alert]


async def test_nothing_is_wrong(convener: CommandLine) -> None:
    result = await convener("alerts", "ls", "--rule", "queue_growth")
    assert (result.code, result.out) == (0, "nothing is wrong\n")
    assert "the background loops have never looked" in result.err
    assert (await convener("alerts", "ls", "--state", "resolved")).out == "there are none\n"


async def test_plain_errors(convener: CommandLine, live_service: Service, alert: int) -> None:
    result = await convener("alerts", "get", "999999")
    assert (result.code, result.out) == (5, "")
    assert "convener alerts ls" in result.err
    assert (await convener("alerts", "get", "none")).code == 2
    unknown = await convener("alerts", "ls", "--severity", "sad")
    assert (unknown.code, "'warning', 'critical'" in unknown.err) == (2, True)
    assert (await convener("alerts", "ack", str(alert), CONVENER_KEY=live_service.keys[Role.READER])).code == 4


async def test_the_status_tells_of_them(convener: CommandLine, alert: int) -> None:
    line = next(line for line in (await convener("status")).out.splitlines() if line.startswith("Alerts"))
    assert "1 critical: `convener alerts ls`" in line
