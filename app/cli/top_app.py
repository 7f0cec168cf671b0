"""The screen of `convener top`: tables that are filled anew every few seconds, and a question before each action."""

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.css.query import NoMatches
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Label, OptionList, Static

from app.cli.top_api import RemoteViewer
from app.dashboard.actions import ACTIONS
from app.dashboard.api_calls import Refused
from app.dashboard.attention import Button
from app.terminal.output import age, duration, plain, sparkline, state

_CURVE = 30
_LEVEL_WIDTH, _SCROLLBAR_WIDTH, _LEAST_WIDTH = 8, 2, 20
_COLUMNS = {
    "attention": ("LEVEL", "WHAT NEEDS ATTENTION", "WHAT TO DO"),
    "agents": ("AGENT", "QUEUED", "RUNNING", "A MINUTE", "WEIGHT", "SHARE", "MEAN", "STATE", "LAST HOUR"),
    "workers": ("WORKER", "STATE", "AGENT", "TASK", "CPU", "SEEN"),
    "models": ("MODEL", "STATE", "CALLS", "KEY EXPIRES"),
}
_LEVELS = {"critical": "bold red", "warning": "yellow", "note": "dim"}
Row = tuple[str, Sequence[Text], tuple[Button, ...]]


class Choice(ModalScreen[Button | None]):
    """Asks which of several actions is meant."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "Leave it")]

    def __init__(self, title: str, buttons: Sequence[Button]) -> None:
        super().__init__()
        self._title, self._buttons = title, buttons

    def compose(self) -> ComposeResult:
        """The title and the actions."""
        with Vertical(classes="question"):
            yield Label(Text(plain(self._title)))
            yield OptionList(*(Text(ACTIONS[button.action].label) for button in self._buttons))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """One was chosen."""
        self.dismiss(self._buttons[event.option_index])


class Question(ModalScreen[str | None]):
    """Asks whether an action is to be carried out, and why; None: it is not."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "Leave it")]

    def __init__(self, title: str, button: Button) -> None:
        super().__init__()
        self._title, self._action = title, ACTIONS[button.action]

    def compose(self) -> ComposeResult:
        """The action, and a field for the reason."""
        with Vertical(classes="question"):
            yield Label(Text.assemble((f"{self._action.label}: ", "bold"), plain(self._title)))
            yield Input(placeholder=f"{self._action.asks} (may stay empty)")
            yield Label(Text("Enter does it, Esc leaves it", "dim"))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter was pressed."""
        self.dismiss(event.value)


class Top(App[None]):
    """The page Now: verdict and figures above, then what needs attention, agents, workers and models."""

    TITLE = "convener top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #verdict { padding: 0 1; text-style: bold; }
    #figures { padding: 0 1; color: $text-muted; }
    DataTable { height: auto; max-height: 12; margin-top: 1; }
    DataTable#workers { max-height: 50%; }
    ModalScreen { align: center middle; }
    .question { width: 76; max-width: 100%; height: auto; border: round $accent; padding: 1 2; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit"), ("r", "refresh", "Look again")]

    def __init__(self, viewer: RemoteViewer, every_seconds: float) -> None:
        super().__init__()
        self._viewer, self._every = viewer, every_seconds
        self._rows: dict[str, list[Row]] = {}
        self._is_looking = False

    def compose(self) -> ComposeResult:
        """The parts of the screen."""
        yield Static("looking", id="verdict")
        yield Static("", id="figures")
        for name in _COLUMNS:
            yield DataTable(id=name, cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        for name, columns in _COLUMNS.items():
            self.query_one(f"#{name}", DataTable).add_columns(*columns)
        self.set_interval(self._every, self.action_refresh)
        self.action_refresh()

    async def on_unmount(self) -> None:
        """Close the connections."""
        await self._viewer.api.close()

    @work
    async def action_refresh(self) -> None:
        """Look at the service, and show it, unless a look is under way; what is shown stays while nothing answers."""
        if self._is_looking:
            return
        self._is_looking = True
        try:
            # While the program ends, the parts of its screen go before this does.
            with contextlib.suppress(NoMatches):
                await self._look()
        finally:
            self._is_looking = False

    async def _look(self) -> None:
        try:
            self._show(await self._viewer.look())
        except Refused as refusal:
            sentence = f"{refusal.sentence}; what is below may be old"
            self.query_one("#verdict", Static).update(Text(plain(sentence), "bold red"))

    def _show(self, view: dict[str, Any]) -> None:
        worst = {"healthy": "green", "degraded": "yellow"}.get(view["report"]["overall_health"], "red")
        self.query_one("#verdict", Static).update(Text(plain(view["verdict"]), worst))
        figures = [f"{figure.name} {figure.value} ({_note(figure, view['at'])})" for figure in view["figures"]]
        who = f"{self._viewer.url} as {self._viewer.name}; Tab goes to the next table, Enter acts on a line"
        self.query_one("#figures", Static).update(Text(plain("\n".join([*figures, who]))))
        self._fill("attention", [_attention_row(item) for item in view["items"]])
        self._fill("agents", [_agent_row(row, view["hour"].finished_by_agent) for row in view["agents"]])
        self._fill("workers", [_worker_row(worker, view["at"]) for worker in view["workers"]])
        self._fill("models", [_model_row(model) for model in view["models"]])

    def _fill(self, name: str, rows: list[Row]) -> None:
        """Show these rows; the cursor stays on the line that it is on, wherever that has gone."""
        table, former = self.query_one(f"#{name}", DataTable), self._rows.get(name, [])
        place = table.cursor_row
        key = former[place][0] if place < len(former) else None
        self._rows[name] = rows
        table.display = bool(rows)
        table.clear()
        if name == "attention":
            self._share_width(table)
        for _, cells, _ in rows:
            table.add_row(*cells, height=None if name == "attention" else 1)
        places = [number for number, row in enumerate(rows) if row[0] == key]
        table.move_cursor(row=places[0] if places else min(place, max(0, len(rows) - 1)), animate=False)

    def _share_width(self, table: "DataTable[Text]") -> None:
        """Give the sentences what the level leaves of the width: they go on below instead of beyond the edge."""
        _, *sentences = table.columns.values()
        free = self.size.width - _LEVEL_WIDTH - 2 * table.cell_padding * len(table.columns) - _SCROLLBAR_WIDTH
        for column in sentences:
            column.auto_width, column.width = False, max(_LEAST_WIDTH, free // len(sentences))

    def on_resize(self) -> None:
        """Show the sentences anew, so that they fit the new width."""
        if "attention" in self._rows:
            self._fill("attention", self._rows["attention"])

    @work
    async def on_data_table_row_selected(self, event: "DataTable.RowSelected") -> None:
        """Enter on a line: ask which action, whether, and why; then carry it out."""
        key, cells, buttons = self._rows[str(event.data_table.id)][event.cursor_row]
        title = cells[1].plain if event.data_table.id == "attention" else key
        allowed = self._viewer.allowed(buttons)
        if not allowed:
            self.notify("there is nothing that this key may do here" if buttons else "there is no action for this")
            return
        button = allowed[0] if len(allowed) == 1 else await self.push_screen_wait(Choice(title, allowed))
        reason = None if button is None else await self.push_screen_wait(Question(title, button))
        if button is None or reason is None:
            return
        try:
            self.notify(plain(await self._viewer.act(button, reason)), markup=False)
        except Refused as refusal:
            self.notify(plain(refusal.sentence), severity="error", markup=False)
        self.action_refresh()


def _note(figure: Any, now: datetime) -> str:
    if figure.since is None:
        return str(figure.note)
    seconds = (now - datetime.fromisoformat(figure.since)).total_seconds()
    return f"oldest {duration(max(0.0, seconds))}; {figure.note}"


def _cell(value: object, style: str = "") -> Text:
    return Text("-" if value in (None, "") else plain(str(value)), style)


def _attention_row(item: Any) -> Row:
    advice = f"{item.note}; {item.advice}" if item.note else item.advice
    cells = (_cell(item.level, _LEVELS.get(item.level, "")), _cell(item.text), _cell(advice))
    return item.text, cells, item.buttons


def _agent_row(row: Any, curves: Any) -> Row:
    button = Button(action="resume-queue" if row.pause else "pause-queue", fields={"agent": row.name})
    cells = (
        _cell(row.name),
        _cell(f"{row.queued:,}"),
        _cell(f"{row.running:,}"),
        _cell(None if row.per_minute is None else f"{row.per_minute:,.1f}"),
        _cell(None if row.weight is None else f"{row.weight:.2f}"),
        _cell(None if row.share is None else f"{row.share:.0%}"),
        _cell(None if row.mean_seconds is None else duration(row.mean_seconds)),
        _cell("paused" if row.pause else "leased", "yellow" if row.pause else "green"),
        _cell(sparkline(list(curves.get(row.name, ()))[-_CURVE:])),
    )
    return row.name, cells, (button,)


def _worker_row(worker: dict[str, Any], now: Any) -> Row:
    fields = {"worker_id": worker["worker_id"]}
    buttons = tuple(Button(action=f"{verb}-worker", fields=fields) for verb in ("drain", "restart", "stop"))
    percent = worker["cpu_percent"]
    cells = (
        _cell(worker["name"]),
        state(worker["state"]),
        _cell(worker["assigned_agent"]),
        _cell(worker["task_id"]),
        _cell(None if percent is None else f"{percent:.0f} %"),
        _cell(age(worker["last_seen_at"], now)),
    )
    return worker["name"], cells, buttons


def _model_row(model: dict[str, Any]) -> Row:
    button = Button(action="reset-model", fields={"model": model["model"]})
    style = "green" if model["state"] == "ok" else "red"
    cells = (
        _cell(model["model"]),
        _cell(model["state"], style),
        _cell(f"{model['in_use']:,} of {model['limit']:,}"),
        _cell(model["key_expires_at"]),
    )
    return model["model"], cells, (button,)
