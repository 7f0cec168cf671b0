"""Styles and scripts of the pages, each at an address with its digest, so that browsers keep it for good."""

import hashlib
from functools import cache
from importlib.resources import files

from starlette.responses import Response

_KINDS = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
_ROOT = files("app.dashboard") / "static"
NAMES = (
    "dashboard.css",
    "dashboard.js",
    "icon.svg",
    "vendor/htmx.min.js",
    "vendor/htmx-sse.min.js",
)


@cache
def _content(name: str) -> bytes:
    return _ROOT.joinpath(*name.split("/")).read_bytes()


@cache
def asset_url(name: str) -> str:
    """The address of a file."""
    digest = hashlib.sha256(_content(name)).hexdigest()[:16]
    return f"/dashboard/static/{digest}/{name.rpartition('/')[2]}"


@cache
def edition() -> str:
    """The same for processes whose styles and scripts are the same."""
    return hashlib.sha256(" ".join(map(asset_url, NAMES)).encode()).hexdigest()[:16]


@cache
def _names_by_url() -> dict[str, str]:
    return {asset_url(name): name for name in NAMES}


def answer_asset(path: str) -> Response:
    """The file at an address; 404 for all other addresses."""
    name = _names_by_url().get(path)
    if name is None:
        # Of an earlier version, in a page that was open during an upgrade.
        return Response("there is no such file", status_code=404, media_type="text/plain")
    return Response(_content(name), media_type=_KINDS[name.rpartition(".")[2]], headers=_FOREVER)
