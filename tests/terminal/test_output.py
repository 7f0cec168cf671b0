"""How results look."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.terminal import output
from app.terminal.failures import ExitCode, Failure

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        ("2030-01-01T11:59:48.500Z", "11 s ago"),
        ("2030-01-01T12:00:01.500+00:00", "0 s ago"),
        ("2030-01-01T12:00:30Z", "in 30 s"),
        ("2030-01-01T11:58:30Z", "90 s ago"),
        ("2030-01-01T11:50:00Z", "10 min ago"),
        ("2030-01-01T10:30:00Z", "1 h ago"),
        ("2029-12-30T12:00:00Z", "2 d ago"),
        ("2030-01-01T13:00:00+01:00", "0 s ago"),
        (None, None),
    ],
)
def test_ages(moment: str | None, words: str | None) -> None:
    assert output.age(moment, NOW) == words


def test_foreign_text_is_neither_markup_nor_control() -> None:
    console = Console(width=60, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(output.cell("[red]a[/]\x1b[2Jb\nc"))
    assert captured.get() == "[red]a[/]\N{REPLACEMENT CHARACTER}[2Jb c\n"


def test_only_the_flexible_column_is_shortened() -> None:
    table = output.table("ID", "WHY", "AGE", whole=["ID"], flexible="WHY")
    identifier = "01a20ad8-a509-7754-a631-e69f54e52b52"
    table.add_row(output.cell(identifier), output.cell("a long story " * 10), output.cell("12 min ago"))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table)
    line = captured.get().splitlines()[1]
    assert identifier in line
    assert "…" in line
    assert "12 min ago" in line
    assert len(captured.get().splitlines()) == 2


def test_a_pipe_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert output.results().width == 200
    monkeypatch.setenv("COLUMNS", "80")
    assert output.results().width == 80


HOSTILE = ":boom: [red]a[/] [link=http://evil.invalid]b[/link] \x1b[2J\x1b]0;owned\x07\x9b2J\x7f\u202e\u2066"
SHOWN = ":boom: [red]a[/] [link=http://evil.invalid]b[/link] "


@pytest.mark.parametrize(
    "show",
    [
        lambda: output.show(HOSTILE),
        lambda: output.show(Text(HOSTILE)),
        lambda: output.show(output.details([("what", HOSTILE), ("do", Text(HOSTILE)), ("cell", output.cell(HOSTILE))])),
        lambda: output.show(_table(HOSTILE)),
        lambda: output.note(HOSTILE),
        lambda: output.errors().print(HOSTILE),
        lambda: Failure(HOSTILE, ExitCode.REFUSED, details=[HOSTILE], hint=HOSTILE).show(),
        lambda: output.write_json({HOSTILE: [HOSTILE]}),
        lambda: output.write_json(HOSTILE, one_line=True),
    ],
)
def test_no_way_to_print_obeys_text_of_strangers(
    show: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    show()
    out, err = capsys.readouterr()
    text = out + err
    assert all(c.isprintable() or c == "\n" for c in text), ascii(text)
    assert SHOWN in text


def test_json_for_programs_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": HOSTILE + "\U000e0001 ä"}
    output.write_json(value)
    assert json.loads(capsys.readouterr().out) == value


def _table(text: str) -> Table:
    table = output.table("A", "B", flexible="B")
    table.add_row(text, text)
    return table


_COLUMNS = ("NAME", "STATE", "SEEN", "CPU", "TASK", "HOST", "PID", "WORKER")


@pytest.mark.parametrize("width", [60, 72, 80, 100, 110, 120, 132, 200])
def test_a_table_leaves_columns_out_rather_than_losing_others(width: int) -> None:
    optional = ["CPU", "SEEN", "HOST", "PID", "WORKER"]
    table = output.table(*_COLUMNS, whole=["TASK", "WORKER"], flexible="NAME", optional=optional)
    ids = ["0" * 36, "1" * 36]
    for _ in range(2):
        table.add_row("a-long-name-of-a-host-12", "draining", "12 min ago", "100 %", ids[0], "host", "12345", ids[1])
    for _ in range(2):  # it may be drawn again, as in a watch
        console = Console(width=width, file=io.StringIO())
        console.print(Group(table, ""))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        names = lines[0].split()
        assert names == [name for name in _COLUMNS if name in names]
        assert {"NAME", "STATE", "TASK"} <= set(names)
        assert set(names) & set(optional) == set(optional[: len(names) - 3])
        assert all(len(line) <= width for line in lines)
        assert ids[0] in lines[1]
        assert ("WORKER" in names) == (ids[1] in lines[1]) == (width >= 132)
        assert lines[1].startswith("a-long-")


def test_what_is_drawn_in_place_loses_no_number_where_the_terminal_is_narrower() -> None:
    """Live crops lines, and QUEUED and QUOTA were seen without the waits beside them."""
    numbers = [f"COLUMN {number}" for number in range(6)]
    table = output.table("PRIORITY", *numbers, numbers=numbers)
    table.add_row("critical", *(f"{number}0,000" for number in range(1, 7)))
    console = Console(width=30, file=io.StringIO(), force_terminal=True, color_system=None)
    with Live(console=console, auto_refresh=False) as live:
        live.update(output.Folded(Group(table, "fine")), refresh=True)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(f"{number}0,000" in drawn.replace("\n", "") for number in range(1, 7))
    assert max(len(line) for line in drawn.splitlines() if "\x1b" not in line) <= 30


def test_names_that_callers_choose_shorten_no_other_column_and_empty_columns_give_way() -> None:
    identifier = "01a20ad8-a509-7754-a631-e69f54e52b52"
    names, goal = ("AT", "EVENT", "TASK", "AGENT", "GOAL", "DETAIL"), "why do planets move as they do " * 5
    table = output.table(*names, whole=["TASK"], flexible=["GOAL", "DETAIL"], optional=["GOAL", "AGENT"])
    table.add_row(*map(output.cell, ("2030-01-01 11:59:48", "completed", identifier, "generation", goal, "for good")))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table)
    assert [line.split() for line in captured.get().splitlines()] == [
        ["AT", "EVENT", "TASK", "DETAIL"],
        ["2030-01-01", "11:59:48", "completed", identifier, "for", "good"],
    ]
    table = output.table(*names, whole=["TASK"], flexible=["GOAL", "DETAIL"], optional=["GOAL", "AGENT"])
    table.add_row(*map(output.cell, ("2030-01-01 11:59:48", "goal.created", None, None, "orbits", goal)))
    with console.capture() as captured:
        console.print(table)
    heading, line = captured.get().splitlines()
    assert heading.split() == ["AT", "EVENT", "GOAL", "DETAIL"]
    assert "goal.created orbits why do planets" in line


def test_a_column_left_out_in_the_middle_takes_no_digit_from_those_after_it() -> None:
    table = output.table("NAME", "TASK", "HOST", "PID", "WORKER", whole=["TASK", "WORKER"], optional=["PID", "WORKER"])
    table.add_row(*map(output.cell, ("vm-1", None, "a-host", "2622345", "0" * 36)))
    console = Console(width=40)
    with console.capture() as captured:
        console.print(table)
    assert captured.get().splitlines()[1].split() == ["vm-1", "a-host", "2622345"]


@pytest.mark.parametrize("width", [20, 40, 60, 80])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_words_are_shortened_and_numbers_never(
    width: int, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In 40 columns 12000 read as 120; what does not fit at all the terminal wraps."""
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"N{number}" for number in range(count)]
    table = output.table("PATH", *names, "AGE", "WHY", numbers=names, flexible="WHY")
    values = [str(1_234_567 + number) for number in range(count)]
    table.add_row(*map(output.cell, ("resource_limits.max_memory_per_worker", *values, "12 min", "a long story " * 9)))
    output.show(table)
    _, line = capsys.readouterr().out.splitlines()
    assert line.startswith("resou")
    assert [word for word in line.split() if word.isdigit()] == [*values, "12"]
    assert len(line) <= max(width, len(" ".join(["resou…", *values, "12 min", "a long…"])))


def test_what_has_no_value_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.show(output.details([("Reason", ""), ("By", None), ("Holds", "0 tasks")]))
    assert capsys.readouterr().out == "Holds  0 tasks\n"
