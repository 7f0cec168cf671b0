"""`convener whoami`: the key in use, and what it may do."""

from datetime import datetime

from rich.console import RenderableType

from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.output import Format, Output

EPILOG = output.examples("convener whoami", "convener whoami -o json | jq -r .role")


def whoami(url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show which key this is, and what it may do at which service."""
    with connect(url) as client:
        key, now = client.get("/whoami"), client.now
        address = client.url
    output.present({**key, "url": address}, fmt, lambda: render(key, address, now))


def render(key: Json, url: str, now: datetime) -> RenderableType:
    """The answer of `GET /whoami` in lines."""
    expires = key["expires_at"] and f"{output.age(key['expires_at'], now)} ({key['expires_at']})"
    return output.details(
        [
            ("Service", url),
            ("Key", f"{key['id']}, {key['label']}"),
            ("Role", key["role"]),
            ("Namespace", key["namespace"] or "all: it is of the whole service"),
            ("May", ", ".join(key["scopes"])),
            ("May not", ", ".join(key["withheld"]) or None),
            ("Expires", expires or "never"),
        ]
    )
