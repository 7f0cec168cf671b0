"""Output of attempts: how much of it is kept, and the position of a reader in it."""

import re
from dataclasses import dataclass
from enum import StrEnum

# Of each stream of an attempt its beginning and its end are kept; the worker leaves out what lies between.
HEAD_BYTES = TAIL_BYTES = 64 << 10
# Small pieces are put together up to this size, so that one who prints a line a second fills few rows.
SEGMENT_BYTES = 8 << 10
PIECE_CHARACTERS = 64 << 10
# Leases of which a reader may still get late output; a worker sends it within seconds.
_LEASES = 8
_POSITION = re.compile(rf"\d{{1,18}}(\.\d{{1,18}}-\d{{1,18}}-\d{{1,18}}){{0,{_LEASES}}}")
# Characters of the longest position.
MAX_POSITION = 18 + _LEASES * (1 + 3 * 18 + 2)


class Stream(StrEnum):
    """Streams of a handler; what it logs goes to stderr."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The part that a reader has: all leases up to the token `floor`, and of others so many bytes of each stream.

    Of several leases, as the last output of one may come when the next has begun to write.
    """

    floor: int = 0
    # (token, bytes of stdout, bytes of stderr), by token.
    leases: tuple[tuple[int, int, int], ...] = ()

    def __str__(self) -> str:
        return ".".join([str(self.floor), *(f"{token}-{out}-{err}" for token, out, err in self.leases)])

    def offset(self, token: int, stream: Stream) -> int:
        """Bytes that the reader has of a stream of a lease."""
        for lease, out, err in self.leases:
            if lease == token:
                return out if stream is Stream.STDOUT else err
        return 0

    def after(self, token: int, stream: Stream, offset: int) -> "Position":
        """The position of a reader that has this as well."""
        offsets = {each: self.offset(token, each) for each in Stream} | {stream: offset}
        others = (lease for lease in self.leases if lease[0] != token)
        leases = sorted([*others, (token, offsets[Stream.STDOUT], offsets[Stream.STDERR])])
        floor = leases.pop(0)[0] if len(leases) > _LEASES else self.floor
        return Position(floor=floor, leases=tuple(leases))


def parse_position(text: str) -> Position | None:
    """The position that was written so; None for any other text."""
    if not _POSITION.fullmatch(text):
        return None
    floor, *leases = text.split(".")
    numbers = [lease.split("-") for lease in leases]
    return Position(floor=int(floor), leases=tuple((int(token), int(out), int(err)) for token, out, err in numbers))


def rest_of(text: str, start: int, offset: int) -> tuple[str, int]:
    """The part of a text from this offset of its stream on, and the bytes that are left out before it."""
    if offset <= start:
        return text, start - offset
    # Not within a character.
    return text.encode()[offset - start :].decode(errors="ignore"), 0
