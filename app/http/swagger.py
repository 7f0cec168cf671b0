"""Swagger UI on a page of our own: its files come from here, and its key is checked and stays in the tab."""

from html import escape
from pathlib import Path

import fastapi_offline
from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

ADDRESS = "/docs"
_CHECK = "/whoami"
_FILES = "/docs/files"
_DIRECTORY = Path(fastapi_offline.__file__).with_name("static")
_SCRIPT = Path(__file__).with_suffix(".js")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{root}{files}/favicon.png">
<link rel="stylesheet" href="{root}{files}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui" data-document="{root}{document}" data-check="{root}{check}"></div>
<script src="{root}{files}/swagger-ui-bundle.js"></script>
<script>
{script}</script>
</body>
</html>
"""


def install(app: FastAPI) -> None:
    """Serve the page and the files that it loads."""
    script = _SCRIPT.read_text(encoding="utf-8")
    app.mount(_FILES, StaticFiles(directory=_DIRECTORY))

    @app.get(ADDRESS, include_in_schema=False)
    async def swagger(request: Request) -> HTMLResponse:
        return HTMLResponse(
            _PAGE.format(
                title=escape(app.title),
                root=escape(request.scope.get("root_path", "")),
                files=_FILES,
                document=app.openapi_url,
                check=_CHECK,
                script=script,
            )
        )
