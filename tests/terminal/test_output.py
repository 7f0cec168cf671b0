"""How results look."""

from datetime import UTC, datetime

import pytest
from rich.console import Console

from app.terminal import output

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
    assert output.is_wide()
    monkeypatch.setenv("COLUMNS", "80")
    assert not output.is_wide()
