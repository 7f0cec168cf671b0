"""The first page: the verdict and its reasons, workers, agents, models, and what needs attention; kept up to date."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from starlette.responses import Response

from app.dashboard.access import HOME, Viewer
from app.dashboard.api_calls import Refused
from app.dashboard.attention import attention
from app.dashboard.feed import CSRF_PLACE, Budget, Feed, Feeds, Look, News, shown
from app.dashboard.rendering import amount, page, percent, present, render, words
from app.dashboard.sight import IDLE_SECONDS, TOPICS, LastHours, Looker, Sight, read_report
from app.dashboard.sparklines import Sparkline, sparkline
from app.http.services import Services
from app.http.streaming import EventStream
from app.kernel.agents import AgentType
from app.kernel.errors import Forbidden
from app.kernel.text import plural
from app.queue.api.event_stream import EventReaders

_UNAVAILABLE = 503
# Of a list on the page; another page has the rest.
_SHOWN = 50
# Of each region the values that it shows, besides those that are the same for all who share a feed.
REGIONS: Mapping[str, Sequence[str]] = {
    "verdict": ("report", "verdict"),
    "figures": ("figures", "decision", "fleet"),
    "attention": ("items", "item_count"),
    "agents": ("agents", "is_reader", "oldest_since"),
    "models": ("models", "model_count"),
}
_VERDICT = "verdict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number with what it means, and its last hour."""

    name: str
    value: str
    note: str
    curve: Sparkline | None = None
    since: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    """An agent type as a line of the table."""

    name: AgentType
    queued: int
    running: int
    per_minute: float | None
    weight: float | None
    share: float | None
    mean_seconds: float | None
    pause: Mapping[str, Any] | None
    curve: Sparkline | None
    oldest: str | None
    oldest_is_exact: bool


async def show(viewer: Viewer) -> Response:
    """The page as it is now."""
    if viewer.principal.is_confined:
        # Of one namespace: everything here is of the whole service.
        return Response(status_code=303, headers={"Location": f"{HOME}/tasks"})
    services: Services = viewer.request.app.state.services
    looker = Looker(services.database, last_hour=services[LastHours].of(viewer.rights))
    sight = await _look(viewer, looker, None)
    values = await _values(viewer, sight)
    names = (_VERDICT,) if isinstance(sight, Refused) else REGIONS
    return page(viewer, "now.html", {"regions": {name: shown(_region(name, values), viewer.csrf) for name in names}})


async def stream(viewer: Viewer) -> Response:
    """The regions of the page, each again whenever it has changed."""
    if viewer.principal.is_confined:
        raise Forbidden("this page is about the whole service; the key belongs to a namespace")
    services: Services = viewer.request.app.state.services
    services[EventReaders].check(viewer.principal.key_id)
    feed = feed_of(viewer)
    return EventStream("0", feed.follow(viewer))


def feed_of(viewer: Viewer) -> Feed:
    """The feed of the page, which a viewer shares with others."""
    services: Services = viewer.request.app.state.services

    def new_look(budget: Budget) -> Look:
        return _look_by(Looker(services.database, budget, services[LastHours].of(viewer.rights)))

    return services[Feeds].of(viewer, HOME, new_look, topics=TOPICS, idle_seconds=IDLE_SECONDS)


def _look_by(looker: Looker) -> Look:
    last_sight: Sight | None = None
    last_values: Mapping[str, Any] = {}
    regions: Mapping[str, str] = {}

    async def look(viewer: Viewer, news: News) -> Mapping[str, str]:
        nonlocal last_sight, last_values, regions
        sight = await _look(viewer, looker, news)
        if isinstance(sight, Refused):
            return {_VERDICT: _region(_VERDICT, await _values(viewer, sight))}
        if sight is not last_sight:
            values = await _values(viewer, sight)
            changes = [name for name, parts in REGIONS.items() if _pick(values, parts) != _pick(last_values, parts)]
            regions = {**regions, **{name: _region(name, values) for name in changes}}
            last_sight, last_values = sight, values
        return regions

    return look


def _region(name: str, values: Mapping[str, Any]) -> str:
    return render(f"now/{name}.html", values)


def _pick(values: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """These values; None before there are any."""
    return [values.get(name) for name in names]


async def _look(viewer: Viewer, looker: Looker, news: News) -> Sight | Refused:
    """Look, or return why the database cannot be asked. Raises Refused for whatever else is refused."""
    try:
        return await looker.look(viewer, news)
    except Refused as refusal:
        if refusal.status != _UNAVAILABLE:
            raise
        return refusal


async def _values(viewer: Viewer, sight: Sight | Refused) -> dict[str, Any]:
    """The values of all regions; of the verdict alone while the database is away."""
    if isinstance(sight, Refused):
        report = await read_report(viewer.api)
        return {"report": report, "verdict": sentence_of(report) or f"Critical: {sight.sentence}."}
    return view_of(viewer, sight)


def view_of(viewer: Viewer, sight: Sight) -> dict[str, Any]:
    """The values of all regions."""
    items = attention(sight)
    # Where there are more than are shown, those in order are left out.
    models = sight.models if len(sight.models) <= _SHOWN else sorted(sight.models, key=lambda it: it["state"] == "ok")
    return {
        "may": viewer.may,
        "csrf": CSRF_PLACE,
        "here": HOME,
        "report": sight.report,
        "verdict": verdict(sight),
        "figures": _figures(sight),
        "decision": sight.decision,
        "fleet": sight.fleet,
        "items": items[:_SHOWN],
        "item_count": len(items),
        "agents": _agent_rows(sight),
        "models": models[:_SHOWN],
        "model_count": len(models),
        "is_reader": bool(sight.agents),
        "oldest_since": _oldest_since(sight.queues),
        "at": present(),
    }


def verdict(sight: Sight) -> str:
    """The state of the whole service in one sentence."""
    if sentence := sentence_of(sight.report):
        return sentence
    pool, depth = sight.report["worker_pool_health"], sight.queues["depth"]["total"]
    healthy, total = (pool["healthy_workers"], pool["total_workers"]) if pool else (0, sight.fleet["total"])
    waiting = plural(depth, "task waits", "tasks wait") if depth else "nothing waits"
    return f"All is well: {healthy:,} of {plural(total, 'worker')} {'is' if total == 1 else 'are'} healthy, {waiting}."


def sentence_of(report: Mapping[str, Any]) -> str:
    """The worst of what a health report tells, in one sentence; "" where nothing is wrong."""
    worst = [reason for reason in report["reasons"] if reason["level"] != "note"]
    if not worst:
        return ""
    others = f", and {plural(len(worst) - 1, 'more reason')}" if len(worst) > 1 else ""
    return f"{report['overall_health'].capitalize()}: {worst[0]['message'] or words(worst[0]['code'])}{others}."


def _figures(sight: Sight) -> list[Figure]:
    fleet, queues, hour = sight.fleet, sight.queues, sight.hour
    states, capacity = fleet["workers"], queues["capacity"]
    leasable = states["busy"] + states["ready"]
    target = sight.decision["target_workers"] if sight.decision else None
    minute, totals = queues["throughput"]["last_minute"], queues["totals"]
    return [
        Figure(
            name="Workers",
            value=amount(fleet["total"]),
            note=f"target {amount(target)}, {fleet['min_workers']:,} to {fleet['max_workers']:,} allowed; "
            f"{states['busy']:,} busy, {states['ready']:,} idle"
            + (f", {states['starting']:,} starting" if states["starting"] else "")
            + (f", {states['draining']:,} draining" if states["draining"] else ""),
            curve=sparkline(hour.target, "workers wanted"),
        ),
        Figure(
            name="Busy",
            # As the health report counts, and the curve, which is a minute old at most.
            value=percent(100 * states["busy"] / leasable if leasable else None),
            note=f"processors {_last(hour.processors)} in use, mean of a minute" if hour.processors else "of the pool",
            curve=sparkline(hour.busy, "% busy", ceiling=100),
        ),
        Figure(
            name="Queued",
            value=amount(queues["depth"]["total"]),
            note=f"room for {capacity['max_queue_size']:,}, {100 * capacity['fullness']:.0f} % full",
            curve=sparkline(_sums(hour.depth_by_agent.values()), "waiting"),
            since=min(_oldest_since(queues).values(), default=None),
        ),
        Figure(
            name="Finished a minute",
            value=amount(60 * minute["completed"]),
            note=f"{60 * minute['submitted']:,.0f} submitted, {60 * minute['failed']:,.0f} failed; "
            f"{totals['completed']:,} completed in all",
            curve=sparkline(hour.finished, "a minute"),
        ),
    ]


def _oldest_since(queues: Mapping[str, Any]) -> dict[str, str]:
    """Since when the oldest task of each priority waits, to the second."""
    at = datetime.fromisoformat(queues["at"])
    return {
        name: (at - timedelta(seconds=wait["oldest_waiting"])).replace(microsecond=0).isoformat()
        for name, wait in queues["waits"].items()
        if wait["oldest_waiting"]
    }


def _sums(rows: Iterable[Sequence[float | None]]) -> list[float]:
    return [sum(value or 0.0 for value in values) for values in zip(*rows, strict=True)]


def _last(values: Sequence[float | None]) -> str:
    measured = [value for value in values if value is not None]
    return percent(measured[-1] if measured else None)


def _agent_rows(sight: Sight) -> list[AgentRow]:
    queues = sight.queues
    pauses = {pause["agent_type"]: pause for pause in queues["paused"]}
    finished = {agent: queues["service_times"][agent]["tasks"] for agent in AgentType}
    in_all = sum(finished.values())
    rows = []
    for agent in AgentType:
        lanes = queues["queues"][agent].values()
        report = sight.agents.get(agent, {})
        oldest, pending = sight.oldest.get(agent), sum(lane["pending"] for lane in lanes)
        rows.append(
            AgentRow(
                name=agent,
                queued=queues["depth"]["by_agent"][agent],
                running=sum(lane["assigned"] + lane["executing"] for lane in lanes),
                per_minute=finished[agent] / 5,
                weight=report.get("weight"),
                share=finished[agent] / in_all if in_all else None,
                mean_seconds=report.get("service_seconds"),
                pause=pauses.get(agent),
                curve=sparkline(sight.hour.depth_by_agent.get(agent, ()), "waiting"),
                oldest=oldest.since.replace(microsecond=0).isoformat() if oldest and pending else None,
                oldest_is_exact=oldest is not None and oldest.is_exact,
            )
        )
    return rows
