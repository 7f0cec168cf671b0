"""Agents: weights and effectiveness over time, why they changed, and the orders of people for them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.dashboard.agents import result_chart
from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.browsers import browser
from tests.support.agent_results import add_example_2_results, configure_example_2, let_minute_pass, tick
from tests.support.service import Service

_HOSTILE = "<img src=x onerror=alert(1)>\"'"


async def test_weights_and_their_reasons_are_those_of_the_api(service: Service, database: Database) -> None:
    async with browser(service, Role.READER) as somebody:
        assert "They have not changed yet" in await somebody.page("/dashboard/agents")
        await configure_example_2(database)
        await tick(database)
        await add_example_2_results(database)
        for _ in range(2):
            await tick(database)
            await let_minute_pass(database)
        page = await somebody.page("/dashboard/agents?per=minute")
    weights = await service.get("/weights")
    for name, step in weights["agent_weight_adjustments"].items():
        row = page.split(f"agent_type={name.removesuffix('_agent')}")[1].split("</tr>")[0]
        assert f"{100 * step['new_weight']:.1f} %: {step['reason']}" in row
    for agent in (await service.get("/agents"))["items"]:
        row = page.split(f"agent_type={agent['agent_type']}")[1].split("</tr>")[0]
        assert f'<td class="n">{100 * agent["weight"]:.1f} %</td>' in row
    # A curve of each agent, readable as a sentence.
    chart = page.split('aria-label="Weights over time"')[1].split("</section>")[0]
    assert len(re.findall(r'<path class="line c\d"', chart)) == 6
    assert "weights over time; now generation" in chart


async def test_people_override_the_weights_for_a_while_and_set_them_for_good(service: Service) -> None:
    async with browser(service, Role.SUPERVISOR) as somebody:
        order = {"ranking": "40", "evolution": "20.5", "minutes": "15", "reason": _HOSTILE}
        assert "ends after 15 minutes" in await somebody.do("override-weights", **order)
        override = (await service.get("/weights"))["override"]
        assert override["weights"]["ranking_agent"] == pytest.approx(0.4)
        assert override["weights"]["evolution_agent"] == pytest.approx(0.205)
        ends = datetime.fromisoformat(override["expires_at"]) - datetime.now(UTC)
        assert timedelta(minutes=14) < ends <= timedelta(minutes=15)
        page = await somebody.page("/dashboard/agents")
        assert "The weights are overridden" in page
        assert "<img" not in page
        assert "&lt;img src=x" in page
        assert "/do/end-override" in page
        assert "go back" in await somebody.do("end-override", reason="done")
        assert (await service.get("/weights"))["override"] is None
        assert "from there on" in await somebody.do("set-weights", ranking="30", reason="for good")
        assert (await service.get("/weights"))["base"]["ranking_agent"] == pytest.approx(0.3)
        assert "at least one agent" in await somebody.do("set-weights", reason="x")
        assert "must be a number" in await somebody.do("override-weights", **order | {"ranking": "much"})
        assert "ranking: must be 1 or less" in await somebody.do("set-weights", ranking="101")
    reasons = [version["reason"] for version in (await service.get("/weights/history"))["items"]]
    assert {"done", "for good", _HOSTILE} <= set(reasons)


async def test_readers_are_offered_no_orders_for_the_weights(service: Service) -> None:
    async with browser(service, Role.READER) as reader:
        assert "/do/" not in await reader.page("/dashboard/agents")
        assert "does not include" in await reader.do("set-weights", ranking="30", reason="x")
    assert (await service.get("/weights"))["version"] == 0


def _span(minutes: int, results: int, successes: int, quality: float | None, now: datetime) -> dict[str, Any]:
    start = (now - timedelta(minutes=minutes)).isoformat()
    judged = 0 if quality is None else 4
    return {"start": start, "results": results, "successes": successes, "judged": judged, "quality": quality}


def test_effectiveness_over_time_is_success_times_quality_where_somebody_judges() -> None:
    now = datetime.now(UTC)
    # The first results are judged in the second span; in the third nothing ends.
    spans = [_span(4, 4, 4, None, now), _span(3, 4, 2, 0.5, now), _span(2, 0, 0, 0.8, now), _span(1, 1, 1, None, now)]
    judged = {"agent_type": "ranking", "trend": spans}
    plain = {"agent_type": "evolution", "trend": [_span(3, 4, 4, None, now), _span(1, 4, 1, None, now)]}
    nothing: dict[str, Any] = {"agent_type": "proximity", "trend": []}
    chart = result_chart([judged, plain, nothing], "minute", now)
    assert chart
    assert [curve.name for curve in chart.curves] == ["ranking", "evolution (success alone)"]
    values = [[text.split(": ")[1].split(",")[0] for _, text in curve.dots] for curve in chart.curves]
    assert values == [["0.25", "0.40", "0.80"], ["1.00", "0.25"]]
    assert chart.label == "results by the minute: ranking now 0.80; evolution (success alone) now 0.25"
    assert (chart.across.labels[0], chart.across.labels[-1]) == ("-3", "0")
    assert chart.curves[0].style != chart.curves[1].style
    assert result_chart([nothing], "hour", now) is None
