"""Output of attempts: how much of it is kept, and the position of a reader in it."""

import re
from dataclasses import dataclass
from enum import StrEnum

# Of each stream of an attempt its beginning and its end are kept; the worker leaves out what lies between.
HEAD_BYTES = TAIL_BYTES = 64 << 10
# Small pieces are put together up to this size, so that one who prints a line a second fills few rows.
SEGMENT_BYTES = 8 << 10
PIECE_CHARACTERS = 64 << 10
_POSITION = re.compile(r"(\d{1,18})-(\d{1,18})-(\d{1,18})")


class Stream(StrEnum):
    """Streams of a handler; what it logs goes to stderr."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The part that a reader has: all leases before `token`, and of that one so many bytes of each stream."""

    token: int = 0
    stdout: int = 0
    stderr: int = 0

    def __str__(self) -> str:
        return f"{self.token}-{self.stdout}-{self.stderr}"

    def offset(self, token: int, stream: Stream) -> int:
        """Bytes that the reader has of a stream of a lease that is not before its own."""
        if token != self.token:
            return 0
        return self.stdout if stream is Stream.STDOUT else self.stderr

    def after(self, token: int, stream: Stream, offset: int) -> "Position":
        """The position of a reader that has this as well."""
        offsets = {each.value: self.offset(token, each) for each in Stream}
        return Position(token=token, **{**offsets, stream.value: offset})


def parse_position(text: str) -> Position | None:
    """The position that was written so; None for any other text."""
    match = _POSITION.fullmatch(text)
    return match and Position(token=int(match[1]), stdout=int(match[2]), stderr=int(match[3]))


def rest_of(text: str, start: int, offset: int) -> tuple[str, int]:
    """The part of a text from this offset of its stream on, and the bytes that are left out before it."""
    if offset <= start:
        return text, start - offset
    # Not within a character.
    return text.encode()[offset - start :].decode(errors="ignore"), 0
