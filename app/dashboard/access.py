"""Sessions of browsers at the pages: the cookie, forms that only our own pages can send, and who is looking."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import Response

from app.admin.service.sessions import SESSION_SECONDS
from app.dashboard.api_calls import Api
from app.http.bodies import uploader
from app.http.callers import Authenticator
from app.http.services import Services
from app.kernel.access import Principal, Scope
from app.kernel.errors import Forbidden, Unauthenticated

HOME = "/dashboard"
LOGIN = f"{HOME}/login"
_FORM_BYTES = 64 << 10
_MAX_FIELDS = 200
# Fields that forms of our pages have with them, which nobody fills in.
_HIDDEN = frozenset({"csrf", "back", "once", "request_id", "in_force", "patch", "version"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Somebody with a session, and the API as that person may use it."""

    principal: Principal
    api: Api
    session: str
    request: Request

    @property
    def csrf(self) -> str:
        """The word that forms of our own pages have with them; it tells nothing of the session."""
        return hashlib.sha256(b"form of " + self.session.encode()).hexdigest()[:32]

    @property
    def rights(self) -> Hashable:
        """Equal for those who may see and do the same."""
        principal = self.principal
        return principal.role, principal.withheld, principal.namespace, principal.is_confined

    def may(self, *scopes: Scope) -> bool:
        """Whether the key of the session includes all of these scopes."""
        return all(map(self.principal.may, scopes))


async def viewer_of(request: Request) -> Viewer:
    """The viewer of a page. Raises Unauthenticated, DatabaseUnavailable."""
    session = request.cookies.get(_cookie_name(request), "")
    if not session.startswith("cvs_"):
        raise Unauthenticated("log in first")
    services: Services = request.app.state.services
    principal = await services[Authenticator].recognise(session)
    # Tells that the connection is used with a key.
    request.state.principal = principal
    return Viewer(principal=principal, api=Api(request, session), session=session, request=request)


def check_viewer(principal: Principal) -> None:
    """Refuse keys that have nothing to look at. Raises Forbidden."""
    if not principal.may(Scope.MONITOR):
        raise Forbidden(f"the key of a {principal.role} may not look at anything; use that of an operator or a reader")


async def read_form(request: Request, max_bytes: int = _FORM_BYTES) -> Mapping[str, str]:
    """The fields of a form that one of our own pages has sent. Raises Forbidden."""
    _check_origin(request)
    with request.app.state.uploads.of(uploader(request, None)) as upload:
        body: bytes = await upload.read(request, max_bytes)
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError:
        raise Forbidden("the form cannot be read") from None
    request.state.form = fields
    return fields


def typed_fields(request: Request) -> dict[str, str]:
    """The fields of the form that was sent, less those that nobody fills in; none where it could not be read."""
    fields: Mapping[str, str] = getattr(request.state, "form", {})
    return {name: text for name, text in fields.items() if text.strip() and name not in _HIDDEN}


async def read_viewers_form(viewer: Viewer, max_bytes: int = _FORM_BYTES) -> Mapping[str, str]:
    """The fields of a form of this very viewer. Raises Forbidden."""
    fields = await read_form(viewer.request, max_bytes)
    check_word(viewer.csrf, fields)
    return fields


def check_word(word: str, fields: Mapping[str, str]) -> None:
    """Refuse a form without the word of the page that it comes from. Raises Forbidden."""
    if not word or not hmac.compare_digest(word.encode(), fields.get("csrf", "").encode()):
        raise Forbidden("the form is not from a page of this session; load the page again")


def _check_origin(request: Request) -> None:
    """Refuse what another site makes a browser send. Raises Forbidden."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    # What the browser says of itself is right also behind a proxy that names another host.
    is_ours = site in ("same-origin", "none") or (
        site is None and (origin is None or origin.partition("://")[2] == request.headers.get("host"))
    )
    if not is_ours or origin == "null":
        raise Forbidden("forms are taken from pages of this very address only")


def login_word(request: Request) -> str:
    """The word of the login form, which a cookie has as well; "" where the browser has none."""
    return request.cookies.get(_login_name(request), "")


def offer_login(request: Request, response: Response, word: str) -> None:
    """Give the browser the word of a login form."""
    _set(request, response, _login_name(request), word, 3600)


def new_word() -> str:
    """A word for a login form."""
    return secrets.token_urlsafe(24)


def begin_session(request: Request, response: Response, session: str) -> None:
    """Give a browser its session."""
    _set(request, response, _cookie_name(request), session, int(SESSION_SECONDS))
    response.delete_cookie(_login_name(request), path=HOME)


def forget_session(request: Request, response: Response) -> None:
    """Take the session from a browser."""
    response.delete_cookie(_cookie_name(request), path=HOME)


def notify(request: Request, response: Response, sentence: str) -> None:
    """Have the page that a response leads to show a sentence."""
    # Cookies hold ASCII only.
    name = _notice_name(request, response.headers["location"])
    _set(request, response, name, sentence[:600].encode().hex(), 60)


def take_notice(request: Request, response: Response) -> None:
    """Have no other page show the sentence that this one has shown."""
    if (name := _notice_name(request, here(request))) in request.cookies:
        response.delete_cookie(name, path=HOME)


def notice(request: Request) -> str:
    """The sentence that the page before has left for this one; "" without any."""
    try:
        return bytes.fromhex(request.cookies.get(_notice_name(request, here(request)), "")).decode()
    except ValueError:
        return ""


def _set(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    is_secure = request.scope["scheme"] == "https"
    response.set_cookie(name, value, max_age=seconds, path=HOME, httponly=True, secure=is_secure, samesite="strict")


# Browsers send the cookies of a host to all of its ports, on each of which another service may be.
def _cookie_name(request: Request) -> str:
    return f"convener_session_{_port(request)}"


def _login_name(request: Request) -> str:
    return f"convener_login_{_port(request)}"


def _notice_name(request: Request, address: str) -> str:
    """All tabs send it: the name says for which page it is, so that no other shows it, or takes it away."""
    return f"convener_notice_{_port(request)}_{hashlib.sha256(address.encode()).hexdigest()[:16]}"


def _port(request: Request) -> str:
    """The port by which the browser knows this service; a host may be any nonsense."""
    match = re.search(r":(\d{1,5})$", request.headers.get("host", ""))
    return match[1] if match else "default"


def here(request: Request) -> str:
    """The address of a request, to which its page returns."""
    query = request.scope["query_string"].decode("latin-1")
    path = quote(request.scope["path"])
    return f"{path}?{query}" if query else path
