"""Compression of pages, streams and files for the browsers that take it: lists say the same in each line."""

import gzip

from starlette.requests import Request
from starlette.responses import Response

from app.http.streaming import EventStream

_LEVEL = 1
_MIN_BYTES = 1000


def compressed(request: Request, response: Response) -> Response:
    """The response, compressed where its browser takes that and it is worth it."""
    response.headers.add_vary_header("Accept-Encoding")
    if not _is_compressible(request):
        return response
    if isinstance(response, EventStream):
        response.compress(_LEVEL)
    elif len(response.body) >= _MIN_BYTES:
        response.body = gzip.compress(response.body, _LEVEL, mtime=0)
        response.headers["Content-Length"] = str(len(response.body))
        response.headers["Content-Encoding"] = "gzip"
    return response


def _is_compressible(request: Request) -> bool:
    # The length of what another site has a browser ask for would tell of the words of forms in it (BREACH).
    is_ours = request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    return is_ours and "gzip" in request.headers.get("accept-encoding", "")
