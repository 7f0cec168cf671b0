"""`convener why`: the cause for which a task waits."""

import math
from datetime import datetime

from rich.console import RenderableType

from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.ids import TaskIdArgument, whole_id
from app.terminal.output import Format, Output

EPILOG = output.examples("convener why 0190a5b2", "convener why 0190a5b2 -o json | jq -r .cause.code")


def why(
    task_id: TaskIdArgument,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show the one cause for which a task waits, and what changes it."""
    with connect(url) as client:
        answer = client.get(f"/tasks/{whole_id(client, 'tasks', task_id)}/why")
    output.present(answer, fmt, lambda: render(answer))


def render(answer: Json) -> RenderableType:
    """The answer of `GET /tasks/{id}/why` in lines."""
    cause, blocker = answer["cause"], answer["blocker"]
    lines: list[tuple[str, RenderableType | None]] = [("Task", answer["task_id"]), ("Why", cause["text"])]
    lines += [("Starts", _start(answer)), ("Code", cause["code"]), *_ways(cause)]
    if blocker:
        lines += [("Blocker", f"{blocker['cause']['text']} ({blocker['cause']['code']})"), *_ways(blocker["cause"])]
    lines += [("Then", f"{later['text']} ({later['code']})") for later in answer["then"]]
    return output.details(lines)


def _start(answer: Json) -> str | None:
    if answer["start"] is None:
        return None
    at = datetime.fromisoformat(answer["at"])
    median, late = (datetime.fromisoformat(answer["start"][name]) - at for name in ("p50", "p90"))
    about = f"in about {output.duration(median.total_seconds())}"
    return f"{about}; nine of ten such tasks start within {output.duration(math.ceil(late.total_seconds()))}"


def _ways(cause: Json) -> list[tuple[str, RenderableType | None]]:
    texts = [f"{way['text']}: {way['command']}" if way["command"] else way["text"] for way in cause["mends"]]
    return [("To change it" if not place else "", text) for place, text in enumerate(texts)]
