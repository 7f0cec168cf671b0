"""The sentence on why a task has not finished yet, for whoever waits for it at a terminal or in a program."""

from dataclasses import dataclass

from app.kernel.text import one_line
from app.terminal.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a task has not finished: a stable word, and a sentence; `subject` is the part that makes it another one."""

    code: str
    subject: str
    text: str


def reason_for(client: Client, task_id: str, released_because: str | None = None) -> Reason:
    """Ask why a task has not finished; `released_because` is what the last worker gave that handed it back."""
    answer = client.get(f"/tasks/{task_id}/why")
    cause = answer["cause"]
    text = cause["text"]
    if cause["code"] == "handed_back" and released_because:
        text += f": {one_line(released_because)}"
    if answer["blocker"] is not None:
        text += f"; {answer['blocker']['cause']['text']}"
    if command := next((mend["command"] for mend in cause["mends"] if mend["command"]), None):
        text += f"; `{command}`"
    return Reason(code=cause["code"], subject=f"{cause['since']} {cause['until']}", text=text)
