"""Output of results: tables for people, JSON for programs. Only results go to stdout, everything else to stderr."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

_PIPE_WIDTH = 200
_FLEXIBLE_WIDTH, _SHORTEST_WIDTH = 16, 6
_STYLES = {
    **dict.fromkeys(("completed", "ready"), "green"),
    **dict.fromkeys(("failed", "lost"), "red"),
    **dict.fromkeys(("executing", "busy"), "cyan"),
    **dict.fromkeys(("assigned", "starting", "draining"), "yellow"),
    **dict.fromkeys(("cancelled", "stopped", "blocked"), "dim"),
}
_LEVELS = "▁▂▃▄▅▆▇█"


class Format(StrEnum):
    """Values of `-o`."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[Format, typer.Option("-o", "--output", help="for people or for programs")]


class PlainConsole(Console):
    """A console that shows text as it is: without markup, and without characters that could steer a terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def results() -> Console:
    """Console of stdout; wide for a pipe, so that nothing is shortened for a program that reads it."""
    console = PlainConsole(soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def errors() -> Console:
    """Console of stderr."""
    return PlainConsole(stderr=True, soft_wrap=True)


def note(text: str, style: str = "dim") -> None:
    """Print a remark to stderr, beside the result."""
    errors().print(Text(text, style))


def show(thing: RenderableType) -> None:
    """Print a result for people."""
    console = results()
    # Captured to strip the blanks with which rich fills up lines; they would be copied along.
    with console.capture() as capture:
        console.print(thing, crop=False)
    typer.echo("\n".join(line.rstrip(" ") for line in capture.get().splitlines()))


def hint_at_more(*ways: str) -> None:
    """Say that a list goes on, and by which options to see the rest."""
    note(f"there are more: {', '.join(ways[:-1])}, or {ways[-1]}")


def write_json(value: Any, *, one_line: bool = False) -> None:
    """Print a result for programs."""
    text = json.dumps(value, indent=None if one_line else 2, ensure_ascii=False)
    # Only inside of strings, where JSON has an escape for every character: the value stays the same.
    typer.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def present(value: Any, fmt: Format, for_people: Callable[[], RenderableType]) -> None:
    """Print a result, for programs or as `for_people` draws it."""
    if fmt is Format.JSON:
        write_json(value)
    else:
        show(for_people())


@dataclass(frozen=True, slots=True)
class Folded:
    """Lines that are wider than the terminal go on below, as a terminal has it; what is drawn in place is cropped."""

    view: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The view in lines that the terminal has room for."""
        for line in Segment.split_lines(console.render(self.view, options)):
            width = Segment.get_line_length(line)
            for part in Segment.divide(line, [*range(options.max_width, width, options.max_width), width]):
                yield from part
                yield Segment.line()


class FittingTable(Table):
    """A table that moves its columns together where there is too little room, then leaves optional ones out.

    In the end words are shortened, never numbers and ids: where those alone need more room, the table is as wide.
    """

    optional: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, as much of it as there is room for; empty columns go first, then the last of the optional ones."""
        columns, padding = self.columns, self.padding
        try:
            if self._needed_width() > options.max_width:
                self.padding = (0, 1, 0, 0)
            if self._needed_width() > options.max_width:
                self.columns = [column for column in self.columns if not _is_empty(column)]
            for name in reversed(self.optional):
                if self._needed_width() <= options.max_width:
                    break
                self.columns = [column for column in self.columns if column.header != name]
            is_tight = self._needed_width() > options.max_width
            # By its number rich tells which column is the last, after which it leaves no gap.
            self.columns = [
                replace(column, _index=number, no_wrap=column.no_wrap and not (is_tight and _is_wordy(column)))
                for number, column in enumerate(self.columns)
            ]
            width = max(options.max_width, self._needed_width(_SHORTEST_WIDTH))
            yield from super().__rich_console__(console, options.update_width(width))
        finally:
            self.columns, self.padding = columns, padding

    def _needed_width(self, flexible_width: int = _FLEXIBLE_WIDTH) -> int:
        widths = [_needed_width(column, None if column.no_wrap else flexible_width) for column in self.columns]
        return self.padding[1] * len(self.columns) + sum(widths)


def _is_empty(column: Column) -> bool:
    cells = [str(cell) for cell in column.cells]
    return bool(cells) and not any(text.strip("-") for text in cells)


def _is_wordy(column: Column) -> bool:
    return not any(character.isdigit() for cell in column.cells for character in str(cell))


def _needed_width(column: Column, flexible_width: int | None) -> int:
    texts = [cell if isinstance(cell, Text) else Text(str(cell)) for cell in (column.header, *column.cells)]
    width = max(column.min_width or 0, *(text.cell_len for text in texts))
    # Of a longer one the beginning tells enough.
    return width if flexible_width is None else min(width, max(flexible_width, texts[0].cell_len))


def table(
    *columns: str,
    numbers: Sequence[str] = (),
    whole: Sequence[str] = (),
    flexible: str | Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Table:
    """An empty table; where there is too little room, the columns `flexible` are shortened before others.

    `numbers` are aligned to the right; the columns `whole` hold ids; those that are `optional` are left out, the last
    of them first, rather than that others are lost.
    """
    empty_table = FittingTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    empty_table.optional, flexible = optional, [flexible] if isinstance(flexible, str) else flexible
    for name in columns:
        # An id is 36 characters long; a shortened one could not be copied.
        width = 36 if name in whole else None
        empty_table.add_column(name, no_wrap=name not in flexible, min_width=width, overflow="ellipsis")
        empty_table.columns[-1].justify = "right" if name in numbers else "left"
    return empty_table


def cell(value: object) -> Text:
    """A cell that shows a value of callers as it is, without markup or control characters."""
    if value is None or value == "":
        return Text("-", style="dim")
    # A Text, because rich would read brackets in a str as markup.
    return Text(plain(str(value)).replace("\n", " "), no_wrap=True, overflow="ellipsis")


def state(name: str) -> Text:
    """The state of a task or worker, in its colour."""
    return Text(plain(name), style=_STYLES.get(name, ""))


def plain(text: str) -> str:
    """The text without characters that could steer a terminal; line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def age(moment: str | None, now: datetime) -> str | None:
    """`12 s ago`, or `in 5 s` for what is to come."""
    if moment is None:
        return None
    seconds = (now - datetime.fromisoformat(moment)).total_seconds()
    # Clocks of two machines always differ a little, so the near future counts as now.
    return f"in {duration(-seconds)}" if seconds <= -2 else f"{duration(max(0.0, seconds))} ago"


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `5 h`, `2 d`, rounded down."""
    # Minutes from 2 on, because "1 min" for 119 s would be too coarse.
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length or (unit != "min" and seconds >= length):
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def details(pairs: Sequence[tuple[str, RenderableType | None]]) -> Table:
    """Names and values, one pair a line; pairs without a value are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value not in (None, ""):
            grid.add_row(name, Text(plain(value)) if isinstance(value, str) else value)
    return grid


def json_text(value: Any) -> Text | None:
    """A JSON object as indented text, None when there is nothing in it."""
    return Text(plain(json.dumps(value, indent=2, ensure_ascii=False))) if value else None


def examples(*lines: str) -> str:
    """The epilog of a command's help."""
    return "Examples:\n" + "\n".join(f"$ {line}" for line in lines)


def sparkline(values: Sequence[float | None], high: float | None = None) -> str:
    """A block for each value, from 0 to `high` (the largest of them, if not given); a blank where there is none.

    Values outside are drawn at the edge.
    """
    numbers = [value for value in values if value is not None]
    top = high if high is not None else max(numbers, default=0.0)
    return "".join(" " if value is None else _block(value, top) for value in values)


def _block(value: float, high: float) -> str:
    share = value / high if high > 0.0 else 0.0
    return _LEVELS[round(max(0.0, min(1.0, share)) * (len(_LEVELS) - 1))]


def count(number: int) -> Text:
    """A number of tasks; 0 is dim."""
    return Text(f"{number:,}") if number else Text("0", style="dim")


def warning_lines(warnings: Sequence[str]) -> list[Text]:
    """A line for each warning, after an empty one."""
    lines = [Text.assemble(("Warning ", "bold yellow"), plain(warning)) for warning in warnings]
    return [Text(""), *lines] if lines else []
