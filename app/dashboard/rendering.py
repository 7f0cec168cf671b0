"""Pages from templates: numbers and times as people read them, and everything that others wrote as text."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import Response

from app.dashboard.access import HOME, Viewer, here, notice, take_notice
from app.dashboard.actions import ACTIONS, Action, action_of
from app.dashboard.assets import asset_url, edition
from app.kernel.access import Scope
from app.kernel.resources import in_words, read

# Nothing inline, nothing from elsewhere, in no frame, and forms lead back here.
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
# Where there is nothing to tell: a dash of the width of a digit.
NOTHING = "\N{EN DASH}"
# Of each page its address below that of the first, its name, and the scopes without which it has nothing to show.
PAGES: tuple[tuple[str, str, tuple[Scope, ...]], ...] = (
    ("", "Now", (Scope.MONITOR,)),
    ("/tasks", "Tasks", (Scope.READ, Scope.CONTENT)),
    ("/workers", "Workers", (Scope.READ,)),
    ("/goals", "Goals", (Scope.READ, Scope.CONTENT)),
    ("/agents", "Agents", (Scope.READ,)),
    ("/models", "Models", (Scope.READ,)),
    ("/decisions", "Decisions", (Scope.MONITOR,)),
    ("/config", "Configuration", (Scope.READ,)),
    ("/alerts", "Alerts", (Scope.READ,)),
    ("/audit", "Audit", (Scope.READ,)),
)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.dashboard"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "amount": amount,
        "dollars": dollars,
        "bound": bound,
        "duration": duration,
        "moment": moment,
        "percent": percent,
        "pretty": pretty,
        "resources": resources,
        "seconds_to": seconds_to,
        "share": share,
        "ticked": ticked,
        "words": words,
    }
    environment.globals |= {
        "asset": asset_url,
        "edition": edition,
        "home": HOME,
        "Scope": Scope,
        "actions_named": _actions_named,
        "action_of": action_of,
    }
    return environment


def render(template: str, values: Mapping[str, Any]) -> str:
    """The text of a template."""
    return _environment().get_template(template).render(values)


def page(viewer: Viewer, template: str, values: Mapping[str, Any], *, status: int = 200) -> Response:
    """A page for a viewer."""
    request = viewer.request
    sections = [(HOME + path, name) for path, name, scopes in PAGES if viewer.may(*scopes) and _is_for(viewer, path)]
    shown = {"viewer": viewer, "csrf": viewer.csrf, "may": viewer.may, "sections": sections, "at": present()}
    place = {"path": request.scope["path"], "here": here(request), "notice": notice(request)}
    response = open_page(template, {**shown, **place, **values}, status=status)
    take_notice(request, response)
    return response


def open_page(template: str, values: Mapping[str, Any], *, status: int = 200) -> Response:
    """A page for whoever asks."""
    return Response(render(template, values), status_code=status, media_type="text/html", headers=SECURITY)


def _is_for(viewer: Viewer, path: str) -> bool:
    """Whether a page shows something to keys of one namespace, where the viewer has one."""
    return not viewer.principal.is_confined or path in ("/tasks", "/goals")


def _actions_named(names: str, may: Callable[..., bool]) -> list[tuple[str, Action]]:
    """Those of these actions that the viewer may take."""
    return [(name, ACTIONS[name]) for name in names.split() if may(*ACTIONS[name].scopes)]


def amount(value: float | None, digits: int = 0) -> str:
    """A number with separators; a dash for none."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A percentage; a dash for none."""
    return NOTHING if value is None else f"{value:,.{digits}f} %"


def share(value: float | None) -> str:
    """A share of 1 as a percentage; a dash for none."""
    return percent(None if value is None else 100 * value)


def dollars(value: float | None) -> str:
    """US dollars, with more digits where there is less than one; a dash for none."""
    return NOTHING if value is None else f"${value:,.2f}" if abs(value) >= 1 or not value else f"${value:,.4f}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units; a dash for none."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def present() -> str:
    """The present time, from which browsers count ages on."""
    return datetime.now(UTC).isoformat()


def seconds_to(since: str, until: str) -> float:
    """Seconds from one time to a later one."""
    return max(0.0, (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds())


def moment(text: str | None) -> str:
    """A time to the second, UTC; a dash for none."""
    return NOTHING if not text else datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S")


def words(text: object) -> str:
    """A name of the API in words."""
    return str(text).replace("_", " ")


def ticked(text: str) -> Markup:
    """Words with what stands between backticks as code."""
    parts = text.split("`")
    pieces = [
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    ]
    return Markup("").join(pieces)


def resources(content: Mapping[str, Any]) -> str:
    """Amounts that a task asks for, or a worker offers, in words."""
    return in_words(read(content).amounts())


def bound(value: float) -> str:
    """The bound of a setting, as short as it can be."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def pretty(value: Any) -> str:
    """JSON with indents."""
    return json.dumps(value, indent=2, ensure_ascii=False)
