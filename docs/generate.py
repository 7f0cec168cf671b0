"""Writes the pages of reference that follow from the code (`make reference`); a test compares them."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer.main
from prometheus_client import CollectorRegistry
from pydantic_core import PydanticUndefined
from ruamel.yaml import YAML

from app import application
from app.cli import commands
from app.health.api.prometheus import MetricsPage
from app.health.rules.alerts import AlertPolicy
from app.health.rules.checks import ALERT_CHECKS
from app.http import problems
from app.kernel import events
from app.queue.rules.tasks import TRANSITIONS
from app.settings import Settings
from app.settings_sources import SECRETS
from app.terminal.failures import MEANINGS
from tests.health.rules.test_checks import one_of_each

ROOT = Path(__file__).parents[1]
_FOLDER = ROOT / "docs/reference"
_NOTE = "<!-- Made from the code by `make reference`; edit the code instead. -->"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_cell(str(part)) for part in row) + " |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


def _paragraph(text: str) -> Iterator[str]:
    yield from (textwrap.fill(text, 125, break_long_words=False, break_on_hyphens=False), "")


def _code(text: object) -> str:
    return f"`{text}`" if text not in (None, "") else ""


def settings_page() -> Iterator[str]:
    """Settings of the processes, with default, range and meaning."""
    yield from ("# Settings of the processes", "")
    yield from _paragraph(
        "Environment variables, or lines of the file that `CONVENER_SETTINGS_FILE` names, there without prefix "
        "and in small letters. [Configuration](configuration.md#settings-of-the-processes) says how they are "
        "read, and what a secret is."
    )
    rows = (
        (
            f"`CONVENER_{name.upper()}`" + (" (secret)" if name in SECRETS else ""),
            _default(field.default),
            _range(field.metadata),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    )
    yield from _table(("variable", "default", "range", ""), rows)


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "of this machine"
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, tuple):
        return _code(",".join(f"{part:g}" for part in value))
    if isinstance(value, float):
        return _code(f"{value:g}")
    return _code(str(value).lower() if isinstance(value, bool) else value)


def _range(metadata: Sequence[Any]) -> str:
    low = next((each.ge for each in metadata if hasattr(each, "ge")), None)
    high = next((each.le for each in metadata if hasattr(each, "le")), None)
    return "" if low is None else f"from {low:,}" if high is None else f"{low:,} to {high:,}"


def cli_page() -> Iterator[str]:
    """Every command with its arguments and options."""
    yield from ("# Commands", "")
    yield from _paragraph(
        "`--help` after any of them shows the same with examples. `-o json` works wherever there is something to show."
    )
    yield from ("## Exit codes", "")
    yield from _table(("code", "meaning"), ((code.value, meaning) for code, meaning in MEANINGS.items()))
    root: Any = typer.main.get_command(commands.build())
    yield from ("## Options before every command", "")
    yield from _parameters(root)
    for name in root.list_commands(typer.Context(root)):
        command = root.get_command(typer.Context(root), name)
        if not command.hidden:
            yield from (f"## convener {name}", "")
            yield from _command(command, f"convener {name}", "###")


def _command(command: Any, name: str, heading: str) -> Iterator[str]:
    yield _first_paragraph(command.help or "")
    yield ""
    if not hasattr(command, "list_commands"):
        yield from _parameters(command)
        return
    for each in command.list_commands(typer.Context(command)):
        child = command.get_command(typer.Context(command), each)
        if not child.hidden:
            yield from (f"{heading} {name} {each}", "")
            yield from _command(child, f"{name} {each}", heading + "#")


def _first_paragraph(text: str) -> str:
    return _cell(inspect.cleandoc(text).split("\n\n")[0].replace("\b", ""))


def _parameters(command: Any) -> Iterator[str]:
    # The address, the form and the help are the same everywhere.
    usual = {"--help", "--url", "--output", "--install-completion", "--show-completion"}
    shown = [each for each in command.params if not getattr(each, "hidden", False) and not usual & set(each.opts)]
    if shown:
        yield from _table(("", "default", ""), (_parameter(each) for each in shown))


def _parameter(each: Any) -> tuple[str, str, str]:
    is_option = each.param_type_name == "option"
    name = (
        ", ".join(map(_code, (*each.opts, *each.secondary_opts)))
        if is_option
        else _code(each.metavar or each.name.upper())
    )
    default = each.default if isinstance(each.default, int | float | str) and each.default is not False else None
    help_text = (each.help or "") + (" (required)" if each.required and is_option else "")
    return name, "" if default is None else _code(getattr(default, "value", default)), help_text


def http_page() -> Iterator[str]:
    """Every route by its subject, and every problem."""
    document = application.build().openapi()
    yield from ("# Routes and problems", "")
    yield from _paragraph(
        "`GET /docs` of a running service has the bodies with examples, `openapi/openapi.json` all of it for "
        "programs. A key goes into the header `Authorization: Bearer cvn_...`; [its role](../how-to/keys.md"
        "#keys-and-roles) says what it may."
    )
    yield from _paragraph(
        "Clients can be generated from that file. `openapi-typescript` takes fields that have a default for required "
        "ones, unless it is told `--default-non-nullable=false`."
    )
    operations = [
        (operation, method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    for tag in document["tags"]:
        yield from (f"## {tag['name'].capitalize()}", "", f"{tag['description']}.", "")
        rows = [
            (_code(f"{method} {path}"), _code(operation["operationId"]), operation.get("summary", ""))
            for operation, method, path in operations
            if tag["name"] in operation.get("tags", ())
        ]
        yield from _table(("route", "operation", ""), rows)
    yield from ("## Problems", "")
    yield from _paragraph(
        "What is refused is answered with `application/problem+json` (RFC 9457). `code` is stable; `detail` is "
        "for people."
    )
    rows = [(_code(each["code"]), each["status"], each["title"]) for each in problems.catalogue()]
    yield from _table(("code", "status", ""), sorted(rows))


def events_page() -> Iterator[str]:
    """Every kind of event."""
    yield from ("# Events", "")
    yield from _paragraph(
        "Each change of state is one event: `GET /events` has them in order, each exactly once for a reader that "
        "stores its cursor. [The queue](../explanation/queue.md#what-came-out-of-it) says how to read them."
    )
    kinds: Sequence[type[StrEnum]] = (
        events.TaskEvent,
        events.GoalEvent,
        events.WorkerEvent,
        events.SystemEvent,
        events.AlertKind,
    )
    for kind, title in zip(kinds, ("tasks", "goals", "workers", "the system", "alerts"), strict=True):
        yield from (f"## Of {title}", "")
        comments = dict(_comments(kind))
        yield from _table(
            ("kind", "the task then is", "") if kind is events.TaskEvent else ("kind", ""),
            (_event(event, comments.get(event.name, "")) for event in kind),
        )


def _event(event: StrEnum, comment: str) -> tuple[str, ...]:
    if not isinstance(event, events.TaskEvent):
        return _code(event.value), comment
    _, state = TRANSITIONS.get(event, (None, None))
    return _code(event.value), _code(state.value if state else ""), comment


def _comments(kind: type[StrEnum]) -> Iterator[tuple[str, str]]:
    """Name and the comment above it, for each member that has one."""
    text: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        if match := re.match(r"\s+# (.*)", line):
            text.append(match[1])
        elif match := re.match(r"\s+([A-Z_]+) = ", line):
            yield match[1], " ".join(text)
            text = []


def metrics_page() -> Iterator[str]:
    """Every gauge and counter of the service itself."""
    yield from ("# Metrics", "")
    yield from _paragraph(
        "`GET /metrics` is for Prometheus, with a key of the role `monitor`. Every replica tells the same of what "
        "is in the database: take the maximum over them, not the sum. Besides these there are times and counts of "
        "HTTP requests (`http_*`) and what Prometheus' client tells of a process (`process_*`). No label stands "
        "for a task, a goal or a worker."
    )
    registry = CollectorRegistry()
    page = MetricsPage(registry)
    labels = {f"convener_{name}": gauge._labelnames for name, gauge in page._gauges._gauges.items()}
    rows = [
        (
            _code(family.name + ("_total" if family.type == "counter" else "")),
            ", ".join(labels.get(family.name) or sorted({name for sample in family.samples for name in sample.labels})),
            family.documentation,
        )
        for family in registry.collect()
    ]
    yield from _table(("metric", "labels", ""), sorted(rows))


def alerts_page() -> Iterator[str]:
    """Every alert with an example, and what to do."""
    yield from ("# Alerts and what to do", "")
    yield from _paragraph(
        "`convener alerts ls` shows them, `convener alerts get ID` one with its figures, `convener alerts ack ID` "
        "says that somebody knows. [Health](../explanation/health.md#alerts) has the thresholds. The figures here "
        "are examples."
    )
    policy = AlertPolicy()
    examples = {symptom.key.rule: symptom for symptom in reversed(one_of_each())}
    for rule, check in ALERT_CHECKS.items():
        times = policy.of(rule)
        opens = f"after {times.opens_after:g} s" if times.opens_after else "at once"
        yield from (f"## {rule.value}", "", inspect.getdoc(check) or "", "")
        yield f"It opens {opens}, and is resolved when the symptom has been away for {times.resolves_after:g} s."
        yield from ("", f"- *It says:* {_cell(examples[rule].message)}", f"- *Do:* {_cell(examples[rule].advice)}", "")
    yield from ("## For Prometheus", "")
    yield from _paragraph("`docker/alerts.yml` has these rules for those whose pagers hang on Prometheus.")
    groups = YAML(typ="safe").load(ROOT / "docker/alerts.yml")["groups"]
    rows = (
        (
            _code(each["alert"]),
            each["labels"]["severity"],
            each["annotations"]["action"],
            _runbook(each["annotations"]["runbook"]),
        )
        for group in groups
        for each in group["rules"]
    )
    yield from _table(("rule", "severity", "do", "begin with"), rows)


def _runbook(command: str) -> str:
    return _code(re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda label: label[1].upper(), command))


PAGES: Mapping[str, Callable[[], Iterator[str]]] = {
    "settings": settings_page,
    "cli": cli_page,
    "http": http_page,
    "events": events_page,
    "metrics": metrics_page,
    "alerts": alerts_page,
}


def path_of(page: str) -> Path:
    """The file of a page."""
    return _FOLDER / f"{page}.md"


def text_of(page: str) -> str:
    """A page as the code has it now."""
    first, *lines = PAGES[page]()
    return "\n".join([first, "", _NOTE, *lines]).rstrip() + "\n"


if __name__ == "__main__":
    for name in PAGES:
        path_of(name).write_text(text_of(name), encoding="utf-8")
