"""Addresses of the pages, the session that each needs, and what is shown where it is refused."""

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import wraps
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.admin.rules.keys import read_key
from app.admin.service import sessions
from app.dashboard import agents, audit, configuration, details, goals, models, now, task, tasks
from app.dashboard.access import (
    HOME,
    LOGIN,
    Viewer,
    begin_session,
    check_viewer,
    check_word,
    forget_session,
    here,
    login_word,
    new_word,
    notify,
    offer_login,
    read_form,
    read_viewers_form,
    typed_fields,
    viewer_of,
)
from app.dashboard.actions import ACTIONS, filled
from app.dashboard.api_calls import Refused
from app.dashboard.assets import answer_asset
from app.dashboard.compression import compressed
from app.dashboard.lists import LISTINGS
from app.dashboard.rendering import open_page, page
from app.http.callers import Authenticator
from app.http.guard import requires
from app.http.problems import from_exception, status_of
from app.http.routing import Router
from app.http.services import Services
from app.kernel.access import Scope
from app.kernel.errors import ConvenerError, NotPermitted, ShuttingDown, Unauthenticated

# Public by its head: a page is reached by the session in a cookie, and shows what the API answers to that session.
router = Router(dependencies=[requires(Scope.PUBLIC)], include_in_schema=False)
View = Callable[[Viewer], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


def readable(endpoint: Endpoint) -> Endpoint:
    """The endpoint, but that an unexpected error is answered with a page, as whoever comes here is a person."""

    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return compressed(request, await endpoint(request))
        except (ClientDisconnect, HTTPException):
            raise
        except Exception as error:
            status = from_exception(error, request).status_code
            # A key that was typed into the login is shown to nobody.
            typed = {} if request.scope["path"] == LOGIN else typed_fields(request)
            sentence = "Something went wrong here: the log of the service has the details."
            return open_page("closed.html", {"sentence": sentence, "typed": typed}, status=status)

    return answer


def add_page(path: str, view: View, method: str = "GET") -> None:
    """Serve a view at an address, to those who have a session."""

    @readable
    async def endpoint(request: Request) -> Response:
        try:
            viewer = await viewer_of(request)
        except Unauthenticated:
            return await _to_login(request)
        except ConvenerError as error:
            return _closed_page(error)
        try:
            return await view(viewer)
        except Refused as refusal:
            return _refused_page(viewer, refusal)
        except ConvenerError as error:
            problem = {"detail": error.detail, "title": error.title(), "code": error.code}
            return _refused_page(viewer, Refused(status_of(type(error)), problem))

    router.add_api_route(path, endpoint, methods=[method], response_class=Response, include_in_schema=False)


async def _to_login(request: Request) -> Response:
    # What a page asks for by itself would be answered with the login form, which it would show in its midst.
    if request.method != "GET" or "hx-request" in request.headers:
        if request.method == "POST":
            with suppress(ConvenerError, ClientDisconnect):
                await read_form(request)
        error = Unauthenticated("the session has ended: log in again, then repeat it")
        return _closed_page(error, typed_fields(request))
    back = here(request)
    query = f"?{urlencode({'back': back})}" if back != HOME else ""
    return Response(status_code=303, headers={"Location": f"{LOGIN}{query}"})


def _closed_page(error: ConvenerError, typed: Mapping[str, str] | None = None) -> Response:
    return open_page("closed.html", {"sentence": error.detail, "typed": typed}, status=status_of(type(error)))


def _refused_page(viewer: Viewer, refusal: Refused) -> Response:
    back = _local(getattr(viewer.request.state, "form", {}).get("back"))
    values = {"refusal": refusal, "typed": typed_fields(viewer.request), "back": back}
    return page(viewer, "refused.html", values, status=refusal.status)


@router.get("/", response_class=Response)
async def root(request: Request) -> Response:
    """Lead a browser to the first page; there is nothing else here."""
    if "text/html" not in request.headers.get("accept", ""):
        raise HTTPException(404)
    return Response(status_code=303, headers={"Location": HOME})


@router.get("/dashboard/static/{digest}/{name}", response_class=Response)
async def asset(request: Request) -> Response:
    """A style or script."""
    return compressed(request, answer_asset(request.scope["path"]))


@router.get("/dashboard/login", response_class=Response)
@readable
async def login_page(request: Request) -> Response:
    """The form for a key; with the word of a link, its session."""
    link = request.query_params.get("link")
    if link is None:
        return _login_form(request)
    services: Services = request.app.state.services
    try:
        async with services.database.transaction() as connection:
            session = await sessions.open_by_link(connection, link)
    except Unauthenticated as error:
        return _login_form(request, f"{error.detail}: log in with a key", status=401)
    except ConvenerError as error:
        return _closed_page(error)
    # Not a redirect: where a page of somebody else leads here, browsers keep a strict cookie from what it leads to.
    response = open_page("entered.html", {})
    begin_session(request, response, session)
    return response


@router.post("/dashboard/login", response_class=Response)
@readable
async def log_in(request: Request) -> Response:
    """Begin a session with a key."""
    back = HOME
    try:
        fields = await read_form(request)
        back = _local(fields.get("back"))
        check_word(login_word(request), fields)
        session = await _session_of_key(request, fields.get("key", "").strip())
    except (Unauthenticated, NotPermitted) as error:
        return _login_form(request, error.detail, status=status_of(type(error)), back=back)
    except ConvenerError as error:
        return _closed_page(error)
    response = Response(status_code=303, headers={"Location": back})
    begin_session(request, response, session)
    return response


async def _session_of_key(request: Request, key: str) -> str:
    services: Services = request.app.state.services
    if services.stopping:
        raise ShuttingDown
    parts = read_key(key)
    if parts is None:
        # A session is no key: it must not prolong itself.
        raise Unauthenticated("a key looks like cvn_<id>_<secret>")
    principal = await services[Authenticator].recognise(key)
    check_viewer(principal)
    async with services.database.transaction() as connection:
        return await sessions.open_session(connection, principal.key_id, parts[1])


async def log_out(viewer: Viewer) -> Response:
    """End the session, here and everywhere."""
    await read_viewers_form(viewer)
    services: Services = viewer.request.app.state.services
    async with services.database.transaction() as connection:
        await sessions.end_session(connection, viewer.session)
    response = Response(status_code=303, headers={"Location": LOGIN})
    forget_session(viewer.request, response)
    return response


async def act(viewer: Viewer) -> Response:
    """Carry out an action, and return to the page that it was on."""
    fields = await read_viewers_form(viewer)
    action = ACTIONS.get(viewer.request.path_params["action"])
    if action is None:
        raise Refused(404, {"detail": "there is no such action"})
    path, query = filled(action.path, fields, is_path=True), action.query(fields)
    if_match = f'"{fields.get("version", "")}"' if action.is_versioned else None
    await viewer.api.ask(action.method, path, query=query, body=action.body(fields), if_match=if_match)
    response = Response(status_code=303, headers={"Location": _local(fields.get("back"))})
    notify(viewer.request, response, filled(action.done, fields, is_path=False))
    return response


def _login_form(request: Request, sentence: str = "", *, status: int = 200, back: str | None = None) -> Response:
    word = login_word(request) or new_word()
    values = {"csrf": word, "sentence": sentence, "back": back or _local(request.query_params.get("back"))}
    response = open_page("login.html", values, status=status)
    offer_login(request, response, word)
    return response


def _local(back: str | None) -> str:
    """The address of one of our own pages; that of the first for all others."""
    is_ours = back is not None and re.fullmatch(r"/dashboard([/?][!-~]*)?", back) is not None
    return back if back and is_ours and "/do/" not in back else HOME


add_page("/dashboard", now.show)
add_page("/dashboard/stream", now.stream)
add_page("/dashboard/tasks", tasks.show)
add_page("/dashboard/feeds/tasks", tasks.stream)
add_page("/dashboard/tasks/{task_id}", task.show)
add_page("/dashboard/tasks/{task_id}/output", task.output)
add_page("/dashboard/tasks/{task_id}/edit", task.edit)
add_page("/dashboard/tasks/{task_id}/submit", task.submit, "POST")
add_page("/dashboard/tasks/order", tasks.order, "POST")
add_page("/dashboard/goals", goals.show)
add_page("/dashboard/goals/{goal_id}", goals.show_one)
for listing in LISTINGS:
    add_page(f"/dashboard{listing.path}", listing.show)
    add_page(listing.feed_path, listing.stream)
add_page("/dashboard/decisions/{decision_id}", details.show_decision)
add_page("/dashboard/decisions/{decision_id}/replay", details.replay_decision, "POST")
add_page("/dashboard/decisions/{decision_id}/try", details.try_decision, "POST")
add_page("/dashboard/agents", agents.show)
add_page("/dashboard/models", models.show)
add_page("/dashboard/config", configuration.show)
add_page("/dashboard/config", configuration.preview, "POST")
add_page("/dashboard/config/apply", configuration.apply, "POST")
add_page("/dashboard/config/rollback", configuration.roll_back, "POST")
add_page("/dashboard/config/mode", configuration.switch, "POST")
add_page("/dashboard/audit", audit.show)
add_page("/dashboard/audit/verify", audit.verify, "POST")
add_page("/dashboard/logout", log_out, "POST")
add_page("/dashboard/do/{action}", act, "POST")
